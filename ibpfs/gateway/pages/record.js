// A share's record: fetched as it lies on the depots, opened here.

import { FORMAT, WITH_LINKS, checked } from "./checking.js";
import { wait } from "./contents.js";
import { Trouble, bytes, decode, join, sha256 } from "./link.js";

const HEADER = 20;
const SIGNATURE = 64;
const REVOKED = 2;
const PATIENCE = 10;

export async function fetchRecord(link) {
  let response;
  for (let tries = 1; ; tries += 1) {
    try {
      response = await fetch(`record/${link.locator}`, { cache: "no-store" });
    } catch {
      throw new Trouble("offline");
    }
    if (response.ok) break;
    const told = await response.json().catch(() => ({}));
    if (told.error !== "busy" || tries === PATIENCE) throw new Trouble(told.error ?? "unreachable");
    await wait(1000 * (Number(response.headers.get("retry-after")) || 1));
  }
  return parse(new Uint8Array(await response.arrayBuffer()), link);
}

async function parse(data, link) {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  if (data.length < HEADER || String.fromCharCode(...data.subarray(0, 4)) !== "IBPr") throw new Trouble("damaged");
  if (data[4] !== 1) throw new Trouble("newer");
  if (data[5] === REVOKED) throw new Trouble("revoked");
  const publicLength = view.getUint32(12);
  const sealedLength = view.getUint32(16);
  if (data.length < HEADER + publicLength + sealedLength + SIGNATURE) throw new Trouble("damaged");
  const open = data.subarray(HEADER, HEADER + publicLength);
  const found = JSON.parse(new TextDecoder().decode(open));
  if (found.format !== FORMAT) throw new Trouble("newer");
  const hash = await sha256(bytes("ibpfs-share/1 id\0"), decode(found.key));
  if (!link.id.every((value, at) => value === hash[at])) throw new Trouble("damaged");
  const sealed = data.subarray(HEADER + publicLength, HEADER + publicLength + sealedLength);
  return { number: data.slice(8, 12), open, sealed, public: found };
}

export async function openRecord(link, record, passphrase) {
  const stretched = link.passphrase ? await stretch(record.public.passphrase, passphrase) : new Uint8Array();
  const material = await crypto.subtle.importKey("raw", join(link.secret, stretched), "HKDF", false, ["deriveKey"]);
  const key = await crypto.subtle.deriveKey(
    { name: "HKDF", hash: "SHA-256", salt: link.id, info: bytes("ibpfs-share/1 record") },
    material,
    { name: "AES-GCM", length: 256 },
    false,
    ["decrypt"],
  );
  const context = join(bytes("ibpfs-share/1 record\0"), record.number, record.open);
  let clear;
  try {
    clear = await crypto.subtle.decrypt(
      { name: "AES-GCM", iv: record.sealed.subarray(0, 12), additionalData: context },
      key,
      record.sealed.subarray(12),
    );
  } catch {
    throw new Trouble(link.passphrase ? "passphrase" : "key");
  }
  const said = JSON.parse(new TextDecoder().decode(clear));
  if (![FORMAT, WITH_LINKS].includes(said.format)) throw new Trouble("newer");
  const content = checked(said);
  return { ...content, sender: await checkedSender(content.sender, record.public.key) };
}

async function stretch(how, passphrase) {
  if (how?.name !== "pbkdf2-sha256") throw new Trouble("argon2");
  const typed = bytes(passphrase.normalize("NFC"));
  const material = await crypto.subtle.importKey("raw", typed, "PBKDF2", false, ["deriveBits"]);
  const salt = decode(how.salt);
  const wanted = { name: "PBKDF2", hash: "SHA-256", salt, iterations: how.iterations };
  return new Uint8Array(await crypto.subtle.deriveBits(wanted, material, 256));
}

// The sender's key, when the signature is right and this browser can tell; else null.
async function checkedSender(sender, shareKey) {
  try {
    const key = await crypto.subtle.importKey("raw", decode(sender.key), "Ed25519", false, ["verify"]);
    const signed = join(bytes("ibpfs-share/1 sender\0"), decode(shareKey));
    return (await crypto.subtle.verify("Ed25519", key, decode(sender.signature), signed)) ? sender.key : null;
  } catch {
    return null;
  }
}
