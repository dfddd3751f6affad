"""Our add-on in a real Thunderbird: python tests/foreign/thunderbird.py THUNDERBIRD VOLUME

Starts THUNDERBIRD headless with a new profile and the add-on, and through Thunderbird's own objects makes an ibpfs
account, uploads a file as a compose window would, fetches the link with `ibpfs get -`, deletes the upload and sees that
the link has ended. VOLUME is mounted. Takes about half a minute; needs no account and no network.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
_PORT = 2828  # Marionette's
_PREFERENCES = {
    "extensions.autoDisableScopes": 0, "xpinstall.signatures.required": False, "app.update.enabled": False,
    "mail.provider.enabled": False, "datareporting.policy.dataSubmissionEnabled": False,
}  # fmt: skip
_UPLOAD = """
const [path, resolve] = arguments;
(async () => {
  const { cloudFileAccounts } = ChromeUtils.importESModule("resource:///modules/cloudFileAccounts.sys.mjs");
  const { MailServices } = ChromeUtils.importESModule("resource:///modules/MailServices.sys.mjs");
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  const account = cloudFileAccounts.createAccount("ext-filelink@ibpfs.org");
  for (let n = 0; n < 200 && !account.configured; n++) await pause(100);
  const person = MailServices.accounts.createAccount();
  person.incomingServer = MailServices.accounts.createIncomingServer("nobody", "mail.example.net", "pop3");
  const identity = MailServices.accounts.createIdentity();
  identity.email = "ada@example.net";
  person.addIdentity(identity);
  const letter = Cc["@mozilla.org/messengercompose/composeparams;1"].createInstance(Ci.nsIMsgComposeParams);
  letter.composeFields = Cc["@mozilla.org/messengercompose/composefields;1"].createInstance(Ci.nsIMsgCompFields);
  letter.identity = identity;
  MailServices.compose.OpenComposeWindowWithParams(null, letter);
  let composing;
  while (!(composing = Services.wm.getMostRecentWindow("msgcompose"))) await pause(100);
  await pause(3000);
  const file = Cc["@mozilla.org/file/local;1"].createInstance(Ci.nsIFile);
  file.initWithPath(path);
  const { id, url, name, downloadExpiryDate } = await account.uploadFile(composing, file);
  return { configured: account.configured, id, url, name, expires: downloadExpiryDate.timestamp };
})().then(resolve, (error) => resolve({ error: String(error) }));
"""
_DELETE = """
const [id, resolve] = arguments;
(async () => {
  const { cloudFileAccounts } = ChromeUtils.importESModule("resource:///modules/cloudFileAccounts.sys.mjs");
  const account = cloudFileAccounts.accounts.find((one) => one.type === "ext-filelink@ibpfs.org");
  await account.deleteFile(Services.wm.getMostRecentWindow("msgcompose"), id);
  return {};
})().then(resolve, (error) => resolve({ error: String(error) }));
"""


class Marionette:
    """Thunderbird's remote control: `LENGTH:JSON` over TCP."""

    def __init__(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._door = socket.create_connection(("127.0.0.1", _PORT), timeout=120)
                break
            except OSError:
                assert time.monotonic() < deadline, "Thunderbird does not answer"
                time.sleep(0.3)
        self._words = self._door.makefile("rb")
        self._count = 0
        self._receive()
        self.ask("WebDriver:NewSession", {})
        self.ask("Marionette:SetContext", {"value": "chrome"})
        self.ask("WebDriver:SetTimeouts", {"script": 120_000})

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        self._count += 1
        body = json.dumps([0, self._count, name, arguments]).encode()
        self._door.sendall(b"%d:" % len(body) + body)
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def run(self, script: str, *arguments: object) -> dict[str, Any]:
        wanted = {"script": script, "args": list(arguments), "newSandbox": True}
        found: dict[str, Any] = self.ask("WebDriver:ExecuteAsyncScript", wanted)["value"]
        assert "error" not in found, found
        return found

    def _receive(self) -> Any:
        length = b""
        while (sign := self._words.read(1)) != b":":
            assert sign, "Thunderbird went away"
            length += sign
        return json.loads(self._words.read(int(length)))


def prepare(home: Path, volume: str) -> dict[str, str]:
    """A home directory with a profile, the add-on, the program's manifest and mail.toml."""
    profile = home / "profile"
    (profile / "extensions").mkdir(parents=True)
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in _PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    (home / "mail.toml").write_text(f'volume = "{volume}"\nlocal_links = "send"\n')
    environment = {**os.environ, "HOME": str(home), "IBPFS_MAIL_CONFIG": str(home / "mail.toml")}
    for words in (["install"], ["xpi", "-o", str(profile / "extensions" / "filelink@ibpfs.org.xpi")]):
        subprocess.run([BIN / "ibpfs", "thunderbird", *words], env=environment, check=True)
    return environment


def get(url: str, target: Path, environment: dict[str, str]) -> int:
    words = [BIN / "ibpfs", "get", "-", "-o", target]
    return subprocess.run(words, input=url.encode(), env=environment, check=False).returncode


def main() -> None:
    thunderbird, volume = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="ibpfs-thunderbird-") as directory:
        home = Path(directory)
        environment = prepare(home, volume)
        file = home / "Übersicht.bin"
        file.write_bytes(random.Random(1).randbytes(3_000_000))
        control = ["--headless", "--marionette", "-remote-allow-system-access"]
        words = [thunderbird, *control, "--profile", home / "profile"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        try:
            remote = Marionette()
            found = remote.run(_UPLOAD, str(file))
            print({name: value for name, value in found.items() if name != "url"})
            assert get(found["url"], home / "got", environment) == 0
            assert (home / "got").read_bytes() == file.read_bytes()
            remote.run(_DELETE, found["id"])
            assert get(found["url"], home / "again", environment) == 1
            print("uploaded, fetched, the same; deleted, ended")
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
