// Bytes to a file of the browser's: streamed through the service worker, which makes a download of them.

const LARGEST_IN_MEMORY = 512 * 1024 * 1024;
const KEEP_AWAKE = 10000;

export class NoRoom extends Error {}

// `pieces`: an async iterator of bytes; `size` null when not known.
export async function save(name, size, pieces) {
  const worker = await activeWorker();
  return worker ? streamed(worker, name, size, pieces) : collected(name, size, pieces);
}

async function activeWorker() {
  if (!navigator.serviceWorker) return null;
  try {
    const base = new URL(document.baseURI).pathname;
    await navigator.serviceWorker.register(`${base}worker.js`, { scope: base });
    return (await navigator.serviceWorker.ready).active;
  } catch {
    return null; // a private window, or forbidden
  }
}

async function streamed(worker, name, size, pieces) {
  const id = crypto.randomUUID();
  const { port1: port, port2 } = new MessageChannel();
  const frame = document.createElement("iframe");
  frame.hidden = true;
  const awake = setInterval(() => worker.postMessage({ awake: id }), KEEP_AWAKE);
  try {
    await new Promise((resolve, reject) => {
      port.onmessage = async ({ data }) => {
        if (data === "ready") {
          frame.src = `save/${id}`; // without the name: a worker that has just ended would let it through to the gateway
          document.body.append(frame);
          return;
        }
        if (data === "stop") return void reject(new DOMException("stopped in the browser", "AbortError"));
        try {
          const { done, value } = await pieces.next();
          if (done) {
            port.postMessage("end");
            resolve();
          } else {
            const whole = value.byteLength === value.buffer.byteLength ? value : value.slice();
            port.postMessage(whole, [whole.buffer]);
          }
        } catch (error) {
          port.postMessage("broken");
          reject(error);
        }
      };
      worker.postMessage({ save: id, name, size }, [port2]);
    });
  } finally {
    clearInterval(awake);
    setTimeout(() => frame.remove(), KEEP_AWAKE);
  }
}

async function collected(name, size, pieces) {
  if (size !== null && size > LARGEST_IN_MEMORY) throw new NoRoom();
  const parts = [];
  for await (const piece of pieces) parts.push(piece);
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(new Blob(parts));
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
}
