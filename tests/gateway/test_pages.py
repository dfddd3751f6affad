"""Links opened in a real browser."""

import dataclasses
import hashlib
import os
import random
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from ibpfs.depot.address import Address
from ibpfs.exnode_store.sharing.links import Fragment, Link
from tests.depot.conftest import DepotProcess

from .browser import Browser
from .conftest import PROGRAM, GatewayProcess
from .sharing import MadeShare, delete, make_share, revoke
from .tap import Tap

CONTENT = random.Random(5).randbytes(3_000_000) + bytes(900_000) + b"the end"


def address(gateway: GatewayProcess, share: MadeShare) -> str:
    return share.link.render(gateway.url)


def state(browser: Browser) -> str:
    return str(browser.wait_for("document.querySelector('#state.bad')?.textContent"))


def test_a_file(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    name = "Übersicht (1) of 'all'.bin"
    share = make_share(depot.address, {name: CONTENT}, note="as promised\n<b>not bold</b>")
    browser.go(address(gateway, share))
    browser.click("#found:not([hidden]) #download")
    found = browser.downloaded(name)
    assert hashlib.sha256(found.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert browser.text("#name") == name
    assert browser.text("#size") == "3.7 MiB"
    assert "<b>not bold</b>" in browser.text("#note")
    assert share.link.render() in browser.run("return document.querySelector('#line').value")
    browser.wait_for("document.querySelector('#state').textContent.startsWith('Done.')")
    said = gateway.log.read_text()
    fragment = share.link.fragment.render(share.link.locator)
    key = share.link.locator.places[0].read.key
    assert fragment not in said
    assert key not in said
    assert share.link.locator.render() not in said
    assert name not in said


def with_a_link(row: Any) -> None:
    row["format"] = "ibpfs-share/2"
    row["entries"].append({"path": ["below", "up"], "type": "link", "target": "../a.txt", "size": 0, "mtime": 7,
                           "mtime_ns": 0, "mode": 0o777})  # fmt: skip


def test_a_directory(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    files = {"a.txt": b"first", "below/b.bin": CONTENT[:700_000], "below/empty": b"", "below/é.txt": b"accent"}
    share = make_share(depot.address, files, changing=with_a_link)
    browser.go(address(gateway, share))
    browser.click("#found:not([hidden]) #download")
    with zipfile.ZipFile(browser.downloaded("tree.zip")) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("tree/below/up").external_attr >> 16 == 0o120777
        assert {entry: archive.read(entry) for entry in archive.namelist() if not entry.endswith("/")} == {
            f"tree/{name}": data for name, data in {**files, "below/up": b"../a.txt"}.items()
        }
    browser.wait_for("document.querySelector('#state').textContent.startsWith('Done.')")
    browser.click("#files li:nth-child(2) button")
    assert browser.downloaded("b.bin").read_bytes() == files["below/b.bin"]


def test_small_files_come_together(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """And large ones in pieces, holes from nowhere: each ends up with its own bytes."""
    source = random.Random(8)
    files = {f"many/{number:03}": source.randbytes(number * 7) for number in range(400)}
    files |= {"many/200-": CONTENT, "many/zeros": bytes(2_500_000), "many/last": b"the last one"}
    files = dict(sorted(files.items()))
    share = make_share(depot.address, files, name="sorted")
    browser.go(address(gateway, share))
    browser.wait_for("!document.querySelector('#found').hidden")
    before = gateway.log.read_text().count("POST load")
    browser.click("#download")
    with zipfile.ZipFile(browser.downloaded("sorted.zip")) as archive:
        assert {name: archive.read(f"sorted/{name}") for name in files} == files
    assert gateway.log.read_text().count("POST load") - before <= 8


def test_a_passphrase(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    share = make_share(depot.address, {"secret.txt": b"behind a passphrase"}, passphrase="grün und blau")
    browser.go(address(gateway, share))
    browser.wait_for("!document.querySelector('#ask').hidden")
    browser.type("#passphrase", "blau und grün")
    browser.click("#ask button")
    assert state(browser) == "That is not the passphrase."
    browser.run("document.querySelector('#passphrase').value = ''")
    browser.type("#passphrase", "grün und blau")
    browser.click("#ask button")
    browser.click("#found:not([hidden]) #download")
    assert browser.downloaded("secret.txt").read_bytes() == b"behind a passphrase"


def test_links_that_do_not_open(
    browser: Browser, gateway: GatewayProcess, depot: DepotProcess, tmp_path: Path
) -> None:
    share = make_share(depot.address, {"x": b"content"})
    whole = address(gateway, share)
    other = make_share(depot.address, {"x": b"content"})
    wrong = whole.partition("#")[0] + "#" + other.link.fragment.render(share.link.locator)
    for link, said in [
        (whole.partition("#")[0], "cut off"),
        (whole[:-3], "damaged"),
        (wrong, "key in this link"),
        (whole.replace("/s/", "/s/A"), "damaged"),
    ]:
        browser.go(link)
        found = browser.wait_for("document.querySelector('#state.bad, #trouble')?.textContent")
        assert said in found or "missing or was changed" in found
    revoke(share)
    browser.go(whole)
    assert state(browser) == "The sender has revoked this link."
    delete(share)
    browser.go(whole)
    assert "not there any more" in state(browser)
    past = make_share(depot.address, {"x": b"content"}, hold=-120)
    delete(past)
    browser.go(address(gateway, past))
    assert "expired" in state(browser)


def test_each_trouble_has_its_own_words(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    kept, gone = make_share(depot.address, {"x": b"content"}), make_share(depot.address, {"x": b"content"})
    past = make_share(depot.address, {"x": b"content"}, hold=-120)
    revoked = make_share(depot.address, {"x": b"content"})
    revoke(revoked)
    delete(gone)
    for link, heading in [
        (address(gateway, kept)[:-4], "This link is damaged"),
        (address(gateway, kept).partition("#")[0], "This link was cut off"),
        (address(gateway, past), "This link has expired"),
        (address(gateway, revoked), "This link was revoked"),
        (address(gateway, gone), "It is not there any more"),
    ]:
        browser.go(link)
        state(browser)
        assert browser.text("#name") == heading == browser.run("return document.title")
    for rest in (".", ">", ")%3E", "&amp;utm=1"):
        browser.go(address(gateway, kept) + rest)
        browser.wait_for("!document.querySelector('#found').hidden")


def test_a_link_that_ends_while_it_is_open(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """Its bytes are gone at once, and the page finds out why."""
    ended, lost = make_share(depot.address, {"x": b"content"}), make_share(depot.address, {"x": b"content"})
    for share, said in ((ended, "The sender has revoked this link."), (lost, "on no depot any more")):
        browser.go(address(gateway, share))
        browser.wait_for("!document.querySelector('#found').hidden")
        if share is ended:
            revoke(share)
        delete(dataclasses.replace(share, manage=share.manage[:1]))
        browser.click("#download")
        assert said in state(browser)


def test_a_whole_that_is_not_what_was_shared(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """Each frame is right, and the record's hash is that of another file: nothing is left for a person to open."""
    before = browser.finished()
    for files in ({"changed.bin": CONTENT}, {"changed/a": CONTENT[:1000], "changed/b": b"b"}):
        share = make_share(depot.address, files, changed=True)
        browser.go(address(gateway, share))
        browser.click("#found:not([hidden]) #download")
        assert "not what was shared" in state(browser)
    assert browser.finished() == before


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """Puts `value` there."""

    def change(row: Any) -> None:
        for step in path[:-1]:
            row = row[step]
        row[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "changing",
    [
        at("entries", 1, "path", value=["..", "x"]),
        at("entries", 1, "path", value=["..", "..", "etc", "x"]),
        at("entries", 1, "path", value=["a/../../x"]),
        at("entries", 1, "path", value=["a\x1b[2J"]),
        at("entries", 1, "path", value=[]),
        at("entries", 1, "size", value=-1),
        at("entries", 1, "size", value=1 << 53),
        at("entries", 1, "parts", value=[[0, 7, 5, 0]]),
        at("entries", 1, "parts", value=[[0, 7, 0, 1 << 40]]),
        at("entries", 1, "type", value="device"),
        at("entries", value=[]),
        at("slices", 0, 3, value=0),
        at("slices", 0, 2, value=1 << 50),
        at("runs", 0, 1, value=[[7, "k/1", 0]]),
        at("name", value="../x"),
        at("size", value=1),
        at("depots", value=None),
    ],
)
def test_a_record_that_means_harm(
    browser: Browser, gateway: GatewayProcess, depot: DepotProcess, changing: Callable[[Any], None]
) -> None:
    share = make_share(depot.address, {"a": b"content", "b": b"more"}, changing=changing)
    browser.go(address(gateway, share))
    assert "makes no sense" in state(browser)
    assert browser.run("return document.querySelector('#found').hidden")


def test_names_that_are_not_what_they_seem(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    for name, harmless in [("photo\u202egnp.exe", "photognp.exe"), ("no\udcff utf.bin", "no\ufffd utf.bin")]:
        share = make_share(depot.address, {name: b"content"})
        browser.go(address(gateway, share))
        browser.wait_for("!document.querySelector('#found').hidden")
        assert browser.text("#name") == harmless
        browser.click("#download")
        browser.wait_for("document.querySelector('#state').textContent.startsWith('Done')")
    share = make_share(depot.address, {"..\\..\\evil": b"content", "b": b"b"}, name="slashes")
    browser.go(address(gateway, share))
    browser.click("#found:not([hidden]) #download")
    with zipfile.ZipFile(browser.downloaded("slashes.zip")) as archive:
        assert ".._.._evil" in [entry.orig_filename.removeprefix("slashes/") for entry in archive.infolist()]


def test_what_browsers_cannot_open(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """It is said at once, and the command is there."""
    argon2 = make_share(depot.address, {"x": b"content"}, passphrase="p", for_browsers=False)
    share = make_share(depot.address, {"x": b"content"})
    wrapped = Link(share.link.locator, Fragment(wrapped=bytes(200)))
    for link, said in ((argon2.link, "passphrase is of a kind"), (wrapped, "for certain recipients")):
        browser.go(link.render(gateway.url))
        assert said in state(browser)
        assert browser.text("#name") == "A browser cannot open this link"
        assert browser.run("return document.querySelector('#command').open")
        assert link.render() in browser.run("return document.querySelector('#line').value")


def test_without_a_service_worker(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """As in private windows: small files are collected in memory, large ones are for `ibpfs get`."""
    hidden = "Object.defineProperty(Navigator.prototype, 'serviceWorker', { get: () => undefined });"
    added = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=hidden)
    try:
        browser.go(address(gateway, make_share(depot.address, {"collected.bin": CONTENT})))
        browser.click("#found:not([hidden]) #download")
        assert browser.downloaded("collected.bin").read_bytes() == CONTENT
        huge = make_share(depot.address, {"huge.bin": b"x"}, changing=grow)
        browser.go(address(gateway, huge))
        browser.click("#found:not([hidden]) #download")
        assert "cannot save so large a file" in state(browser)
        assert browser.run("return document.querySelector('#command').open")
    finally:
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


def grow(row: Any) -> None:
    """To 2 GiB, nearly all of it a hole."""
    row["size"] = row["entries"][0]["size"] = 2 << 30


def test_no_room_to_keep_what_came(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """Then nothing is kept for another visit, and the download ends well."""
    content = random.Random(6).randbytes(17_000_000)
    origin = gateway.url.rstrip("/")
    browser.go(address(gateway, make_share(depot.address, {"large.bin": content})))
    browser.devtools("Storage.overrideQuotaForOrigin", origin=origin, quotaSize=5_000_000)
    try:
        browser.click("#found:not([hidden]) #download")
        assert browser.downloaded("large.bin").read_bytes() == content
        browser.wait_for("document.querySelector('#state').textContent.startsWith('Done.')")
        browser.run("caches.keys().then((names) => { window.kept = [names.length]; });")
        assert browser.wait_for("window.kept") == [0]
    finally:
        browser.devtools("Storage.overrideQuotaForOrigin", origin=origin)


def test_plain_http_from_another_host(
    browser: Browser, gateway: GatewayProcess, depot: DepotProcess, tmp_path: Path
) -> None:
    share = make_share(depot.address, {"x": b"content"})
    browser.go(share.link.render(gateway.url.replace("127.0.0.1", "gate.example")))
    assert "neither https nor this computer" in state(browser)
    assert browser.run("return document.querySelector('#command').open")
    command = browser.run("return document.querySelector('#line').value")
    home = {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "XDG_DATA_HOME": str(tmp_path)}
    words = ["sh", "-c", command]
    subprocess.run(words, env={**os.environ, **home}, cwd=browser.downloads, check=True, capture_output=True)
    assert (browser.downloads / "x").read_bytes() == b"content"


def test_on_a_phone_and_without_a_mouse(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    name = "a-name-as-long-as-some-people-make-them-" * 4 + ".bin"
    share = make_share(depot.address, {f"d/{name}": b"content", "d/other": b"other"}, note="n" * 300, name="phone")
    browser.devtools("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
    try:
        browser.go(address(gateway, share))
        browser.wait_for("!document.querySelector('#found').hidden")
        browser.run("document.activeElement.blur()")
        browser.press("\ue004")  # Tab
        assert browser.run("return document.activeElement.id") == "download"
        browser.click("#command summary")
        browser.run("document.querySelector('#download').focus()")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert browser.run("return document.querySelector('#download').getBoundingClientRect().height") >= 40
        assert [browser.label(one) for one in ("#line", "#files button")] == ["Command", f"Download d/{name}"]
        assert browser.run("return document.querySelector('#state').getAttribute('role')") == "status"
        browser.press("\ue007")  # Enter
        with zipfile.ZipFile(browser.downloaded("phone.zip")) as archive:
            assert archive.read(f"phone/d/{name}") == b"content"
        assert browser.label("#progress") == "Progress"
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_https_from_another_host(
    browser: Browser, depot: DepotProcess, certificate: Path, tmp_path: Path
) -> None:
    """As most people run it; HTTP/2, and a path before it."""
    words = ("--allow", "127.0.0.0/8", "--certificate", str(certificate), "--public-url", "https://gate.example/files/")
    secure = GatewayProcess(tmp_path, *words)
    try:
        assert secure.url.startswith("https://")
        share = make_share(depot.address, {"secure.bin": CONTENT})
        browser.go(share.link.render(secure.url.replace("127.0.0.1", "gate.example") + "files/"))
        browser.click("#found:not([hidden]) #download")
        assert browser.downloaded("secure.bin").read_bytes() == CONTENT
        protocols = "performance.getEntriesByType('resource').map((one) => one.nextHopProtocol)"
        assert browser.run(f"return [...new Set({protocols})]") == ["h2"]
    finally:
        assert secure.stop() == 0


def test_nothing_on_the_wire_tells(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    """Between browser and gateway, and between gateway and depot: no key, no name, no byte in clear."""
    name, note = "quarterly figures.csv", "for your eyes"
    content = b"a line of figures, 12345678\n" * 20_000
    place, web = Address.parse(depot.address), urlsplit(gateway.url)
    assert web.port is not None
    with Tap(place.host, place.port) as behind, Tap("127.0.0.1", web.port) as front:
        share = make_share(f"ibp://127.0.0.1:{behind.port}", {name: content}, note=note)
        browser.go(share.link.render(f"http://127.0.0.1:{front.port}/"))
        browser.click("#found:not([hidden]) #download")
        assert browser.downloaded(name).read_bytes() == content
        browser.run("fetch('save/00000000-0000-4000-8000-000000000000').then((r) => { window.answered = r.status; })")
        assert browser.wait_for("window.answered") == 404
        wires = front.heard + behind.heard
    assert share.link.locator.render().encode() in front.heard
    assert share.link.locator.places[0].read.key.encode() in behind.heard
    assert len(front.heard) > len(content)
    fragment = share.link.fragment
    assert fragment.secret is not None
    told = (fragment.render(share.link.locator).encode(), fragment.secret, fragment.secret.hex().encode(),
            name.encode(), quote(name).encode(), b"figures", note.encode(), b"save/0000")  # fmt: skip
    assert [one for one in told if one in wires] == []


def test_a_gateway_that_is_away_for_a_while(browser: Browser, depot: DepotProcess, tmp_path: Path) -> None:
    """The page goes on where it was, by itself."""
    gateway = GatewayProcess(tmp_path, "--allow", "127.0.0.0/8")
    share = make_share(depot.address, {"longer.bin": CONTENT})
    browser.go(address(gateway, share))
    browser.wait_for("!document.querySelector('#found').hidden")
    assert gateway.stop() == 0
    browser.click("#download")
    browser.wait_for("document.querySelector('#progress-text').textContent.startsWith('waiting')")
    again = GatewayProcess(tmp_path, "--allow", "127.0.0.0/8", "--listen", urlsplit(gateway.url).netloc)
    try:
        assert browser.downloaded("longer.bin").read_bytes() == CONTENT
    finally:
        assert again.stop() == 0


def test_a_depot_that_is_away_for_a_while(browser: Browser, gateway: GatewayProcess, tmp_path: Path) -> None:
    depot = DepotProcess(tmp_path / "store", "--listen", "127.0.0.1:0", "--capacity", "1G")
    share = make_share(depot.address, {"long.bin": CONTENT})
    browser.go(address(gateway, share))
    browser.wait_for("!document.querySelector('#found').hidden")
    depot.stop()
    browser.click("#download")
    browser.wait_for("document.querySelector('#progress-text').textContent.startsWith('waiting')")
    depot = DepotProcess(tmp_path / "store", "--listen", depot.address.removeprefix("ibp://"), "--capacity", "1G")
    assert browser.downloaded("long.bin").read_bytes() == CONTENT
    assert depot.stop() == 0
