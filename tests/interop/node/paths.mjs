// Paths are bytes: a string on the wire where they are UTF-8, and bytes in a second field elsewhere.

import { Buffer, isUtf8 } from "node:buffer";

const SLASH = Buffer.from("/");

/** Two fields of a message, of which one is set: `name` as text, or `raw_` before its name as bytes. */
export function fieldsOf(name, bytes) {
  return isUtf8(bytes) ? { [name]: bytes.toString() } : { [`raw_${name}`]: bytes };
}

/** What such two fields hold, as bytes. */
export function bytesOf(name, message) {
  const bytes = message[`raw_${name}`];
  return bytes?.length ? bytes : Buffer.from(message[name] ?? "");
}

/** A path below another; either may be empty. */
export function join(parent, name) {
  return parent.length && name.length ? Buffer.concat([parent, SLASH, name]) : Buffer.concat([parent, name]);
}
