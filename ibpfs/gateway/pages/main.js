// What a person sees of a link.

import { Contents } from "./contents.js";
import { Sha256 } from "./hash.js";
import { Kept } from "./kept.js";
import { Trouble, readLink } from "./link.js";
import { fetchRecord, openRecord } from "./record.js";
import { NoRoom, save } from "./saving.js";
import { zip } from "./zip.js";

const GET = "With ibpfs, “ibpfs get -” opens it.";
const HEADINGS = {
  busy: "Not now",
  cut: "This link was cut off",
  damaged: "This link is damaged",
  expired: "This link has expired",
  argon2: "A browser cannot open this link",
  insecure: "This page cannot open it here",
  recipients: "A browser cannot open this link",
  key: "The key is wrong",
  nonsense: "There is nothing to open here",
  offline: "The gateway cannot be reached",
  revoked: "This link was revoked",
  unknown: "It is not there any more",
  unreachable: "It cannot be reached now",
};
const SAID = {
  argon2: `This link's passphrase is of a kind that browsers do not know. ${GET}`,
  busy: "This gateway has too much to do at the moment. Try again in a minute.",
  changed: "What came is not what was shared (its SHA-256 is another). The file was not saved whole; do not use it.",
  cut: "The link was cut off: what follows its “#” is missing. Copy all of it from the message.",
  damaged: "This link is damaged: a part of it is missing or was changed on the way. Copy all of it from the message.",
  expired: "This link has expired: the sender let it hold for a limited time. Ask for a new one.",
  insecure: `This address is neither https nor this computer, so the browser lends this page no cryptography. ${GET}`,
  key: "The key in this link does not open it.",
  lost: "Some of its bytes are on no depot any more. Ask the sender for a new link.",
  newer: "This link is of a newer ibpfs than this gateway.",
  nonsense: "What this link points to makes no sense: its sender's program is broken, or means you harm.",
  offline: "The gateway cannot be reached. Is this device online?",
  passphrase: "That is not the passphrase.",
  recipients: `This link is for certain recipients, whose keys a browser does not have. ${GET}`,
  refused: `This gateway does not speak to the servers that the file is on. ${GET}`,
  revoked: "The sender has revoked this link.",
  stopped: "Stopped.",
  unknown: "The file is not there any more: the link was revoked, or the file lost.",
  unreachable: "The servers that the file is on do not answer now. Try again later.",
};

const WITHOUT_HOPE = ["cut", "damaged", "expired", "mangled", "revoked"]; // for ibpfs, too
const MOST_LISTED = 1000;

const at = (id) => document.getElementById(id);

function show(id, on = true) {
  at(id).hidden = !on;
}

function say(text, isBad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", isBad);
  if (isBad && text.includes(GET)) at("command").open = true;
}

function complain(error) {
  if (error instanceof NoRoom) return say(`This browser window cannot save so large a file. ${GET}`, true);
  if (error.name === "AbortError") return say(SAID.stopped);
  if (!(error instanceof Trouble)) console.error(error.name);
  if (at("found").hidden && at("ask").hidden) {
    at("name").textContent = document.title = HEADINGS[error.message] ?? (SAID[error.message] ? document.title : HEADINGS.damaged);
  }
  if (WITHOUT_HOPE.includes(error.message)) show("command", false);
  say(SAID[error.message] ?? SAID.damaged, true);
}

export function readable(size) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  if (size === 1) return "1 byte";
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

function showCommand(locator, fragment) {
  at("line").value = `ibpfs get - <<'.'\nibpfs:${locator}#${fragment}\n.`;
  at("copy").addEventListener("click", async () => {
    at("line").select();
    try {
      await navigator.clipboard.writeText(at("line").value);
      at("copy").textContent = "Copied";
    } catch {
      at("copy").textContent = "Selected: press Ctrl-C";
    }
  });
  show("command");
}

// "The same as last time" is all that a browser can tell of a sender.
function showSender(key) {
  if (!key) return;
  const name = key.slice(0, 12);
  let before = null;
  try {
    before = localStorage.getItem(`sender ${key}`);
    if (!before) localStorage.setItem(`sender ${key}`, new Date().toISOString());
  } catch {
    before = null; // storage is off
  }
  const known = before ? `the same as on ${new Date(before).toLocaleDateString()}` : "new to this browser";
  at("sender").textContent = `${name} (${known})`;
  show("sender");
  show("sender-word");
}

function showContent(link, content) {
  const files = content.entries.filter((entry) => entry.type === "file");
  at("name").textContent = document.title = content.name;
  at("size").textContent = content.type === "file" ? readable(content.size) : `${readable(content.size)} in ${files.length} files`;
  if (content.leftOut) at("size").textContent += `, without ${content.leftOut} symbolic links, which ibpfs get makes`;
  at("expires").textContent = new Date(content.expires * 1000).toLocaleString();
  if (content.type === "file" && files[0].sha256) {
    at("hash").textContent = files[0].sha256;
    show("hash");
    show("hash-word");
  }
  at("note").textContent = content.note;
  show("note", content.note !== "");
  showSender(content.sender);
  if (content.type === "directory") {
    at("download").textContent = "Download all (ZIP)";
    listFiles(link, content, files);
  }
  at("download").addEventListener("click", () => download(link, content, content.type === "file" ? files[0] : null));
  say("");
  show("found");
  Kept.of(link, content).then(async (kept) => {
    const size = await kept.size();
    if (size && !at("download").disabled) say(`${readable(size)} of it are here from an earlier visit: a download goes on with them.`);
  });
}

function listFiles(link, content, files) {
  for (const entry of files.slice(0, MOST_LISTED)) {
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.textContent = `${entry.path.join("/")} (${readable(entry.size)})`;
    const button = document.createElement("button");
    button.textContent = "Download";
    button.setAttribute("aria-label", `Download ${entry.path.join("/")}`);
    button.addEventListener("click", () => download(link, content, entry));
    row.append(name, button);
    at("files").append(row);
  }
  if (files.length > MOST_LISTED) {
    const row = document.createElement("li");
    row.textContent = `and ${files.length - MOST_LISTED} more, which are in the ZIP archive`;
    at("files").append(row);
  }
  show("files");
}

async function download(link, content, entry) {
  const total = entry ? entry.size : content.size;
  const told = (text) => (at("progress-text").dataset.waiting = text);
  const kept = await Kept.of(link, entry ? { ...content, size: entry.size } : content);
  const contents = new Contents(link, content, entry ? [entry] : content.entries, kept, told, () => fetchRecord(link));
  const stop = () => contents.stop();
  at("stop").addEventListener("click", stop);
  setBusy(true);
  const began = performance.now();
  let done = 0;
  // The last piece is handed on when the whole is right: until then the browser knows that the file is not whole.
  async function* counted(one) {
    const hash = new Sha256();
    let held = null;
    for await (const piece of contents.read(one)) {
      hash.update(piece);
      if (held) yield held;
      held = piece;
      done += piece.length;
    }
    if (hash.length !== one.size || (one.sha256 && hash.finish() !== one.sha256)) throw new Trouble("changed");
    if (held) yield held;
  }
  const ticking = setInterval(() => progress(done, total, began), 200);
  try {
    const pieces = entry ? counted(entry) : zip(content.name, content.entries, counted);
    const name = entry ? (entry.path.at(-1) ?? content.name) : `${content.name}.zip`;
    await save(name, entry ? entry.size : null, pieces);
    progress(done, total, began);
    await kept.end();
    say("Done. It is what was shared.");
  } catch (error) {
    complain(error);
  } finally {
    clearInterval(ticking);
    at("stop").removeEventListener("click", stop);
    contents.stop();
    setBusy(false);
  }
}

function setBusy(on) {
  for (const button of document.querySelectorAll("#download, #files button")) button.disabled = on;
  show("stop", on);
  at("progress-line").classList.add("begun");
  if (on) say("");
}

function progress(done, total, began) {
  at("progress").value = total ? done / total : 1;
  const rate = done / Math.max(0.001, (performance.now() - began) / 1000);
  const waiting = at("progress-text").dataset.waiting;
  at("progress-text").textContent = waiting || `${readable(done)} of ${readable(total)}, ${readable(Math.round(rate))}/s`;
}

async function openWith(link, record, passphrase) {
  try {
    showContent(link, await openRecord(link, record, passphrase));
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

function askPassphrase(link, record) {
  say("");
  show("ask");
  at("passphrase").focus();
  at("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = at("ask").querySelector("button");
    button.disabled = true;
    say("Opening ...");
    if (await openWith(link, record, at("passphrase").value)) show("ask", false);
    button.disabled = false;
  });
}

async function begin() {
  const base = new URL(document.baseURI).pathname;
  const locator = location.pathname.slice(base.length).split("/")[1];
  const [fragment] = location.hash.slice(1).match(/^[\w-]*/); // some programs take a bracket or a full stop for a part of it
  if (fragment) showCommand(locator, fragment);
  if (!globalThis.isSecureContext || !globalThis.crypto?.subtle) throw new Trouble("insecure");
  const link = await readLink(locator, fragment);
  if (link.recipients) throw new Trouble("recipients");
  const record = await fetchRecord(link);
  if (link.passphrase && record.public.passphrase?.name !== "pbkdf2-sha256") throw new Trouble("argon2");
  if (link.passphrase) return askPassphrase(link, record);
  return openWith(link, record, "");
}

addEventListener("hashchange", () => location.reload());
begin().catch(complain);
