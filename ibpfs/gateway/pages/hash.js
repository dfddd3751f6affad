// SHA-256 (FIPS 180-4) of bytes that come in pieces: WebCrypto hashes only what is in memory as a whole.

const PRIMES = [];
for (let number = 2; PRIMES.length < 64; number += 1) {
  if (PRIMES.every((prime) => number % prime)) PRIMES.push(number);
}
const fraction = (value) => (value % 1) * 0x100000000;
const ROUNDS = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = Int32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));
const BLOCK = 64;
const high = (x) => ((x >>> 6) | (x << 26)) ^ ((x >>> 11) | (x << 21)) ^ ((x >>> 25) | (x << 7));
const low = (x) => ((x >>> 2) | (x << 30)) ^ ((x >>> 13) | (x << 19)) ^ ((x >>> 22) | (x << 10));

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
        const first = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const second = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        words[t] = (words[t - 16] + first + words[t - 7] + second) | 0;
      }
      let a = a0, b = b0, c = c0, d = d0, e = e0, f = f0, g = g0, h = h0, one;
      for (let t = 0; t < 64; t += 8) { // eight at a time: the names move on, and not the values
        one = (h + high(e) + (g ^ (e & (f ^ g))) + ROUNDS[t] + words[t]) | 0;
        d = (d + one) | 0;
        h = (one + low(a) + ((a & b) | (c & (a | b)))) | 0;
        one = (g + high(d) + (f ^ (d & (e ^ f))) + ROUNDS[t + 1] + words[t + 1]) | 0;
        c = (c + one) | 0;
        g = (one + low(h) + ((h & a) | (b & (h | a)))) | 0;
        one = (f + high(c) + (e ^ (c & (d ^ e))) + ROUNDS[t + 2] + words[t + 2]) | 0;
        b = (b + one) | 0;
        f = (one + low(g) + ((g & h) | (a & (g | h)))) | 0;
        one = (e + high(b) + (d ^ (b & (c ^ d))) + ROUNDS[t + 3] + words[t + 3]) | 0;
        a = (a + one) | 0;
        e = (one + low(f) + ((f & g) | (h & (f | g)))) | 0;
        one = (d + high(a) + (c ^ (a & (b ^ c))) + ROUNDS[t + 4] + words[t + 4]) | 0;
        h = (h + one) | 0;
        d = (one + low(e) + ((e & f) | (g & (e | f)))) | 0;
        one = (c + high(h) + (b ^ (h & (a ^ b))) + ROUNDS[t + 5] + words[t + 5]) | 0;
        g = (g + one) | 0;
        c = (one + low(d) + ((d & e) | (f & (d | e)))) | 0;
        one = (b + high(g) + (a ^ (g & (h ^ a))) + ROUNDS[t + 6] + words[t + 6]) | 0;
        f = (f + one) | 0;
        b = (one + low(c) + ((c & d) | (e & (c | d)))) | 0;
        one = (a + high(f) + (h ^ (f & (g ^ h))) + ROUNDS[t + 7] + words[t + 7]) | 0;
        e = (e + one) | 0;
        a = (one + low(b) + ((b & c) | (d & (b | c)))) | 0;
      }
      a0 = (a0 + a) | 0; b0 = (b0 + b) | 0; c0 = (c0 + c) | 0; d0 = (d0 + d) | 0;
      e0 = (e0 + e) | 0; f0 = (f0 + f) | 0; g0 = (g0 + g) | 0; h0 = (h0 + h) | 0;
    }
    state.set([a0, b0, c0, d0, e0, f0, g0, h0]);
  }
}
