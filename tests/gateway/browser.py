"""A headless Chromium, spoken to through its driver's WebDriver protocol (W3C)."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

_ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP *.example 127.0.0.1", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--ignore-certificate-errors",
]  # fmt: skip
PATIENCE = 60.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window. Downloads go to `downloads`."""

    def __init__(self, home: Path) -> None:
        self.downloads = home / "downloads"
        self.downloads.mkdir()
        driver = shutil.which("chromedriver")
        assert driver is not None, "chromedriver is not installed (apt-get install chromium-driver)"
        with (home / "driver.log").open("wb") as log:
            self._driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=log)
        self._port = self._find_port()
        preferences = {"download.default_directory": str(self.downloads), "download.prompt_for_download": False}
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={home / 'profile'}"], "prefs": preferences}
        named = {"browserName": "chrome", "acceptInsecureCerts": True, "goog:chromeOptions": options}
        wanted = {"capabilities": {"alwaysMatch": named}}
        self._session = self._ask("POST", "", wanted)["sessionId"]

    def _find_port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if b"started successfully on port" in line:
                return int(line.split()[-1].rstrip(b"."))
        raise AssertionError("the driver did not start")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/session{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)["value"]

    def go(self, url: str) -> None:
        self._ask("POST", f"/{self._session}/url", {"url": "about:blank"})  # another fragment alone is no new page
        self._ask("POST", f"/{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._ask("POST", f"/{self._session}/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        shown = f"{selector}:not([hidden])"
        return str(self.run(f"return document.querySelector({shown!r})?.textContent ?? ''"))

    def wait_for(self, script: str) -> Any:
        """What the script returns, once that is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := self.run(f"return {script}")):
            assert time.monotonic() < deadline, f"{script}: {self.run('return document.body.innerText')}"
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        self.wait_for(f"!!document.querySelector({selector!r})")
        found = self._ask("POST", f"/{self._session}/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/{self._session}/element/{found[_ELEMENT]}/click", {})

    def type(self, selector: str, text: str) -> None:
        found = self._ask("POST", f"/{self._session}/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/{self._session}/element/{found[_ELEMENT]}/value", {"text": text})

    def finished(self) -> set[Path]:
        """The downloads a person sees: neither what is under way nor what Chromium keeps hidden for a moment."""
        return {path for path in self.downloads.iterdir() if path.suffix != ".crdownload" and path.name[0] != "."}

    def downloaded(self, name: str) -> Path:
        """The file, once it is whole."""
        path, deadline = self.downloads / name, time.monotonic() + PATIENCE
        while not path.exists() or list(self.downloads.glob("*.crdownload")):
            assert time.monotonic() < deadline, [*self.downloads.iterdir(), self.run("return document.body.innerText")]
            time.sleep(0.1)
        return path

    def label(self, selector: str) -> str:
        """How a screen reader calls it."""
        found = self._ask("POST", f"/{self._session}/element", {"using": "css selector", "value": selector})
        return str(self._ask("GET", f"/{self._session}/element/{found[_ELEMENT]}/computedlabel"))

    def press(self, *keys: str) -> None:
        """Keys as WebDriver names them: https://www.w3.org/TR/webdriver2/#keyboard-actions."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", f"/{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", f"/{self._session}/goog/cdp/execute", body)

    def picture(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self._ask("GET", f"/{self._session}/screenshot")))

    def close(self) -> None:
        try:
            self._ask("DELETE", f"/{self._session}")
        finally:
            self._driver.terminate()
            self._driver.wait(PATIENCE)
            assert self._driver.stdout is not None
            self._driver.stdout.close()
