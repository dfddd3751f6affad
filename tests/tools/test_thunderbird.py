"""The Thunderbird add-on: its parts are what Thunderbird reads, and it understands ibpfs-thunderbird-host."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ibpfs.mail.native_messages import LONGEST, frame
from ibpfs_tools.thunderbird import ADD_ON, FILES, NAME, SOURCES

BIN = Path(sys.executable).parent
HOST = BIN / "ibpfs-thunderbird-host"
_TEXT = {"type": "string", "minLength": 1}
#: As Thunderbird documents it, for what is used here.
MANIFEST = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "manifest_version", "name", "version", "browser_specific_settings", "background", "cloud_file", "permissions",
    ],
    "properties": {
        "manifest_version": {"const": 2},
        "name": {"type": "string", "minLength": 1, "maxLength": 45},
        "description": {"type": "string", "maxLength": 132},
        "version": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9}){0,3}$"},
        "author": _TEXT,
        "browser_specific_settings": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "gecko": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["id", "strict_min_version"],
                    "properties": {"id": {"const": ADD_ON}, "strict_min_version": {"pattern": r"^[0-9]+\.[0-9*]+$"}},
                }
            },
        },
        "icons": {"type": "object", "patternProperties": {"^[0-9]+$": _TEXT}, "additionalProperties": False},
        "background": {
            "type": "object",
            "required": ["scripts"],
            "additionalProperties": False,
            "properties": {"scripts": {"type": "array", "items": _TEXT, "minItems": 1}},
        },
        "cloud_file": {
            "type": "object",
            "required": ["name", "management_url"],
            "additionalProperties": False,
            "properties": {"name": _TEXT, "management_url": _TEXT, "reuse_uploads": {"const": False}},
        },
        "permissions": {"type": "array", "items": {"enum": ["nativeMessaging", "storage"]}, "uniqueItems": True},
    },
}
#: Of the program: MDN, "Native manifests".
NATIVE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "description", "path", "type", "allowed_extensions"],
    "properties": {
        "name": {"const": NAME, "pattern": r"^\w+(\.\w+)*$"},
        "description": _TEXT,
        "path": {"type": "string", "pattern": "^/"},
        "type": {"const": "stdio"},
        "allowed_extensions": {"type": "array", "items": {"type": "string", "pattern": "^[a-z-]+@[a-z.]+$"}},
    },
}


def run(*words: object, code: int = 0, **more: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(list(map(str, words)), capture_output=True, timeout=60, check=False, **more)
    assert done.returncode == code, done.stderr
    return done


def environment(directory: Path, **settings: str) -> dict[str, str]:
    text = "".join(f'{name} = "{value}"\n' for name, value in settings.items())
    (directory / "mail.toml").write_text(text)
    return {**os.environ, "IBPFS_MAIL_CONFIG": str(directory / "mail.toml")}


def test_the_manifest_and_what_it_names() -> None:
    manifest = json.loads((SOURCES / "manifest.json").read_text())
    jsonschema.validate(manifest, MANIFEST)
    named = {*manifest["icons"].values(), *manifest["background"]["scripts"], manifest["cloud_file"]["management_url"]}
    assert named <= set(FILES)
    assert {path.name for path in SOURCES.iterdir()} == set(FILES)
    page = (SOURCES / "management.html").read_text()
    assert "http" not in page.replace('src="management.js"', "")  # nothing from elsewhere
    assert "<script>" not in page


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_scripts_are_scripts(name: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("no node")
    run("node", "--check", SOURCES / name)


def test_the_add_on_is_the_same_file_each_time(tmp_path: Path) -> None:
    for name in ("one.xpi", "two.xpi"):
        run(BIN / "ibpfs", "thunderbird", "xpi", "-o", tmp_path / name)
    assert (tmp_path / "one.xpi").read_bytes() == (tmp_path / "two.xpi").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.xpi") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(FILES)
        assert archive.read("background.js") == (SOURCES / "background.js").read_bytes()


def test_thunderbird_is_told_where_the_program_is(tmp_path: Path) -> None:
    run(BIN / "ibpfs", "thunderbird", "install", env={**os.environ, "HOME": str(tmp_path)})
    found = json.loads((tmp_path / ".mozilla" / "native-messaging-hosts" / f"{NAME}.json").read_text())
    jsonschema.validate(found, NATIVE)
    assert os.access(found["path"], os.X_OK)


def answers(data: bytes) -> list[dict[str, Any]]:
    found = []
    while data:
        (length,) = struct.unpack_from("=I", data)
        found.append(json.loads(data[4 : 4 + length]))
        data = data[4 + length :]
    return found


@pytest.mark.parametrize(
    ("wire", "code", "said"),
    [
        (b"", 0, []),
        (frame({"op": "hello"}), 0, ["error"]),  # no volume
        (frame({"op": "begin", "upload": 1, "name": "x", "size": 1}), 0, ["ready"]),
        (frame({}) + b"\xff\xff\xff\xff" + b"x" * 100, 65, ["error", "error"]),
        (struct.pack("=I", LONGEST + 1), 65, ["error"]),
        (struct.pack("=I", 100) + b"{", 65, []),
        (b"\1\0", 65, []),
    ],
)
def test_the_program_with_good_and_hostile_words(wire: bytes, code: int, said: list[str], tmp_path: Path) -> None:
    done = run(HOST, "/manifest.json", ADD_ON, input=wire, code=code, env=environment(tmp_path, volume="/none"))
    assert [one["op"] for one in answers(done.stdout)] == said
    assert not done.stderr


def test_wrong_settings_are_told_to_the_add_on(tmp_path: Path) -> None:
    done = run(HOST, input=b"", code=os.EX_CONFIG, env=environment(tmp_path, volme="x"))
    assert "knows no 'volme'" in answers(done.stdout)[0]["error"]


def test_the_add_on_without_a_volume(tmp_path: Path) -> None:
    """It says so, to the management page and for every file, and asks again each time."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    (tmp_path / "file").write_bytes(b"x" * 2_000_000)
    driver = Path(__file__).with_name("thunderbird.mjs")
    done = run("node", driver, SOURCES, HOST, tmp_path / "file", env=environment(tmp_path, volume="/none"))
    status, uploaded, end = map(json.loads, done.stdout.splitlines())
    assert status["ok"] is False
    assert "/none" in status["error"]
    assert list(uploaded) == ["error"]
    assert "/none" in uploaded["error"]
    assert end == {"configured": False, "stored": 0}
