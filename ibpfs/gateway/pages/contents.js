// The bytes of a shared file: loaded through the gateway from whichever depot gives them, opened frame by frame.

import { Trouble, decode, join } from "./link.js";

const HEADER = 40;
const TAG = 16;
const ZEROS = 1024 * 1024;
// On their way at once: loads (browsers have no more for one server), and bytes of them.
const LOADS_AHEAD = 6;
const BYTES_AHEAD = 16 * 1024 * 1024;
// Small files that lie close together are one load.
const LARGEST_LOAD = 4 * 1024 * 1024;
const LARGEST_GAP = 64 * 1024;
const MOST_TOGETHER = 2000;
const PAUSES = [500, 1000, 2000, 5000];
// What ends a download: no other copy, and no later time, will be better.
const FINAL = ["revoked", "expired", "mangled"];

export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Contents {
  // Of `entries`, which are read one after the other. `told(text)` hears why nothing arrives at the moment; `why()` throws
  // the reason why nothing ever will, if it has one.
  constructor(link, content, entries, kept, told, why) {
    this.link = link;
    this.content = content;
    this.kept = kept;
    this.told = told;
    this.why = why;
    this.keys = new Map();
    this.troubles = new Map();
    this.turn = 0;
    this.stopped = false;
    this.coming = groups(content, entries);
    this.ahead = [];
    this.loads = 0;
    this.bytes = 0;
  }

  stop() {
    this.stopped = true;
  }

  // The clear bytes of an entry, in order.
  async *read(entry) {
    for (;;) {
      this.fill();
      if (this.ahead[0]?.entry !== entry) return;
      if (this.stopped) throw new Trouble("stopped");
      const { clear, size, isLast } = this.ahead.shift();
      yield await clear;
      this.bytes -= size;
      if (isLast) this.loads -= 1;
    }
  }

  fill() {
    while (this.loads < LOADS_AHEAD && this.bytes < BYTES_AHEAD) {
      const { done, value: group } = this.coming.next();
      if (done) return;
      this.loads += 1;
      const all = this.opened(group);
      group.forEach(({ entry, size }, number) => {
        const clear = all.then((found) => found[number]);
        clear.catch(() => {}); // it is looked at when its turn comes
        this.ahead.push({ entry, size, clear, isLast: number === group.length - 1 });
        this.bytes += size;
      });
    }
  }

  // The clear bytes of each piece of a group.
  async opened(group) {
    const { run, begin, size } = group[0];
    if (run === undefined) return [new Uint8Array(size)];
    const keys = await Promise.all(group.map(({ slice }) => this.key(slice)));
    const open = (stored) =>
      Promise.all(group.map((piece, at) => this.clear(piece, keys[at], stored.subarray(piece.begin - begin, piece.end - begin))));
    return this.load(run, begin, group.at(-1).end - begin, open);
  }

  async clear({ slice, start, stop }, key, stored) {
    const [, , length, frameSize, , sliceId, origin] = this.content.slices[slice];
    const first = Math.floor(start / frameSize);
    const frames = Math.ceil(length / frameSize);
    const step = frameSize + TAG;
    const opened = [];
    for (let frame = first; frame < Math.ceil(stop / frameSize); frame += 1) {
      const at = (frame - first) * step;
      opened.push(openFrame(key, stored.subarray(at, at + step), { sliceId, origin, frameSize, frame, frames }));
    }
    return join(...(await Promise.all(opened))).subarray(start - first * frameSize, stop - first * frameSize);
  }

  key(number) {
    if (!this.keys.has(number)) {
      if (this.keys.size > 1000) this.keys.clear();
      const raw = decode(this.content.slices[number][7]);
      this.keys.set(number, crypto.subtle.importKey("raw", raw, "AES-GCM", false, ["decrypt"]));
    }
    return this.keys.get(number);
  }

  // Depots take turns; those that gave nothing of use come last from then on.
  inTurn(copies) {
    const shift = this.turn % copies.length;
    this.turn += 1;
    const troubles = ([depot]) => this.troubles.get(depot) ?? 0;
    return [...copies.slice(shift), ...copies.slice(0, shift)].sort((one, other) => troubles(one) - troubles(other));
  }

  blame(depot) {
    this.troubles.set(depot, (this.troubles.get(depot) ?? 0) + 1);
  }

  // What `open` makes of the stored bytes of the first copy that has them; goes on for as long as the page is open.
  async load(run, offset, length, open) {
    const kept = await this.kept.get(run, offset, length);
    const clear = kept && (await open(kept).catch(() => null));
    if (clear) return clear;
    for (let round = 0; ; round += 1) {
      let hopeless = true;
      for (const [depot, key, base] of this.inTurn(this.content.runs[run][1])) {
        if (this.stopped) throw new Trouble("stopped");
        const wanted = { locator: this.link.locator, depot: this.content.depots[depot], key, offset: base + offset, length };
        const found = await loadOnce(wanted);
        if (FINAL.includes(found.error)) throw new Trouble(found.error);
        if (found.data) {
          try {
            const clear = await open(found.data);
            this.told("");
            await this.kept.put(run, offset, found.data);
            return clear;
          } catch {
            this.blame(depot);
            continue; // changed bytes: the next copy
          }
        }
        if (found.error === "unreachable") this.blame(depot);
        hopeless &&= found.error === "unknown" || found.error === "refused";
        this.told(found.error === "busy" ? "" : "waiting for the connection ...");
      }
      if (hopeless) {
        await this.why();
        throw new Trouble("lost");
      }
      await wait(PAUSES[Math.min(round, PAUSES.length - 1)]);
    }
  }
}

async function loadOnce(wanted) {
  try {
    const response = await fetch("load", { method: "POST", body: JSON.stringify(wanted), cache: "no-store" });
    if (!response.ok) return { error: (await response.json().catch(() => ({}))).error ?? "unreachable" };
    const data = new Uint8Array(await response.arrayBuffer());
    return data.length === wanted.length ? { data } : { error: "unreachable" };
  } catch {
    return { error: "offline" };
  }
}

// The pieces of all entries, those together that are one load.
function* groups(content, entries) {
  let group = [];
  for (const entry of entries) {
    for (const piece of pieces(content, entry)) {
      if (group.length && !isClose(group, piece)) {
        yield group;
        group = [];
      }
      group.push(piece);
    }
  }
  if (group.length) yield group;
}

function isClose(group, { run, begin, end }) {
  const last = group.at(-1);
  if (run === undefined || run !== last.run || group.length >= MOST_TOGETHER) return false;
  return begin >= last.end && begin - last.end <= LARGEST_GAP && end - group[0].begin <= LARGEST_LOAD;
}

function* pieces(content, entry) {
  let at = 0;
  for (const [start, stop, slice, offset] of entry.parts ?? []) {
    yield* zeros(entry, start - at);
    yield stored(content.slices[slice], entry, slice, offset, offset + stop - start);
    at = stop;
  }
  yield* zeros(entry, entry.size - at);
}

// Where clear bytes [start, stop) of a slice lie in its run.
function stored([run, offset, length, frameSize], entry, slice, start, stop) {
  const step = frameSize + TAG;
  const begin = HEADER + Math.floor(start / frameSize) * step;
  const whole = HEADER + length + Math.ceil(length / frameSize) * TAG;
  const end = Math.min(HEADER + Math.ceil(stop / frameSize) * step, whole);
  return { entry, slice, start, stop, run, begin: offset + begin, end: offset + end, size: stop - start };
}

function* zeros(entry, length) {
  for (let left = length; left > 0; left -= ZEROS) yield { entry, size: Math.min(left, ZEROS) };
}

async function openFrame(key, stored, { sliceId, origin, frameSize, frame, frames }) {
  const nonce = new Uint8Array(12);
  new DataView(nonce.buffer).setUint32(8, frame);
  const context = new Uint8Array(43);
  context.set(decode(origin), 0);
  context.set(decode(sliceId), 16);
  const view = new DataView(context.buffer);
  view.setUint8(32, 1);
  view.setUint8(33, 1);
  view.setUint32(34, frameSize);
  view.setUint32(38, frame);
  view.setUint8(42, frame === frames - 1 ? 1 : 0);
  return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv: nonce, additionalData: context }, key, stored));
}
