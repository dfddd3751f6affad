"use strict";
/* The FileLink provider: files go to the host in pieces, a link comes back. */

const host = new Host();
/* Uploads by Thunderbird's number of the file; numbers of ours are never used twice. */
const uploads = new Map();
let latest = 0;

async function upload(account, { id, name, data }) {
  const number = ++latest;
  const state = { number, aborted: false };
  uploads.set(id, state);
  try {
    await host.ask({ op: "begin", upload: number, name, size: data.size });
    for (let at = 0; at < data.size; at += PIECE) {
      const piece = new Uint8Array(await data.slice(at, at + PIECE).arrayBuffer());
      if (state.aborted) {
        await host.ask({ op: "abort", upload: number });
        return { aborted: true };
      }
      await host.ask({ op: "data", upload: number, data: base64(piece) });
    }
    const shared = await host.ask({ op: "end", upload: number });
    if (state.aborted) {
      await host.ask({ op: "revoke", id: shared.id });
      return { aborted: true };
    }
    await remember(account, id, shared.id);
    return {
      url: shared.url,
      templateInfo: { service_name: "ibpfs", download_expiry_date: { timestamp: shared.expires * 1000 } },
    };
  } catch (error) {
    return state.aborted ? { aborted: true } : { error: error.message };
  } finally {
    uploads.delete(id);
  }
}

function key(account, id) {
  return `share/${account.id}/${id}`;
}

async function remember(account, id, share) {
  await browser.storage.local.set({ [key(account, id)]: share });
}

async function remove(account, id) {
  const name = key(account, id);
  const share = (await browser.storage.local.get(name))[name];
  if (share) {
    await host.ask({ op: "revoke", id: share });
    await browser.storage.local.remove(name);
  }
}

/* Thunderbird offers a provider only when it is said to be configured: when the host knows a mounted volume. */
async function status(accountId) {
  try {
    const found = await host.ask({ op: "hello" });
    if (accountId) {
      await browser.cloudFile.updateAccount(accountId, { configured: true });
    }
    return { ok: true, volume: found.volume, version: found.version };
  } catch (error) {
    if (accountId) {
      await browser.cloudFile.updateAccount(accountId, { configured: false });
    }
    return { ok: false, error: error.message };
  }
}

browser.cloudFile.onFileUpload.addListener((account, file) => upload(account, file));
browser.cloudFile.onFileUploadAbort.addListener((account, id) => {
  const state = uploads.get(id);
  if (state) {
    state.aborted = true;
  }
});
browser.cloudFile.onFileDeleted.addListener((account, id) => remove(account, id));
browser.cloudFile.onAccountAdded.addListener((account) => status(account.id));
browser.runtime.onMessage.addListener((message) => (message.what === "status" ? status(message.account) : undefined));
browser.cloudFile.getAllAccounts().then((accounts) => Promise.all(accounts.map((account) => status(account.id))));
