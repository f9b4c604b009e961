// A file's content id from its chunks, as Content.content_id defines it.

import { Buffer } from "node:buffer";

import { blake3 } from "@noble/hashes/blake3.js";

const CONTEXT = Buffer.from("staddle.v1 content id");
const EMPTY = new Uint8Array();

export class ContentId {
  #digests = [];
  #list = blake3.create({ context: CONTEXT });

  /** Takes bytes that are whole chunks of these lengths; an error if they are not. */
  chunks(data, lengths) {
    let offset = 0;
    for (const length of lengths) {
      const chunk = data.subarray(offset, offset + length);
      if (chunk.length !== length) throw new Error(`a chunk of ${length} bytes, and only ${chunk.length} are left in its part`);
      this.#chunk(chunk);
      offset += length;
    }
    if (offset !== data.length) throw new Error(`${data.length - offset} bytes belong to no chunk`);
  }

  #chunk(chunk) {
    const digest = blake3(chunk);
    // Of more than two, only the first matters by itself, and that there are more.
    if (this.#digests.length < 2) this.#digests.push(digest);
    const length = Buffer.alloc(4);
    length.writeUInt32LE(chunk.length);
    this.#list.update(length).update(digest);
  }

  digest() {
    if (this.#digests.length === 0) return blake3(EMPTY);
    return this.#digests.length === 1 ? this.#digests[0] : this.#list.digest();
  }
}
