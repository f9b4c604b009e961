// The newest backup of a dataset, written to a directory that is not there yet, and checked.

import { Buffer } from "node:buffer";
import { chmodSync, closeSync, lutimesSync, mkdirSync, openSync, rmSync, symlinkSync, writeSync } from "node:fs";

import { ContentId } from "./content.mjs";
import { bytesOf, join } from "./paths.mjs";

export async function restore({ client, metadata }, dataset, directory) {
  const restorer = new Restorer(Buffer.from(directory));
  try {
    for await (const message of client.Restore({ dataset }, metadata)) {
      for (const part of message.parts) restorer.part(part);
    }
    restorer.complete();
  } finally {
    restorer.abandon();
  }
  const { backup, entryCount, dataBytes, damageCount } = restorer;
  console.log(JSON.stringify({ backup: backup.id, entries: entryCount, bytes: dataBytes, damaged: damageCount }));
  return damageCount ? 3 : 0;
}

/** Writes what a Restore stream brings. Synchronous calls: the next part is not read before this one is written. */
class Restorer {
  entryCount = 0;
  dataBytes = 0;
  damageCount = 0;
  backup = null;

  #target;
  // The directories that this run made: nothing is written anywhere else, whatever a path says.
  #made = new Set();
  // Directories get their mode and times last, since writing into them changes those.
  #directories = [];
  // The file that is being written: name, descriptor, entry, id, received.
  #open = null;
  #end = null;

  constructor(target) {
    this.#target = target;
  }

  part(part) {
    if (this.#end) throw new Error("a part came after the end");
    if (!this.backup && !part.header) throw new Error("the first part is not the header");
    switch (part.part) {
      case "header":
        this.backup = part.header.backup;
        mkdirSync(this.#target, { mode: 0o700 });
        this.#made.add("");
        break;
      case "entry":
        this.#entry(part.entry);
        break;
      case "data":
        this.#data(part.data);
        break;
      case "entry_end":
        this.#entryEnd(part.entry_end);
        break;
      case "damage":
        this.#damage(part.damage);
        break;
      case "end":
        this.#end = part.end;
        break;
      default:
        throw new Error(`a part that was not asked for: ${part.part}`);
    }
  }

  /** Where a path of the backup is written; an error if that is not below what this run made. */
  #place(path) {
    // One character a byte: components compare and split as bytes do.
    const components = path.toString("latin1").split("/");
    if (path.length && components.some((each) => ["", ".", ".."].includes(each) || each.includes("\0"))) {
      throw new Error(`"${path}" is not a path that a backup may have`);
    }
    if (path.length && !this.#made.has(components.slice(0, -1).join("/"))) {
      throw new Error(`"${path}" came before its directory, or below something that is none`);
    }
    return join(this.#target, path);
  }

  #entry(entry) {
    const path = bytesOf("path", entry);
    if (this.#open) throw new Error(`"${path}" came before the end of the file before it`);
    const name = this.#place(path);
    this.entryCount += 1;
    switch (entry.type) {
      case "ENTRY_TYPE_DIRECTORY":
        this.#directories.push([name, entry]);
        if (!path.length) break;
        mkdirSync(name, { mode: 0o700 });
        this.#made.add(path.toString("latin1"));
        break;
      case "ENTRY_TYPE_SYMLINK":
        symlinkSync(bytesOf("link_target", entry), name);
        setTime(name, entry);
        break;
      case "ENTRY_TYPE_FILE":
        this.#begin(name, entry);
        break;
      default:
        throw new Error(`"${path}": this client knows files, directories and symbolic links only`);
    }
  }

  /** Makes the file. With its data inline it is complete; an empty file is so, too. */
  #begin(name, entry) {
    this.#open = { name, entry, descriptor: openSync(name, "wx", 0o600), id: new ContentId(), received: 0 };
    const size = +(entry.content.size_bytes ?? 0);
    if (!entry.data && size) return;
    if (entry.data?.length) this.#write(entry.data, [entry.data.length]);
    this.#close(size, entry.content.content_id);
  }

  #data({ data, chunk_lengths: lengths, zero_bytes: zeros }) {
    if (!this.#open) throw new Error("data came without a file");
    if (!+(zeros ?? 0)) {
      this.#write(data, lengths);
      return;
    }
    if (lengths.reduce((sum, each) => sum + each, 0) !== +zeros) throw new Error(`${zeros} zero bytes are not their chunks`);
    for (const length of lengths) this.#write(Buffer.alloc(length), [length]);
  }

  #write(data, lengths) {
    this.#open.id.chunks(data, lengths);
    this.#open.received += data.length;
    for (let rest = data; rest.length; ) rest = rest.subarray(writeSync(this.#open.descriptor, rest));
  }

  #entryEnd({ size_bytes: size, content_id: id }) {
    if (!this.#open) throw new Error("a file ended that had not begun");
    const { name, entry } = this.#open;
    if (size !== entry.content.size_bytes) throw new Error(`"${name}": its end does not state the size that its beginning did`);
    if (!id.equals(entry.content.content_id)) throw new Error(`"${name}": its end does not state its content id`);
    this.#close(+size, id);
  }

  /** Checks the open file against its size and content id, and finishes it. */
  #close(size, id) {
    const { name, entry, descriptor, id: content, received } = this.#open;
    if (received !== size) throw new Error(`"${name}": ${received} bytes came of ${size}`);
    if (!id.equals(content.digest())) throw new Error(`"${name}": it does not have its content id`);
    this.dataBytes += size;
    this.#open = null;
    closeSync(descriptor);
    setMetadata(name, entry);
  }

  /** Takes away what was written of the open file. */
  #damage(damage) {
    const path = bytesOf("path", damage);
    console.error(`interop: "${path}" is damaged: ${damage.message}`);
    this.damageCount += 1;
    if (!this.#open) return;
    const { name, entry } = this.#open;
    if (!path.equals(bytesOf("path", entry))) throw new Error(`"${path}" is damaged, and "${name}" was open`);
    this.abandon();
    rmSync(name);
  }

  /** A stream without its end is a failure, and so is one that sent other counts than it states. */
  complete() {
    if (!this.#end) throw new Error("the stream ended without its end: this is not the whole backup");
    if (this.#open) throw new Error(`"${this.#open.name}" did not end`);
    const got = [this.entryCount, this.dataBytes, this.damageCount];
    const stated = ["entry_count", "data_bytes", "damage_count"].map((field) => +(this.#end[field] ?? 0));
    if (got.join() !== stated.join()) throw new Error(`entries, bytes, damages: ${got} came, and ${stated} were stated`);
    for (const [name, entry] of this.#directories.reverse()) setMetadata(name, entry);
  }

  /** Closes the file that is open, if one is. */
  abandon() {
    if (this.#open) closeSync(this.#open.descriptor);
    this.#open = null;
  }
}

function setMetadata(name, entry) {
  if (entry.mode !== undefined) chmodSync(name, entry.mode);
  setTime(name, entry);
}

/** To about a microsecond: Node takes seconds as a double. Before 1970 it takes only a Date, which has milliseconds. */
function setTime(name, { mtime_ns: time }) {
  if (time === undefined) return;
  const seconds = Number(time) / 1e9;
  const modified = seconds < 0 ? new Date(seconds * 1e3) : seconds;
  lutimesSync(name, modified, modified);
}
