// Everything in a directory as one Backup stream.

import { Buffer } from "node:buffer";
import { once } from "node:events";
import { open, lstat, readdir, readlink } from "node:fs/promises";

import { fieldsOf, join } from "./paths.mjs";

// Up to here a file goes inline, in its entry.
const INLINE_BYTES_MAX = 64 << 10;
// A message is sent when it holds this much; no part is larger.
const MESSAGE_BYTES = 1 << 20;
// What a part takes beside its data, roughly: a message of many empty files must end, too.
const PART_OVERHEAD_BYTES = 128;

/** Makes a FULL backup of what is in the directory, which becomes the root. */
export async function backup({ client, metadata }, directory, dataset) {
  const sender = new Sender(client, metadata);
  await sender.add({ begin: { dataset, kind: "BACKUP_KIND_FULL" } });
  try {
    await sender.below(Buffer.from(directory), Buffer.alloc(0));
    await sender.finish();
  } catch (error) {
    sender.call.cancel();
    // An answer that came before finish is why the stream broke: it tells more than what broke here.
    throw sender.failed ?? error;
  }
  const { backup: made } = await sender.answer;
  console.log(JSON.stringify({ backup: made.id, number: +made.number, entries: +made.entry_count, bytes: +made.data_bytes }));
  return 0;
}

/** Gathers the parts of a stream into messages, and counts what finish states. */
class Sender {
  #parts = [];
  #bytes = 0;
  #entryCount = 0;
  #dataBytes = 0;

  constructor(client, metadata) {
    this.answer = new Promise((resolve, reject) => {
      this.call = client.Backup(metadata, (error, response) => (error ? reject(error) : resolve(response)));
    });
    this.answer.catch((error) => (this.failed = error));
  }

  /** Sends what is at a path, and all below it, a directory before what lies in it. */
  async below(root, path) {
    const name = join(root, path);
    const stat = await lstat(name, { bigint: true });
    const entry = {
      ...fieldsOf("path", path),
      mode: Number(stat.mode & 0o7777n),
      mtime_ns: stat.mtimeNs.toString(),
    };
    if (stat.isDirectory()) {
      await this.entry({ ...entry, type: "ENTRY_TYPE_DIRECTORY" });
      const children = await readdir(name, { encoding: "buffer" });
      for (const child of children.sort(Buffer.compare)) await this.below(root, join(path, child));
    } else if (stat.isSymbolicLink()) {
      const target = await readlink(name, { encoding: "buffer" });
      await this.entry({ ...entry, type: "ENTRY_TYPE_SYMLINK", ...fieldsOf("link_target", target) });
    } else if (stat.isFile()) {
      await this.file(name, { ...entry, type: "ENTRY_TYPE_FILE" });
    } else {
      throw new Error(`${name}: this client knows files, directories and symbolic links only`);
    }
  }

  /** Sends a file: inline if it is small, else as data parts and an end. */
  async file(name, entry) {
    const file = await open(name);
    try {
      let piece = await readFull(file);
      if (piece.length <= INLINE_BYTES_MAX) {
        this.#dataBytes += piece.length;
        await this.entry({ ...entry, data: piece });
        return;
      }
      await this.entry(entry);
      let size = 0;
      for (; piece.length; piece = await readFull(file)) {
        size += piece.length;
        await this.add({ data: { data: piece } }, piece.length);
      }
      this.#dataBytes += size;
      await this.add({ entry_end: { size_bytes: size } });
    } finally {
      await file.close();
    }
  }

  async entry(entry) {
    this.#entryCount += 1;
    await this.add({ entry }, entry.data?.length ?? 0);
  }

  async finish() {
    await this.add({ finish: { entry_count: this.#entryCount, data_bytes: this.#dataBytes } });
    await this.#flush();
    this.call.end();
  }

  /** Puts a part into the message, and sends the message once it is large enough. */
  async add(part, bytes = 0) {
    this.#parts.push(part);
    this.#bytes += bytes + PART_OVERHEAD_BYTES;
    if (this.#bytes >= MESSAGE_BYTES) await this.#flush();
  }

  async #flush() {
    if (this.failed) throw this.failed;
    const accepted = this.call.write({ parts: this.#parts });
    this.#parts = [];
    this.#bytes = 0;
    // The answer may come first: of a stream that the server has ended, nothing drains.
    if (!accepted) await Promise.race([once(this.call, "drain"), this.answer]);
  }
}

/** The next MESSAGE_BYTES of a file; fewer only at its end. */
async function readFull(file) {
  const piece = Buffer.alloc(MESSAGE_BYTES);
  let length = 0;
  while (length < piece.length) {
    const { bytesRead } = await file.read(piece, length);
    if (!bytesRead) break;
    length += bytesRead;
  }
  return piece.subarray(0, length);
}
