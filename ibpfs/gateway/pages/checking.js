// What a record's sealed part may say: a stranger may have written it. The rules are those of docs/sharing.md.

import { Trouble, bytes } from "./link.js";

export const FORMAT = "ibpfs-share/1";
export const WITH_LINKS = "ibpfs-share/2";

const HEADER = 40;
const TAG = 16;
const LARGEST_SLICE = 4 * 1024 * 1024;
const MOST_ENTRIES = 100000;
const LONGEST_NAME = 255;
const LONGEST_NOTE = 4096;
const DEEPEST = 64;
const LONGEST_TARGET = 4095;

function need(fine) {
  if (!fine) throw new Trouble("nonsense");
}

const isNumber = (value, least = 0) => Number.isSafeInteger(value) && value >= least;
const isText = (value) => typeof value === "string";

// Checks all of it; gives names as they can be shown and saved.
export function checked(content) {
  const { runs, slices, entries, depots } = content;
  need([runs, slices, entries, depots].every(Array.isArray) && isText(content.note) && isNumber(content.expires));
  need(content.note.length <= LONGEST_NOTE && entries.length > 0 && entries.length <= MOST_ENTRIES);
  checkName(content.name);
  for (const run of runs) checkRun(run, depots);
  for (const slice of slices) checkSlice(slice, runs);
  const directories = new Set();
  entries.forEach((entry, at) => checkEntry(entry, at, slices, directories));
  need(content.type === entries[0].type);
  need(content.size === entries.reduce((sum, entry) => sum + entry.size, 0) && isNumber(content.size));
  need(entries.some((entry) => entry.type === "link") === (content.format === WITH_LINKS));
  const named = entries.map((entry) => ({ ...entry, path: entry.path.map(harmless), target: harmlessTarget(entry.target) }));
  return { ...content, name: harmless(content.name), ...withSafeLinks(named) };
}

// Where two names may be one to whoever unpacks them, a link in place of a directory could lead elsewhere: then without any.
function withSafeLinks(entries) {
  const names = new Set(entries.map(({ path }) => path.join("/").normalize("NFKC").toUpperCase().toLowerCase()));
  if (names.size === entries.length) return { entries, leftOut: 0 };
  const others = entries.filter(({ type }) => type !== "link");
  return { entries: others, leftOut: entries.length - others.length };
}

function checkName(name) {
  need(isText(name) && !["", ".", ".."].includes(name) && name.length <= LONGEST_NAME);
  need(!/[\/\p{Cc}\p{Zl}\p{Zp}]/u.test(name));
}

// Without what is no Unicode, what turns the direction of writing (and .exe into .txt), and what is a slash to some.
function harmless(name) {
  const text = new TextDecoder().decode(bytes(name));
  const plain = text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "").replaceAll("\\", "_");
  return ["", ".", ".."].includes(plain) ? "_" : plain;
}

const harmlessTarget = (target) => target?.split("/").map((word) => ([".", ".."].includes(word) ? word : harmless(word))).join("/");

// A symbolic link goes up first, not above what is shared, then along names: see docs/sharing.md.
function checkTarget(path, target) {
  need(isText(target) && target.length <= LONGEST_TARGET);
  const words = target.split("/");
  const names = words.slice(words.every((word) => word === "..") ? words.length : words.findIndex((word) => word !== ".."));
  need(words.length - names.length < path.length);
  if (target !== ".") names.forEach(checkName);
}

function checkRun(run, depots) {
  need(Array.isArray(run) && isNumber(run[0], 1) && Array.isArray(run[1]) && run[1].length > 0);
  for (const copy of run[1]) {
    need(Array.isArray(copy) && isText(depots[copy[0]]) && isText(copy[1]) && isNumber(copy[2]));
  }
}

function checkSlice(slice, runs) {
  need(Array.isArray(slice) && slice.slice(0, 5).every((value) => isNumber(value)) && slice.slice(5).every(isText));
  const [run, offset, length, frameSize] = slice;
  need(slice.length === 8 && length > 0 && length <= LARGEST_SLICE && frameSize > 0 && run < runs.length);
  need(offset + HEADER + length + Math.ceil(length / frameSize) * TAG <= runs[run][0]);
}

function checkEntry(entry, number, slices, directories) {
  const { path, type, size, parts = [] } = entry ?? {};
  need(Array.isArray(path) && path.length <= DEEPEST && (number === 0) === (path.length === 0));
  path.forEach(checkName);
  need(number === 0 || directories.has(JSON.stringify(path.slice(0, -1))));
  need(Array.isArray(parts) && isNumber(size) && isNumber(entry.mode) && Number.isSafeInteger(entry.mtime));
  need(type === "file" || (["directory", "link"].includes(type) && size === 0 && parts.length === 0));
  if (type === "link") checkTarget(path, entry.target);
  else need(entry.target === undefined);
  if (type === "directory") directories.add(JSON.stringify(path));
  let at = 0;
  for (const part of parts) {
    need(Array.isArray(part) && part.length === 4 && part.every((value) => isNumber(value)));
    const [start, stop, slice, offset] = part;
    need(at <= start && start < stop && stop <= size && slice < slices.length);
    need(offset + stop - start <= slices[slice][2]);
    at = stop;
  }
}
