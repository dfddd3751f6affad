"use strict";
/* The conversation with ibpfs-thunderbird-host: one request, one answer, in order. */

const HOST = "org.ibpfs.filelink";
/* Bytes of a file in one message; the host takes messages of up to 4 MiB. */
const PIECE = 512 * 1024;

class Host {
  constructor() {
    this.port = null;
    this.waiting = [];
  }

  ask(request) {
    return new Promise((resolve, reject) => {
      this.connect();
      this.waiting.push({ resolve, reject });
      try {
        this.port.postMessage(request);
      } catch (error) {
        this.end(error.message);
      }
    });
  }

  connect() {
    if (this.port) {
      return;
    }
    const port = browser.runtime.connectNative(HOST);
    this.port = port;
    port.onMessage.addListener((answer) => this.hear(answer));
    port.onDisconnect.addListener((ended) => {
      if (this.port === port) {
        this.end((ended && ended.error && ended.error.message) || "ibpfs is not installed; run: ibpfs thunderbird install");
      }
    });
  }

  hear(answer) {
    const asked = this.waiting.shift();
    if (!asked) {
      return;
    }
    if (answer.op === "error") {
      asked.reject(new Error(answer.error));
    } else {
      asked.resolve(answer);
    }
  }

  end(reason) {
    const waiting = this.waiting;
    this.port = null;
    this.waiting = [];
    for (const asked of waiting) {
      asked.reject(new Error(reason));
    }
  }
}

function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}
