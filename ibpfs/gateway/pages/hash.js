// SHA-256 (FIPS 180-4) of bytes that come in pieces: WebCrypto hashes only what is in memory as a whole.

const PRIMES = [];
for (let number = 2; PRIMES.length < 64; number += 1) {
  if (PRIMES.every((prime) => number % prime)) PRIMES.push(number);
}
const fraction = (value) => (value % 1) * 0x100000000;
const ROUNDS = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = Int32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));
const BLOCK = 64;

export class Sha256 {
  constructor() {
    this.state = START.slice();
    this.words = new Int32Array(64);
    this.held = new Uint8Array(BLOCK);
    this.length = 0;
  }

  update(data) {
    const held = this.length % BLOCK;
    this.length += data.length;
    let at = 0;
    if (held) {
      at = Math.min(BLOCK - held, data.length);
      this.held.set(data.subarray(0, at), held);
      if (held + at < BLOCK) return this;
      this.blocks(this.held, 0, BLOCK);
    }
    const end = data.length - ((data.length - at) % BLOCK);
    this.blocks(data, at, end);
    this.held.set(data.subarray(end));
    return this;
  }

  // In hexadecimal digits; nothing can be added afterwards.
  finish() {
    const held = this.length % BLOCK;
    const last = new Uint8Array(held < BLOCK - 8 ? BLOCK : 2 * BLOCK);
    last.set(this.held.subarray(0, held));
    last[held] = 0x80;
    new DataView(last.buffer).setBigUint64(last.length - 8, BigInt(this.length) * 8n);
    this.blocks(last, 0, last.length);
    return Array.from(this.state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  blocks(data, start, end) {
    const { state, words } = this;
    let [a0, b0, c0, d0, e0, f0, g0, h0] = state;
    for (let at = start; at < end; at += BLOCK) {
      for (let t = 0, i = at; t < 16; t += 1, i += 4) {
        words[t] = (data[i] << 24) | (data[i + 1] << 16) | (data[i + 2] << 8) | data[i + 3];
      }
      for (let t = 16; t < 64; t += 1) {
        const x = words[t - 15];
        const y = words[t - 2];
        const low = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const high = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        words[t] = (words[t - 16] + low + words[t - 7] + high) | 0;
      }
      let a = a0, b = b0, c = c0, d = d0, e = e0, f = f0, g = g0, h = h0;
      for (let t = 0; t < 64; t += 1) {
        const high = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const one = (h + high + ((e & f) ^ (~e & g)) + ROUNDS[t] + words[t]) | 0;
        const low = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const two = (low + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0;
      }
      a0 = (a0 + a) | 0; b0 = (b0 + b) | 0; c0 = (c0 + c) | 0; d0 = (d0 + d) | 0;
      e0 = (e0 + e) | 0; f0 = (f0 + f) | 0; g0 = (g0 + g) | 0; h0 = (h0 + h) | 0;
    }
    state.set([a0, b0, c0, d0, e0, f0, g0, h0]);
  }
}
