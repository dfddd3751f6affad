"use strict";

const account = new URL(location.href).searchParams.get("accountId");
const state = document.getElementById("state");

async function ask() {
  const found = await browser.runtime.sendMessage({ what: "status", account });
  state.className = found.ok ? "good" : "bad";
  state.textContent = found.ok ? `Files go to the volume ${found.volume} (ibpfs ${found.version}).` : found.error;
}

document.getElementById("again").addEventListener("click", ask);
ask();
