// Makes a download of bytes that the page has opened. It never sees a key, and touches no other request.

const waiting = new Map();

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("message", ({ data, ports }) => {
  if (!data.save) return; // a word now and then keeps a worker awake
  waiting.set(data.save, { port: ports[0], name: data.name, size: data.size });
  ports[0].postMessage("ready");
});

self.addEventListener("fetch", (event) => {
  const found = new URL(event.request.url).pathname.match(/\/save\/([0-9a-f-]{36})$/);
  if (!found) return;
  const job = waiting.get(found[1]);
  waiting.delete(found[1]);
  event.respondWith(job ? answer(job) : new Response("", { status: 404 })); // nothing of it is the gateway's
});

function answer({ port, name, size }) {
  const quoted = encodeURIComponent(name).replace(/['()*]/g, (letter) => `%${letter.charCodeAt(0).toString(16)}`);
  const headers = {
    "content-type": "application/octet-stream",
    "content-disposition": `attachment; filename*=UTF-8''${quoted}`,
    "x-content-type-options": "nosniff",
  };
  if (size !== null) headers["content-length"] = String(size);
  return new Response(stream(port), { headers });
}

function stream(port) {
  return new ReadableStream(
    {
      pull: (controller) =>
        new Promise((resolve) => {
          port.onmessage = ({ data }) => {
            if (data === "end") controller.close();
            else if (data === "broken") controller.error(new Error("the page gave up"));
            else controller.enqueue(data);
            resolve();
          };
          port.postMessage("more");
        }),
      cancel: () => port.postMessage("stop"),
    },
    { highWaterMark: 1 },
  );
}
