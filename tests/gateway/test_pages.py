"""Links opened in a real browser."""

import hashlib
import random
import zipfile
from pathlib import Path

from tests.depot.conftest import DepotProcess

from .browser import Browser
from .conftest import GatewayProcess
from .sharing import MadeShare, delete, make_share, revoke

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
    browser.wait_for("document.querySelector('#state').textContent == 'Done.'")
    said = gateway.log.read_text()
    fragment = share.link.fragment.render(share.link.locator)
    key = share.link.locator.places[0].read.key
    assert fragment not in said
    assert key not in said
    assert share.link.locator.render() not in said
    assert name not in said


def test_a_directory(browser: Browser, gateway: GatewayProcess, depot: DepotProcess) -> None:
    files = {"a.txt": b"first", "below/b.bin": CONTENT[:700_000], "below/empty": b"", "below/é.txt": b"accent"}
    share = make_share(depot.address, files)
    browser.go(address(gateway, share))
    browser.click("#found:not([hidden]) #download")
    with zipfile.ZipFile(browser.downloaded("tree.zip")) as archive:
        assert archive.testzip() is None
        assert {entry: archive.read(entry) for entry in archive.namelist() if not entry.endswith("/")} == {
            f"tree/{name}": data for name, data in files.items()
        }
    browser.wait_for("document.querySelector('#state').textContent == 'Done.'")
    browser.click("#files li:nth-child(2) button")
    assert browser.downloaded("b.bin").read_bytes() == files["below/b.bin"]


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
