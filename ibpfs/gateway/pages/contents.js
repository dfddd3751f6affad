// The bytes of a shared file: loaded through the gateway from whichever depot gives them, opened frame by frame.

import { Trouble, decode, join } from "./link.js";

const HEADER = 40;
const TAG = 16;
const ZEROS = 1024 * 1024;
const AHEAD = 4;
const PAUSES = [500, 1000, 2000, 5000];
// What ends a download: no other copy, and no later time, will be better.
const FINAL = ["revoked", "expired", "mangled"];

export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Contents {
  // `told(text)` hears why nothing arrives at the moment; `why()` throws the reason why nothing ever will, if it has one.
  constructor(link, content, kept, told, why) {
    this.link = link;
    this.content = content;
    this.kept = kept;
    this.told = told;
    this.why = why;
    this.keys = new Map();
    this.troubles = new Map();
    this.turn = 0;
    this.stopped = false;
  }

  stop() {
    this.stopped = true;
  }

  // The clear bytes of an entry, in order.
  async *read(entry) {
    const jobs = this.jobs(entry);
    const ahead = [];
    for (;;) {
      while (ahead.length < AHEAD) {
        const job = jobs.next();
        if (job.done) break;
        const piece = job.value();
        piece.catch(() => {}); // it is looked at when its turn comes
        ahead.push(piece);
      }
      if (!ahead.length) return;
      if (this.stopped) throw new Trouble("stopped");
      yield await ahead.shift();
    }
  }

  *jobs(entry) {
    let at = 0;
    for (const [start, stop, slice, offset] of entry.parts ?? []) {
      yield* zeros(start - at);
      yield () => this.part(slice, offset, offset + stop - start);
      at = stop;
    }
    yield* zeros(entry.size - at);
  }

  // Clear bytes [start, stop) of a slice.
  async part(number, start, stop) {
    const [run, offset, length, frameSize, , sliceId, origin] = this.content.slices[number];
    const first = Math.floor(start / frameSize);
    const behind = Math.ceil(stop / frameSize);
    const frames = Math.ceil(length / frameSize);
    const step = frameSize + TAG;
    const begin = HEADER + first * step;
    const end = Math.min(HEADER + behind * step, HEADER + length + frames * TAG);
    const key = await this.key(number);
    const open = async (stored) => {
      const clear = [];
      for (let frame = first; frame < behind; frame += 1) {
        const at = (frame - first) * step;
        clear.push(openFrame(key, stored.subarray(at, at + step), { sliceId, origin, frameSize, frame, frames }));
      }
      return join(...(await Promise.all(clear)));
    };
    const clear = await this.load(run, offset + begin, end - begin, open);
    return clear.subarray(start - first * frameSize, stop - first * frameSize);
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

function* zeros(length) {
  for (let left = length; left > 0; left -= ZEROS) {
    const size = Math.min(left, ZEROS);
    yield async () => new Uint8Array(size);
  }
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
