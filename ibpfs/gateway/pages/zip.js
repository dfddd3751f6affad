// A ZIP archive as a stream: nothing is compressed, sizes follow the bytes, ZIP64 where 32 bits are too few.

import { bytes, join } from "./link.js";

const LARGE = 0xffffffff;

const TABLE = Uint32Array.from({ length: 256 }, (_, number) => {
  let value = number;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

export function crc32(data, before = 0) {
  let value = ~before;
  for (let at = 0; at < data.length; at += 1) value = (value >>> 8) ^ TABLE[(value ^ data[at]) & 0xff];
  return ~value >>> 0;
}

// Little-endian numbers: pairs of (bytes, value).
function fields(...pairs) {
  const size = pairs.reduce((sum, [width]) => sum + width, 0);
  const view = new DataView(new ArrayBuffer(size));
  let at = 0;
  for (const [width, value] of pairs) {
    if (width === 2) view.setUint16(at, value, true);
    else if (width === 4) view.setUint32(at, value, true);
    else view.setBigUint64(at, BigInt(value), true);
    at += width;
  }
  return new Uint8Array(view.buffer);
}

function dosTime(seconds) {
  const when = new Date(Math.max(seconds, 315532800) * 1000);
  const time = (when.getHours() << 11) | (when.getMinutes() << 5) | (when.getSeconds() >> 1);
  const day = (Math.min(when.getFullYear() - 1980, 127) << 9) | ((when.getMonth() + 1) << 5) | when.getDate();
  return [time, day];
}

function localHeader(name, time, day, isLarge) {
  const extra = isLarge ? fields([2, 1], [2, 16], [8, 0], [8, 0]) : new Uint8Array();
  const head = fields([4, 0x04034b50], [2, isLarge ? 45 : 20], [2, 0x808], [2, 0], [2, time], [2, day], [4, 0],
    [4, isLarge ? LARGE : 0], [4, isLarge ? LARGE : 0], [2, name.length], [2, extra.length]);
  return join(head, name, extra);
}

const KINDS = { file: 0o100000, directory: 0o040000, link: 0o120000 };

function centralHeader({ name, time, day, crc, size, at, mode, type }) {
  const isLarge = size >= LARGE || at >= LARGE;
  const extra = isLarge ? fields([2, 1], [2, 24], [8, size], [8, size], [8, at]) : new Uint8Array();
  const attributes = (((KINDS[type] | mode) << 16) | (type === "directory" ? 0x10 : 0)) >>> 0;
  const head = fields([4, 0x02014b50], [2, 0x32d], [2, isLarge ? 45 : 20], [2, 0x808], [2, 0], [2, time], [2, day],
    [4, crc], [4, isLarge ? LARGE : size], [4, isLarge ? LARGE : size], [2, name.length], [2, extra.length], [2, 0],
    [2, 0], [2, 0], [4, attributes], [4, isLarge ? LARGE : at]);
  return join(head, name, extra);
}

function end(count, size, at) {
  const isLarge = count > 0xfffe || at + size >= LARGE;
  const last = fields([4, 0x06054b50], [2, 0], [2, 0], [2, isLarge ? 0xffff : count], [2, isLarge ? 0xffff : count],
    [4, isLarge ? LARGE : size], [4, isLarge ? LARGE : at], [2, 0]);
  if (!isLarge) return last;
  const wide = fields([4, 0x06064b50], [8, 44], [2, 45], [2, 45], [4, 0], [4, 0], [8, count], [8, count], [8, size], [8, at]);
  return join(wide, fields([4, 0x07064b50], [4, 0], [8, at + size], [4, 1]), last);
}

// `read(entry)` yields a file's bytes; directories come before what is in them. A symbolic link's bytes are its target.
export async function* zip(root, entries, read) {
  const written = [];
  let at = 0;
  for (const entry of entries) {
    const isDirectory = entry.type === "directory";
    const name = bytes([root, ...entry.path].join("/") + (isDirectory ? "/" : ""));
    const [time, day] = dosTime(entry.mtime);
    const isLarge = entry.size >= LARGE;
    const head = localHeader(name, time, day, isLarge);
    const row = { name, time, day, crc: 0, size: 0, at, mode: entry.mode, type: entry.type };
    at += head.length; // before it is handed on: then its bytes belong to somebody else
    yield head;
    if (!isDirectory) {
      for await (const piece of entry.type === "link" ? [bytes(entry.target)] : read(entry)) {
        row.crc = crc32(piece, row.crc);
        row.size += piece.length;
        yield piece;
      }
    }
    const width = isLarge ? 8 : 4;
    const tail = fields([4, 0x08074b50], [4, row.crc], [width, row.size], [width, row.size]);
    at += row.size + tail.length;
    yield tail;
    written.push(row);
  }
  let size = 0;
  for (const row of written) {
    const head = centralHeader(row);
    size += head.length;
    yield head;
  }
  yield end(written.length, size, at);
}
