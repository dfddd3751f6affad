#!/usr/bin/env python3
"""ibpfs_restore.py: the files of an ibpfs volume from its recovery string alone, for the day ibpfs itself is gone.

    python3 ibpfs_restore.py DIRECTORY < recovery-string        # or --from FILE

Needs Python 3.11 and the package `cryptography`. Reads from depots and writes below DIRECTORY; changes nothing anywhere
else. The formats are those of docs/design.md. What cannot be had is named on standard error, and the exit code is 1. A
volume made with --plain is restored, too, but its bytes are not checked (that takes a hash that is not in the standard
library); all else is verified when it is opened. Where a volume had a depot of its own, run that on its store and
say where it listens: `--embedded HOST:PORT`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import sqlite3
import ssl
import stat
import struct
import sys
import tempfile
import time
import zlib
from typing import IO, TYPE_CHECKING, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES, COMMIT, PLACE, SUCCESSOR = 1, 2, 3, 4
AES, CHACHA, PLAIN, RAW = 1, 2, 3, 4
MOST_RECORD = 4 * 1024 * 1024
MOST_ROOT = 8 * 1024 * 1024
SECONDS = 30

Place = tuple[str, bool, str, str]  # address, whether it is the volume's own depot, read key, certificate's SHA-256
Word = tuple[int, int, bytes, list[Place]]  # number, kind, log, where its copies are
Log = tuple[bytes, list[Place]]  # its id, where its copies are
Record = tuple[int, int, bytes, bytes]  # kind, number, body, sealed bytes


class Trouble(Exception):
    """Something that a person should read, in one line."""


def warn(text: object) -> None:
    print(f"ibpfs_restore: {text}", file=sys.stderr)


def derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, b"ibpfs/1 " + purpose).derive(key)


def unwrap(key: bytes, wrapped: str, context: bytes) -> bytes:
    raw = bytes.fromhex(wrapped)
    try:
        return AESGCM(key).decrypt(raw[:12], raw[12:], context)
    except InvalidTag:
        raise Trouble("the recovery string does not open this volume, or its keys are damaged") from None


# --- depots


class Depot:
    """One connection to HOST:PORT; all that is asked is LOAD."""

    def __init__(self, address: str, secure: bool, pin: str) -> None:
        host, _, port = address.rpartition(":")
        self.name = address
        self.stream: socket.socket = socket.create_connection((host.strip("[]"), int(port)), SECONDS)
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its fingerprint is known, or not
            secured = context.wrap_socket(self.stream)
            self.stream = secured
            if pin and hashlib.sha256(secured.getpeercert(True) or b"").hexdigest() != pin:
                raise Trouble(f"{address}: shows another certificate than the volume knows")
        self.file = self.stream.makefile("rb")

    def load(self, key: str, offset: int, length: int) -> bytes | None:
        """Exactly `length` bytes, or None where the allocation ends before."""
        if not length:
            return b""
        name, _, kind = key.rpartition("/")
        self.stream.sendall(f"0 8 {name} {kind} {offset} {length} {SECONDS}\n".encode())
        words = self.file.readline(4096).split()
        if len(words) < 2 or words[0] != b"1":
            if words and words[0] == b"-19":
                return None
            code = words[0].decode("ascii", "replace") if words else "none"
            raise Trouble(f"{self.name}: refuses to read (IBP error {code})")
        data = self.file.read(min(int(words[1]), length))
        return data if len(data) == length else None


class Depots:
    """Connections by address; a place is (address, embedded, key, pin)."""

    def __init__(self, embedded: str | None) -> None:
        self.embedded = embedded
        self.open: dict[str, Depot] = {}
        self.dead: dict[str, str] = {}
        self.trouble = ""  # of the last attempt

    def attempt(self, place: Place, offset: int, length: int) -> bytes | None:
        """As `load`, None also where the depot cannot or will not."""
        try:
            data = self.load(place, offset, length)
        except Trouble as error:
            self.trouble = str(error)
            return None
        self.trouble = f"{place[0]}: the allocation is too short" if data is None else ""
        return data

    def load(self, place: Place, offset: int, length: int) -> bytes | None:
        address, is_embedded, key, pin = place
        if is_embedded:
            if not self.embedded:
                raise Trouble("the volume's own depot is not at hand (see --embedded)")
            address = f"ibp://{self.embedded}"
        if address in self.dead:
            raise Trouble(self.dead[address])
        scheme, _, rest = address.partition("://")
        for again in (True, False):
            try:
                if address not in self.open:
                    self.open[address] = Depot(rest, scheme == "ibps" or bool(pin), pin)
                return self.open[address].load(key, offset, length)
            except (OSError, ValueError) as error:
                if self.open.pop(address, None) is None or not again:
                    self.dead[address] = f"{rest}: does not answer ({error})"
                    raise Trouble(self.dead[address]) from None
            except Trouble:
                self.open.pop(address, None)  # whoever refuses may hang up, too
                raise
        raise AssertionError("unreachable")


# --- the recovery string


def read_string(text: str) -> tuple[bytes, list[Place]]:
    """(secret, places), from a string or from enough shares of one, a line each."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and decode(lines[0])[:1] == b"\2":
        return parse_string(join([decode(line) for line in lines]))
    return parse_string(decode(text))


def decode(text: str) -> bytes:
    plain = re.sub(r"[\s-]", "", text).upper().replace("0", "O").replace("1", "I").replace("8", "B")
    try:
        return base64.b32decode(plain + "=" * (-len(plain) % 8))
    except ValueError:
        return b""


def join(shares: list[bytes]) -> bytes:
    """Shamir's: the value at 0, byte by byte, of the polynomial through the shares, over GF(2^8) with 0x11b."""
    points = {}
    for share in shares:
        if len(share) < 12 or hashlib.sha256(share[:-4]).digest()[:4] != share[-4:] or share[1:6] != shares[0][1:6]:
            raise Trouble("these are not shares of one recovery string: check what was typed")
        points[share[6]] = share[7:-4]
    needed = shares[0][5]
    if len(points) < needed:
        raise Trouble(f"{needed} shares are needed, and here are {len(points)}")
    chosen = list(points)[:needed]
    secret = bytearray(len(points[chosen[0]]))
    for point in chosen:
        weight = 1
        for other in chosen:
            if other != point:
                weight = times(weight, times(other, inverse(other ^ point)))
        for at, byte in enumerate(points[point]):
            secret[at] ^= times(weight, byte)
    return bytes(secret)


def times(a: int, b: int, polynomial: int = 0x11B) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (polynomial if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a: int, polynomial: int = 0x11B) -> int:
    result = 1
    for _ in range(254):
        result = times(result, a, polynomial)
    return result


def point(shard: int) -> int:
    """Where the polynomial has the value that a shard holds: 0, 1, 2, 4, 8, ... in GF(2^8) with 0x11d."""
    result = 1 if shard else 0
    for _ in range(shard - 1):
        result = times(result, 2, 0x11D)
    return result


def interpolate(shards: dict[int, bytes], wanted: int) -> bytes:
    """A shard of an erasure code, byte by byte: the value at its point of the polynomial through the others."""
    total = 0
    for number, data in shards.items():
        weight = 1
        for other in shards:
            if other != number:
                share = times(point(wanted) ^ point(other), inverse(point(number) ^ point(other), 0x11D), 0x11D)
                weight = times(weight, share, 0x11D)
        total ^= int.from_bytes(data.translate(bytes(times(weight, byte, 0x11D) for byte in range(256))), "big")
    return total.to_bytes(len(next(iter(shards.values()))), "big")


def parse_string(data: bytes) -> tuple[bytes, list[Place]]:
    body = data[:-4]
    if len(body) < 26 or hashlib.sha256(body).digest()[:4] != data[-4:] or body[0] != 1:
        raise Trouble("this is not a recovery string that leads to checkpoints: check what was typed")
    places: list[Place] = []
    at = 26
    for _ in range(body[25]):
        flags, at = body[at], at + 1
        words = []
        for _ in range(3):
            words.append(body[at + 1 : at + 1 + body[at]].decode())
            at += 1 + body[at]
        scheme = "ibps" if flags & 2 else "ibp"
        places.append((f"{scheme}://{words[0]}", bool(flags & 1), f"{words[1]}/{words[2]}", ""))
    return body[1:25], places


# --- record logs


def read_head(depots: Depots, place: Place) -> tuple[bytes, bytes, int]:
    """(log id, text, offset of the first record)."""
    raw = depots.load(place, 0, 28)
    if raw is None or raw[:8] != b"IBPRLOG1":
        raise Trouble("there is no record log")
    length = struct.unpack(">I", raw[24:28])[0]
    if length > MOST_RECORD:
        raise Trouble("a record log's head has an unreasonable length")
    text = depots.load(place, 28, length)
    if text is None:
        raise Trouble("a record log's head is cut off")
    return raw[8:24], text, 28 + length


def parse_header(raw: bytes) -> tuple[int, int, int] | None:
    """(kind, number, length) or None."""
    if len(raw) < 32 or raw[:4] != b"rec1":
        return None
    kind, number, length = struct.unpack(">4xB3xQI12x", raw)
    return (kind, number, length) if 16 <= length <= MOST_RECORD else None


def open_record(key: bytes, log: bytes, raw: bytes, sealed: bytes) -> bytes | None:
    try:
        return AESGCM(derive(key, b"log " + log)).decrypt(raw[20:32], sealed, log + raw[:20])
    except (InvalidTag, ValueError):
        return None


def size_of(depots: Depots, place: Place) -> int:
    low, high = 0, MOST_ROOT
    while low < high:
        middle = (low + high) // 2
        if depots.load(place, middle, 1) is None:
            high = middle
        else:
            low = middle + 1
    return low


def checkpoint_key(secret: bytes, text: bytes) -> tuple[bytes, bytes]:
    told = json.loads(text)
    uuid = bytes.fromhex(told["uuid"])
    for slot in told["slots"]:
        key = derive(secret, b"slot " + bytes.fromhex(slot["salt"]))
        try:
            master = unwrap(key, slot["wrapped"], uuid + b"slot recovery")
        except Trouble:
            continue
        return unwrap(master, told["key"], uuid + b"checkpoints"), master
    raise Trouble("the recovery string does not open this volume")


def read_root(depots: Depots, secret: bytes, place: Place) -> tuple[list[Word], bytes, bytes]:
    """(all that a copy of the root says, as (number, kind, log, places); checkpoint key; master key)."""
    log, text, start = read_head(depots, place)
    key, master = checkpoint_key(secret, text)
    data = depots.load(place, start, size_of(depots, place) - start) or b""
    said: list[Word] = []
    at = 0
    while (at := data.find(b"rec1", at)) >= 0:
        raw = data[at : at + 32]
        header = parse_header(raw)
        body = open_record(key, log, raw, data[at + 32 : at + 32 + header[2]]) if header else None
        if header is None or body is None:
            at += 1
            continue
        at += 32 + header[2]
        if header[0] in (PLACE, SUCCESSOR):
            told = json.loads(body)
            said.append((header[1], header[0], bytes.fromhex(told["log"]), [tuple(one) for one in told["places"]]))
    if not said:
        raise Trouble("the root of the checkpoints says nothing")
    return sorted(said, key=lambda one: one[0]), key, master


def find_logs(depots: Depots, secret: bytes, places: list[Place]) -> tuple[list[Log], bytes, bytes]:
    """The checkpoint logs that the root names, the newest first; and the keys."""
    logs: dict[bytes, tuple[int, list[Place]]] = {}
    key = master = b""
    waiting, seen = list(places), 0
    while waiting and seen < 300:
        place, seen = waiting.pop(0), seen + 1
        try:
            said, key, master = read_root(depots, secret, place)
        except Trouble as error:
            warn(f"{place[0]}: {error}")
            continue
        for number, kind, log, where in said:
            if kind == SUCCESSOR:
                waiting += where
            elif log not in logs or logs[log][0] < number:
                logs[log] = (number, where)
    if not logs:
        raise Trouble("no depot of the recovery string has the root of the checkpoints")
    newest = sorted(logs.items(), key=lambda item: -item[1][0])
    return [(log, where) for log, (_, where) in newest], key, master


def read_record(depots: Depots, key: bytes, log: bytes, places: list[Place], at: int) -> Record | None:
    """(kind, number, body, sealed bytes) from the first copy that has it; None at the end. Trouble when damaged."""
    damaged = False
    for place in places:
        try:
            raw = depots.load(place, at, 32)
            if raw is None:
                continue
            header = parse_header(raw)
            sealed = depots.load(place, at + 32, header[2]) if header else None
        except Trouble:
            continue
        body = open_record(key, log, raw, sealed) if sealed is not None else None
        if header is not None and sealed is not None and body is not None:
            return header[0], header[1], body, raw + sealed
        damaged = True
    if damaged:
        raise Trouble("a record is damaged")
    return None


def rebuild(depots: Depots, key: bytes, log: bytes, places: list[Place], file: IO[bytes]) -> dict[str, Any] | None:
    """Write the database file; return its last commit, or None."""
    start = None
    for place in places:
        try:
            found, _, offset = read_head(depots, place)
        except Trouble as error:
            warn(f"{place[0]}: {error}")
            continue
        start = offset if found == log else start
    if start is None:
        return None
    last: dict[str, Any] | None = None
    previous = number = None
    batches: list[bytes] = []
    content = hashlib.sha256()
    try:
        while (record := read_record(depots, key, log, places, start)) is not None:
            kind, this, body, raw = record
            if number is not None and this != number + 1:
                raise Trouble("a record is missing")
            number, start = this, start + len(raw)
            if kind == PAGES:
                batches.append(body)
                content.update(raw)
                continue
            commit = json.loads(body)
            follows = commit["full"] if previous is None else commit["previous"] == previous
            if kind != COMMIT or commit["content"] != content.hexdigest() or not follows:
                raise Trouble("a commit does not follow the one before it")
            put_pages(batches, commit, file)
            last, previous, batches, content = commit, hashlib.sha256(body).hexdigest(), [], hashlib.sha256()
    except Trouble as error:
        warn(f"what follows the last whole checkpoint is left out: {error}")
    if last is not None:
        file.truncate(last["pages"] * last["page_size"])
        file.flush()
    return last


def put_pages(batches: list[bytes], commit: dict[str, Any], file: IO[bytes]) -> None:
    size = commit["page_size"]
    for batch in batches:
        unpack = zlib.decompressobj()
        data = unpack.decompress(batch, 8 * 1024 * 1024)
        for at in range(0, len(data), 4 + size):
            number = int.from_bytes(data[at : at + 4], "big")
            file.seek((number - 1) * size)
            file.write(data[at + 4 : at + 4 + size])


# --- files


class Volume:
    """The database of names and places, and the keys."""

    def __init__(self, path: str, depots: Depots, master: bytes) -> None:
        self.db = sqlite3.connect(path)
        self.depots = depots
        facts = dict(self.db.execute("SELECT key, value FROM volume"))
        self.uuid = bytes.fromhex(facts["uuid"])
        epochs = re.findall(r'epoch = (\d+)\s+wrapped = "([0-9a-f]+)"', facts["volume_toml"])
        self.epochs = {
            int(one): unwrap(master, wrapped, self.uuid + b"epoch " + one.encode()) for one, wrapped in epochs
        }
        rows = self.db.execute("SELECT id, address, embedded, fingerprint FROM depots")
        self.addresses = {row[0]: row[1:] for row in rows}
        tables = {name for (name,) in self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self.has_imports = "imported" in tables
        self.has_shards = "coded" in tables
        self.plain: set[int] = set()

    def replicas(self, segment: int) -> Iterator[tuple[Place, int, int | None]]:
        """(place, where in the allocation the segment begins, number of the shard that it is or None)."""
        base = "coalesce((SELECT base FROM imported i WHERE i.replica = r.id), 0)" if self.has_imports else "0"
        rows = self.db.execute(
            f"SELECT depot, read_key, {base}, shard FROM replicas r WHERE segment = ? ORDER BY suspect, id", (segment,)
        )
        for depot, key, start, shard in rows:
            address, embedded, pin = self.addresses[depot]
            yield (address, bool(embedded), key, pin.hex() if pin and not embedded else ""), start, shard

    def stored(self, segment: int, start: int, stop: int) -> Iterator[tuple[str, bytes | None]]:
        """(who gave them, stored bytes [start, stop) of a segment), in all ways that they can be had; None: in none
        this way."""
        coded = None
        if self.has_shards:
            coded = self.db.execute("SELECT k, shard_length FROM coded WHERE segment = ?", (segment,)).fetchone()
        if coded is None:
            for place, base, _ in self.replicas(segment):
                yield place[0], self.depots.attempt(place, base + start, stop - start)
            return
        needed, size = coded
        shards = [(place, number) for place, _, number in self.replicas(segment) if number is not None]
        # With each shard left out once, for the day one of them is wrong.
        for left_out in (None, *sorted({number for _, number in shards})):
            found = [
                self.column(
                    [one for one in shards if one[1] != left_out], needed, number, max(start - number * size, 0),
                    min(stop - number * size, size),
                )
                for number in range(start // size, -(-stop // size))
            ]  # fmt: skip
            yield "its shards", None if None in found else b"".join(one for one in found if one is not None)

    def column(self, shards: list[tuple[Place, int]], needed: int, wanted: int, begin: int, end: int) -> bytes | None:
        """Bytes [begin, end) of a shard: as they are, or made from those of any others that are enough."""
        found: dict[int, bytes] = {}
        for place, number in sorted(shards, key=lambda one: one[1] != wanted):
            if number not in found:
                data = self.depots.attempt(place, begin, end - begin)
                if data is not None and number == wanted:
                    return data
                found |= {} if data is None else {number: data}
            if len(found) == needed:
                return interpolate(found, wanted)
        return None

    def slice_key(self, row: int, slice_id: bytes, epoch: int) -> bytes:
        if self.has_imports:
            found = self.db.execute("SELECT epoch, wrapped FROM imported_keys WHERE slice = ?", (row,)).fetchone()
            if found:
                cipher = AESGCM(derive(self.epochs[found[0]], b"imports"))
                return cipher.decrypt(found[1][:12], found[1][12:], slice_id)
        return derive(self.epochs[epoch], b"slice " + slice_id)

    def read_slice(self, row: int) -> bytes:
        """All file bytes of a slice, verified."""
        slice_id, epoch, origin, function, frame, length, stored, segment, offset = self.db.execute(
            "SELECT slice_id, epoch, origin, function, frame_size, length, stored_length, segment, segment_offset"
            " FROM slices WHERE id = ?", (row,)).fetchone()  # fmt: skip
        trouble = Trouble("no depot is known to have it")
        for giver, data in self.stored(segment, offset, offset + stored):
            try:
                if data is None:
                    raise Trouble(self.depots.trouble or "too few of its shards are to be had")
                return self.open_slice(data, row, slice_id, epoch, origin, function, frame, length)
            except Trouble as error:
                trouble = error
            except InvalidTag:
                trouble = Trouble(f"{giver}: bytes differ from what was sealed")
        raise trouble

    def open_slice(self, data: bytes, row: int, slice_id: bytes, epoch: int, origin: bytes, function: int, frame: int,
                   length: int) -> bytes:
        if function in (PLAIN, RAW):
            self.plain.add(function)
            start = 0 if function == RAW else 40
            return data[start : start + length]
        cipher = (AESGCM if function == AES else ChaCha20Poly1305)(self.slice_key(row, slice_id, epoch))
        frames, clear = -(-length // frame), []
        for number in range(frames):
            at = 40 + number * (frame + 16)
            about = struct.pack(">16s16sBBIIB", origin, slice_id, function, 1, frame, number, number == frames - 1)
            clear.append(cipher.decrypt(number.to_bytes(12, "big"), data[at : min(at + frame + 16, len(data))], about))
        return b"".join(clear)[:length]

    def restore_file(self, ino: int, size: int, path: bytes) -> str:
        """Write a file's bytes; return what went wrong, or ''."""
        trouble, known = "", (0, b"")
        voids = self.db.execute("SELECT covers, start FROM voids WHERE ino = ?", (ino,)).fetchall()
        with open(path, "wb") as file:
            for start, stop, row, offset, covers in self.db.execute(
                "SELECT start, stop, slice, slice_offset, covers FROM mappings WHERE ino = ? ORDER BY start", (ino,)
            ).fetchall():
                stop = min([stop, size, *(at for seq, at in voids if covers <= seq)])
                if stop <= start:
                    continue
                try:
                    if known[0] != row:
                        known = (row, self.read_slice(row))
                except Trouble as error:
                    trouble = f"bytes {start} to {stop} are missing: {error}"
                    continue
                file.seek(start)
                file.write(known[1][offset : offset + stop - start])
            file.truncate(size)
        return trouble


class Restorer:
    """Walks the tree."""

    def __init__(self, volume: Volume, target: str, lost: dict[int, int]) -> None:
        self.volume = volume
        self.target = os.fsencode(target)
        self.first: dict[int, bytes] = {}  # inode -> the first path of a file with several names
        self.lost = lost  # inode -> bytes that were on no depot
        self.failed = 0
        self.files = 0

    def run(self) -> None:
        os.makedirs(self.target, exist_ok=True)
        if os.listdir(self.target):
            raise Trouble(f"{os.fsdecode(self.target)}: is not empty")
        waiting, directories = [(1, self.target)], []
        while waiting:
            ino, path = waiting.pop()
            directories.append((ino, path))
            names = self.volume.db.execute("SELECT name, ino FROM dentries WHERE parent = ? ORDER BY id", (ino,))
            for name, child in names.fetchall():
                if name in (b".", b"..") or b"/" in name or b"\0" in name:
                    continue
                below = os.path.join(path, name)
                if self.restore(child, below):
                    waiting.append((child, below))
        for ino, path in reversed(directories):
            self.attributes(ino, path)

    def restore(self, ino: int, path: bytes) -> bool:
        """Make what is there; True for a directory."""
        mode, size, rdev, links = self.volume.db.execute(
            "SELECT mode, size, rdev, nlink FROM inodes WHERE ino = ?", (ino,)).fetchone()  # fmt: skip
        try:
            if ino in self.first:
                os.link(self.first[ino], path, follow_symlinks=False)
                return False
            if links > 1 and not stat.S_ISDIR(mode):
                self.first[ino] = path
            if stat.S_ISDIR(mode):
                os.mkdir(path, 0o700)
                return True
            self.files += 1
            if stat.S_ISLNK(mode):
                (target,) = self.volume.db.execute("SELECT target FROM symlinks WHERE ino = ?", (ino,)).fetchone()
                os.symlink(target, path)
            elif stat.S_ISREG(mode):
                self.say(path, self.volume.restore_file(ino, size, path))
                if ino in self.lost:
                    self.say(path, f"{self.lost[ino]} bytes of it were on no depot yet")
            else:
                os.mknod(path, mode, rdev)
            self.attributes(ino, path)
        except OSError as error:
            self.say(path, error.strerror)
        return False

    def attributes(self, ino: int, path: bytes) -> None:
        mode, uid, gid, atime, mtime = self.volume.db.execute(
            "SELECT mode, uid, gid, atime_ns, mtime_ns FROM inodes WHERE ino = ?", (ino,)).fetchone()  # fmt: skip
        try:
            if os.geteuid() == 0:
                os.chown(path, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(mode):
                os.chmod(path, stat.S_IMODE(mode))
                for name, value in self.volume.db.execute("SELECT name, value FROM xattrs WHERE ino = ?", (ino,)):
                    try:
                        os.setxattr(path, name, value)
                    except OSError as error:
                        warn(f"{os.fsdecode(path)}: attribute {os.fsdecode(name)}: {error.strerror}")
            os.utime(path, ns=(atime, mtime), follow_symlinks=False)
        except OSError as error:
            self.say(path, error.strerror)

    def say(self, path: bytes, trouble: str | None) -> None:
        if trouble:
            self.failed += 1
            warn(f"{os.fsdecode(path)}: {trouble}")


def restore(text: str, target: str, embedded: str | None) -> int:
    secret, places = read_string(text)
    depots = Depots(embedded)
    logs, key, master = find_logs(depots, secret, places)
    # A directory, because SQLite puts files beside this one.
    with tempfile.TemporaryDirectory(prefix="ibpfs-restore-") as place, open(f"{place}/store", "w+b") as file:
        for log, where in logs:
            commit = rebuild(depots, key, log, where, file)
            if commit is not None:
                break
            warn("the newest checkpoint cannot be read: an older one is looked for")
        else:
            raise Trouble("no checkpoint can be read")
        taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(commit["at"]))
        volume = Volume(file.name, depots, master)
        restorer = Restorer(volume, target, {one[0]: one[1] for one in commit["dirty"]})
        restorer.run()
    if volume.plain:
        warn("some bytes were stored without being sealed: they are not verified")
    print(f"{target}: {restorer.files} files as they were at {taken}; {restorer.failed} with trouble")
    return 1 if restorer.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="where the files go; must be empty or new")
    parser.add_argument("--from", dest="source", metavar="FILE", help="the recovery string; else standard input")
    parser.add_argument("--embedded", metavar="HOST:PORT", help="where the volume's own depot listens now")
    words = parser.parse_args()
    try:
        if words.source:
            with open(words.source, encoding="utf-8") as file:
                text = file.read()
        else:
            text = sys.stdin.read()
        return restore(text, words.directory, words.embedded)
    except (Trouble, OSError, sqlite3.DatabaseError) as error:
        warn(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
