// A dataset's backups, newest first, and then the entries of the newest one.

import { bytesOf } from "./paths.mjs";

// Small, so that even a small backup has several pages.
const PAGE_SIZE = 5;

export async function list({ client, metadata }, dataset) {
  const unary = (method, request) =>
    new Promise((resolve, reject) => {
      client[method](request, metadata, (error, response) => (error ? reject(error) : resolve(response)));
    });
  for await (const each of pages(unary, "ListBackups", { dataset }, "backups")) {
    print({ backup: each.id, number: +each.number, entries: +each.entry_count, bytes: +each.data_bytes });
  }
  for await (const each of pages(unary, "ListEntries", { dataset, recursive: true }, "entries")) {
    print({
      path_hex: bytesOf("path", each).toString("hex"),
      type: each.type,
      bytes: +(each.content?.size_bytes ?? 0),
      content_id: each.content?.content_id?.toString("hex") ?? "",
    });
  }
  return 0;
}

async function* pages(unary, method, query, field) {
  let page_token = "";
  do {
    const page = await unary(method, { ...query, page_size: PAGE_SIZE, page_token });
    yield* page[field] ?? [];
    page_token = page.next_page_token;
  } while (page_token);
}

function print(fields) {
  console.log(JSON.stringify(fields));
}
