// Pieces of a large download, sealed as they came: a page that was closed before it was done goes on with them.

const LEAST = 16 * 1024 * 1024;
const LONGEST = 7 * 86400;
const PREFIX = "ibpfs";

export class Kept {
  // `name` "": nothing is kept. `cache` null: nothing is there yet.
  constructor(name, cache) {
    this.name = name;
    this.cache = cache;
    this.last = Promise.resolve();
  }

  // What there is of a link, from an earlier visit too.
  static async of(link, { size, expires }) {
    try {
      const names = await forgetOld(await caches.keys());
      if (size < LEAST) return new Kept("", null);
      const id = link.id.reduce((text, byte) => text + byte.toString(16).padStart(2, "0"), "");
      const name = names.find((one) => one.startsWith(`${PREFIX} ${id} `));
      if (name) return new Kept(name, await caches.open(name));
      return new Kept(`${PREFIX} ${id} ${Math.min(expires, now() + LONGEST)}`, null);
    } catch {
      return new Kept("", null); // a private window, or forbidden
    }
  }

  async size() {
    const requests = this.cache ? await this.cache.keys() : [];
    return requests.reduce((sum, { url }) => sum + Number(url.split("/").at(-1)), 0);
  }

  async get(run, offset, length) {
    try {
      const found = await this.cache?.match(place(run, offset, length));
      return found ? new Uint8Array(await found.arrayBuffer()) : null;
    } catch {
      return null;
    }
  }

  // Waits for the piece before: so what is not on the disk yet never piles up.
  async put(run, offset, data) {
    const before = this.last;
    this.last = before.then(() => this.store(place(run, offset, data.length), data)).catch(() => this.end());
    await before;
  }

  async store(where, data) {
    if (!this.name) return;
    this.cache ??= await caches.open(this.name);
    await this.cache.put(where, new Response(data));
  }

  // It is done, or there is no more room.
  async end() {
    const { name } = this;
    this.name = "";
    this.cache = null;
    if (name) await caches.delete(name).catch(() => false);
  }
}

const now = () => Math.floor(Date.now() / 1000);

const place = (run, offset, length) => `kept/${run}/${offset}/${length}`;

// Gives what is left.
async function forgetOld(names) {
  const isOld = (name) => name.startsWith(PREFIX) && Number(name.split(" ")[2]) < now();
  await Promise.all(names.filter(isOld).map((name) => caches.delete(name)));
  return names.filter((name) => !isOld(name));
}
