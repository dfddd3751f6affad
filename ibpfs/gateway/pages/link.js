// The two halves of a link, as docs/sharing.md has them. No secret leaves this module but as a return value.

const PASSPHRASE = 1;
const RECIPIENTS = 2;

export class Trouble extends Error {}

export function decode(text) {
  if (!/^[A-Za-z0-9_-]*$/.test(text)) throw new Trouble("damaged");
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}

export function join(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export const bytes = (text) => new TextEncoder().encode(text);

export async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", join(...parts)));
}

const same = (left, right) => left.length === right.length && left.every((value, at) => value === right[at]);

async function checked(what, data, between) {
  const body = data.subarray(0, -4);
  const sum = await sha256(bytes(`ibpfs-share/1 ${what}\0`), between, body);
  if (data.length < 5 || !same(sum.subarray(0, 4), data.subarray(-4))) throw new Trouble("damaged");
  return body;
}

// {id, secret, passphrase, recipients} of the address of this page.
export async function readLink(locator, fragment) {
  if (!fragment) throw new Trouble("cut");
  const head = await checked("locator", decode(locator), new Uint8Array());
  const body = await checked("fragment", decode(fragment), join(bytes(locator), new Uint8Array(1)));
  if (head[0] !== 1 || body[0] & ~(PASSPHRASE | RECIPIENTS)) throw new Trouble("newer");
  const recipients = Boolean(body[0] & RECIPIENTS);
  if (!recipients && body.length !== 33) throw new Trouble("damaged");
  return {
    locator,
    id: head.slice(1, 11),
    secret: body.slice(1),
    passphrase: Boolean(body[0] & PASSPHRASE),
    recipients,
  };
}
