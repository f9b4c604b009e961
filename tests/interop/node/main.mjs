// A small Staddle client, made from the protos alone: what another service would write.
//
//   main.mjs backup DIR DATASET
//   main.mjs list DATASET
//   main.mjs restore DATASET DIR
//
// STADDLE_SERVER is HOST:PORT and STADDLE_TOKEN a token. Results are JSON lines on standard output. It exits with 1
// after a failure, which it tells as "CODE REASON: message", with 2 for wrong usage, and with 3 if a path was damaged.

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import { backup } from "./backup.mjs";
import { describe } from "./errors.mjs";
import { list } from "./list.mjs";
import { restore } from "./restore.mjs";

const COMMANDS = { backup: [backup, 2], list: [list, 1], restore: [restore, 2] };

// Names as in the protos; 64-bit numbers as strings, since a number holds 53 bits; what is unset stays unset.
const LOADING = {
  includeDirs: [new URL("./protos", import.meta.url).pathname],
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
};

function connect() {
  const loaded = grpc.loadPackageDefinition(loadSync("staddle/v1/service.proto", LOADING));
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${process.env.STADDLE_TOKEN}`);
  const client = new loaded.staddle.v1.StaddleService(process.env.STADDLE_SERVER, grpc.credentials.createInsecure());
  return { client, metadata };
}

async function main([command, ...rest]) {
  const [run, count] = COMMANDS[command] ?? [];
  if (rest.length !== count) {
    console.error("usage: main.mjs backup DIR DATASET | list DATASET | restore DATASET DIR");
    return 2;
  }
  let connection;
  try {
    connection = connect();
    return await run(connection, ...rest);
  } catch (error) {
    console.error(`interop: ${describe(error)}`);
    return 1;
  } finally {
    connection?.client.close();
  }
}

process.exitCode = await main(process.argv.slice(2));
