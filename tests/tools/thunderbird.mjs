/* Stands for Thunderbird: gives the add-on's background page the API it uses, a real host process, and files.
   node thunderbird.mjs ADD-ON HOST FILE ...: prints one line of JSON per file, then what deleting the first one did. */
import { File } from "node:buffer"; // not yet a global one in version 18
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import vm from "node:vm";

const [addOn, program, ...files] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(addOn, "manifest.json")));
const listeners = {};
const event = (name) => ({ addListener: (listener) => (listeners[name] = listener) });
const stored = {};
const configured = {};

function connectNative(name) {
  if (name !== "org.ibpfs.filelink") throw new Error(`no such host: ${name}`);
  const child = spawn(program, ["/manifest.json", manifest.browser_specific_settings.gecko.id], { stdio: ["pipe", "pipe", "inherit"] });
  let held = Buffer.alloc(0);
  const heard = [], ended = [];
  child.stdout.on("data", (data) => {
    held = Buffer.concat([held, data]);
    while (held.length >= 4 && held.length >= 4 + held.readUInt32LE(0)) {
      const size = held.readUInt32LE(0);
      const message = JSON.parse(held.subarray(4, 4 + size));
      held = held.subarray(4 + size);
      heard.forEach((listener) => listener(message));
    }
  });
  child.on("exit", () => ended.forEach((listener) => listener({})));
  connectNative.child = child;
  return {
    postMessage(message) {
      const body = Buffer.from(JSON.stringify(message));
      const length = Buffer.alloc(4);
      length.writeUInt32LE(body.length);
      child.stdin.write(Buffer.concat([length, body]));
    },
    onMessage: { addListener: (listener) => heard.push(listener) },
    onDisconnect: { addListener: (listener) => ended.push(listener) },
  };
}

const browser = {
  runtime: { connectNative, onMessage: event("message") },
  storage: { local: {
    get: async (name) => ({ [name]: stored[name] }),
    set: async (values) => void Object.assign(stored, values),
    remove: async (name) => void delete stored[name],
  } },
  cloudFile: {
    onFileUpload: event("upload"), onFileUploadAbort: event("abort"), onFileDeleted: event("deleted"),
    onAccountAdded: event("added"),
    getAllAccounts: async () => [{ id: "account1" }],
    updateAccount: async (id, values) => void (configured[id] = values.configured),
  },
};
const page = vm.createContext({ browser, btoa, Uint8Array, Map, Promise, Error, String, console });
for (const script of manifest.background.scripts) {
  vm.runInContext(readFileSync(join(addOn, script), "utf8"), page, { filename: script });
}

const say = (value) => console.log(JSON.stringify(value));
const account = { id: "account1" };
say(await listeners.message({ what: "status", account: "account1" }));
for (const [id, path] of files.entries()) {
  const data = new File([readFileSync(path)], basename(path));
  const going = listeners.upload(account, { id, name: basename(path), data });
  if (basename(path).startsWith("aborted")) listeners.abort(account, id);
  say(await going);
}
if (files.length) await listeners.deleted(account, 0);
say({ configured: configured.account1, stored: Object.keys(stored).length });
connectNative.child.stdin.end();
