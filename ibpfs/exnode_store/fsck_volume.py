"""Checks of the volume around its tables of files: volume.toml and its copy, facts, directories, depots, policies."""

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ibpfs.config import VolumeConfig, parse_config, write_private
from ibpfs.depot.address import Address, BadAddress
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.creation import EMBEDDED_ADDRESS, choose_function
from ibpfs.exnode_store.fsck_faults import SEQ, Checkup, Fault, has_entries, show
from ibpfs.exnode_store.sealing import FRAME_SIZE, FUNCTION_CODES, RAW

_COPY = "the exNode store's copy of volume.toml"


def directories(checkup: Checkup) -> Iterator[Fault]:
    for directory in checkup.paths.directories:
        if not directory.is_dir():
            yield Fault(f"{directory.name}/: missing", "made", partial(directory.mkdir, mode=0o700))


def volume_toml(checkup: Checkup) -> Iterator[Fault]:
    """volume.toml and its copy in the store stand in for each other; of two that differ the file is the newer."""
    db, path = checkup.db, checkup.paths.properties
    copy_text = db.facts.get("volume_toml", "")
    copy, copy_trouble = _parse(copy_text, path)
    text, trouble = _read(path)
    there = None
    if not trouble:
        there, trouble = _parse(text, path)

    def restore() -> None:
        if path.exists():
            os.replace(path, path.with_name("volume.toml.damaged"))  # noqa: PTH105 (replaces an older one)
        write_private(path, copy_text.encode())

    if there is None and copy is None:
        yield Fault(f"volume.toml: {trouble}, and so is {_COPY}; without key slots no byte can be opened")
    elif there is None:
        yield Fault(f"volume.toml: {trouble}", "restored from the exNode store", restore)
    elif copy is None:
        yield Fault(f"{_COPY}: {copy_trouble}", "written anew", lambda: db.set_fact("volume_toml", text))
    elif there.uuid != copy.uuid and copy.uuid.hex() == db.facts.get("uuid"):
        yield Fault("volume.toml: is another volume's", "restored from the exNode store", restore, safe=False)
    elif text != copy_text:
        yield Fault(f"{_COPY}: differs from the file", "written anew", lambda: db.set_fact("volume_toml", text))


def _read(path: Path) -> tuple[str, str]:
    try:
        return path.read_text(encoding="utf-8"), ""
    except FileNotFoundError:
        return "", "missing"
    except UnicodeDecodeError:
        return "", "damaged"


def _parse(text: str, path: Path) -> tuple[VolumeConfig | None, str]:
    if not text:
        return None, "missing"
    try:
        return parse_config(text, path), ""
    except VolumeError:
        return None, "damaged"


def facts(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    config, _ = _parse(db.facts.get("volume_toml", ""), checkup.paths.properties)
    plain = config is not None and config.plain
    defaults: dict[str, tuple[str, Callable[[str], bool]]] = {
        "function": (choose_function(plain), lambda text: FUNCTION_CODES.get(text, RAW) != RAW),
        "frame_size": (str(FRAME_SIZE), lambda text: text.isdecimal() and 0 < int(text) <= 1 << 24),
        "policy_epoch": ("1", str.isdecimal),
        "features": ("", lambda text: True),
        "root_owner": ("0:0", lambda text: re.fullmatch(r"\d+:\d+", text) is not None),
    }
    if config is not None:
        defaults["uuid"] = config.uuid.hex(), lambda text: text == config.uuid.hex()
    for key, (value, is_sound) in defaults.items():
        found = db.facts.get(key)
        if found is None or not is_sound(found):
            trouble = "missing" if found is None else f"{found!r} cannot be"
            yield Fault(f"fact {key}: {trouble}", f"set to {value!r}", partial(db.set_fact, key, value))
    if not is_digest_seed(db.facts.get("digest_seed", "")):
        yield Fault("fact digest_seed: missing or damaged; the digests of stored bytes mean nothing without it")


def is_digest_seed(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{1,16}", text) is not None


def depots(checkup: Checkup) -> Iterator[Fault]:
    """A depot's row that is missing can only be made again when it is the volume's own."""
    db = checkup.db
    missing = db.rows(
        "SELECT DISTINCT depot FROM (SELECT depot FROM replicas UNION SELECT depot FROM pending UNION"
        " SELECT depot FROM orphans) WHERE depot NOT IN (SELECT id FROM depots)"
    )
    has_own = db.value("SELECT 1 FROM depots WHERE embedded = 1") is not None
    own = not has_own and len(missing) == 1 and has_entries(checkup.paths.depot)
    for (depot,) in missing if own else []:
        repair = _embedded_row(checkup, depot)
        yield Fault(f"depot {depot}: its row is missing", "made anew: it is the embedded one", repair)
    if not missing and db.value("SELECT 1 FROM depots") is None:
        yield Fault("depots: there is none", "embedded one added", _embedded_row(checkup, None))
    for depot, address, labels in db.rows("SELECT id, address, labels FROM depots WHERE embedded = 0"):
        try:
            Address.parse(address)
        except BadAddress:
            yield Fault(f"depot {depot}: {show(address)} is no address")
        if not _is_object(labels):
            repair = checkup.statement("UPDATE depots SET labels = '{}', seq = ? WHERE id = ?", SEQ, depot)
            yield Fault(f"depot {depot} ({show(address)}): its labels are damaged", "removed", repair)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _embedded_row(checkup: Checkup, depot: int | None) -> Callable[[], object]:
    return checkup.statement(
        "INSERT INTO depots (id, address, embedded, labels, role, seq) VALUES (?, ?, 1, '{}', 'active', ?)",
        depot, EMBEDDED_ADDRESS, SEQ,
    )  # fmt: skip


def policies(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    if db.value("SELECT 1 FROM policies WHERE id = 1") is None:
        copies = min(2, max(1, db.value("SELECT count(*) FROM depots WHERE role = 'active'")))
        sql = "INSERT INTO policies (id, copies, min_copies, labels, seq) VALUES (1, ?, 1, '[]', ?)"
        text = f"made anew with copies = {copies}"
        yield Fault("policy 1: missing, though it is the default", text, checkup.statement(sql, copies, SEQ))
    for table, key in (("inodes", "ino"), ("segments", "id")):
        for number, policy in db.rows(
            f"SELECT {key}, policy FROM {table} WHERE policy NOT IN (SELECT id FROM policies) AND policy != 1"
        ):
            name = checkup.inode(number) if table == "inodes" else f"segment {number}"
            repair = checkup.statement(f"UPDATE {table} SET policy = 1, seq = ? WHERE {key} = ?", SEQ, number)
            yield Fault(f"{name}: its policy {policy} does not exist", "put under policy 1", repair)
