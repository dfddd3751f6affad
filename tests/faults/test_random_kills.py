"""kill -9 of a random process under a load that syncs and verifies: the mount, its server alone, a depot, a warmer.

The volume has two copies on three depots, and another machine's warmer works on them with a warm capability.
IBPFS_KILLS sets the number of kills (20), IBPFS_SEED the seed (fresh, printed).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.mounted.running import BIN, is_alive, kill_and_wait, run, until
from tests.mounted.test_supervised import answers
from tests.mounted.volumes import MakeVolume, Session, Volume

from .promises import Promises
from .test_kills import SEED, ended

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("IBPFS_KILLS", "20"))
#: Rounds with one tree; a new one then, so that a long run does not compare ever more.
_FRESH = 20
#: Rounds until everything that is stored is verified.
_VERIFIED = 10
#: Servers that are killed within a minute: after one more or two a supervisor gives up, as it should.
_LIMIT = 4
#: Seconds for what others work at to come to an end, however busy the machine is.
_PATIENCE = 120
_VICTIMS = ["mount", "server", "depot", "warmer"]
_EXPECTED = "torn and dropped|does not answer|append refused|wait in the spool|allocation|segment|depot|not released"


class Place:
    """A volume under a load, and a warmer beside it."""

    def __init__(self, volume: Volume, capability: Path, dice: random.Random) -> None:
        self.volume = volume
        self.dice = dice
        self.killed = Counter[str]()
        self._capability = capability
        self._servers: list[float] = []  # when one was killed under the supervisor that watches now

    def one_kill(self, place: Path, promises: Promises) -> None:
        victim = self.dice.choice(_VICTIMS)
        begun = promises.begun()
        load = promises.start(place, self.dice.randrange(1 << 30))
        warmer = self._warm()
        try:
            until(lambda: promises.begun() > begun, 60, "the load")
            time.sleep(self.dice.uniform(0.2, 1.5))
            getattr(self, f"_kill_{victim}")(warmer)
            if victim in ("depot", "warmer"):
                time.sleep(self.dice.uniform(0.1, 0.6))
                assert load.poll() is None, self._said(promises, f"the load saw the end of a {victim}")
                load.send_signal(signal.SIGTERM)
        finally:
            ended(load, _PATIENCE)
            ended(warmer, _PATIENCE)
        ends = {0}
        if victim in ("mount", "server"):
            ends.add(-signal.SIGBUS)  # SQLite had mapped a file of a mount that is gone
        else:
            assert not promises.failures(), self._said(promises, f"the load saw the end of a {victim}")
        assert load.returncode in ends, f"the load was told something wrong, or broke ({victim})"
        self.killed[victim] += 1

    def _said(self, promises: Promises, what: str) -> str:
        return f"{what}: {promises.failures()}\n{self.volume.log()[-20_000:]}"

    def _warm(self) -> "subprocess.Popen[bytes]":
        words = [BIN / "ibpfs", "warm", "--quiet", "--all", "--with", self._capability]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _kill_mount(self, warmer: "subprocess.Popen[bytes]") -> None:
        """All of it; in some rounds the next one again, in the middle of its replay."""
        self.volume.kill()
        while self.dice.random() < 0.3:
            self.volume.mount()
            time.sleep(self.dice.uniform(0.0, 0.3))
            self.volume.kill()
        self.volume.mount()
        self._servers.clear()

    def _kill_server(self, warmer: "subprocess.Popen[bytes]") -> None:
        """The process that serves the kernel: its supervisor starts another one beneath the dead mount."""
        self._servers = [at for at in self._servers if time.monotonic() - at < 60]
        if len(self._servers) == _LIMIT:
            self._kill_mount(warmer)
            return
        self._servers.append(time.monotonic())
        pid = self.volume.status()["pid"]
        kill_and_wait([pid])
        until(lambda: self._served_by() not in (None, pid), 60, "another server")

    def _served_by(self) -> int | None:
        """None also while a server is being replaced: nobody answers then, and later a dead mount is above the new."""
        if not answers(self.volume.mountpoint):
            return None
        done = run("ibpfs", "status", "--json", self.volume.root, code=None)
        return json.loads(done.stdout)["pid"] if done.returncode == 0 else None

    def _kill_depot(self, warmer: "subprocess.Popen[bytes]") -> None:
        depot = self.dice.choice(self.volume.depots)
        depot.kill()
        time.sleep(self.dice.uniform(0.0, 1.0))
        depot.start()

    def _kill_warmer(self, warmer: "subprocess.Popen[bytes]") -> None:
        while not is_alive(warmer.pid):  # it was done already
            warmer.wait()
            warmer = self._warm()
            time.sleep(self.dice.uniform(0.1, 0.6))
        kill_and_wait([warmer.pid])
        warmer.wait()

    def exchange(self) -> None:
        """What the warmer made comes home, and it gets a new capability."""
        if self._capability.exists():
            run("ibpfs", "warm", "--merge", self._capability, self.volume.mountpoint)
        run("ibpfs", "warm-cap", self.volume.mountpoint, self._capability)

    def verify(self) -> None:
        """Everything that is stored; a warmer that is not mounted is killed in the middle first."""
        done = run("umount.ibpfs", self.volume.mountpoint, code=None)
        assert done.returncode == 0, done.stderr + self.volume.log()[-20_000:]
        words = [BIN / "ibpfs", "warm", "--quiet", "--all", self.volume.root]
        warmer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self.dice.uniform(0.1, 1.0))
        self.killed["warmer, unmounted"] += is_alive(warmer.pid)
        kill_and_wait([warmer.pid])
        warmer.wait()
        assert "clean" in self.volume.fsck("--data", "-n").stdout
        self.volume.mount()
        self._servers.clear()


def test_kills_of_any_process_lose_nothing_that_was_promised(
    volumes: MakeVolume, session: Session, source_tree: Path
) -> None:
    print(f"seed {SEED}, {KILLS} kills: IBPFS_SEED={SEED} IBPFS_KILLS={KILLS}")
    volume = volumes("--copies", "2", depots=3)
    volume.expect(_EXPECTED)
    held = synced = 0
    with session.scratch() as path:
        all_promises = Promises(path / "journal", source_tree.parent / "tree")
        place = Place(volume, path / "capability", random.Random(SEED))
        for number in range(KILLS):
            if number % _FRESH == 0:
                tree, promises = volume / f"tree{number}", all_promises.fresh()
                tree.mkdir()
                (volume / "seed").write_bytes(os.urandom(100_000))  # a capability for nothing is refused
                volume.flush()
                place.exchange()
            place.one_kill(tree, promises)
            held += promises.check(tree)
            if number % _VERIFIED == _VERIFIED - 1 or number == KILLS - 1:
                place.verify()
                held += promises.check(tree)
                print(f"{number + 1} kills, {held} files held to their promise", flush=True)
            if number % _FRESH == _FRESH - 1:
                synced += promises.synced()
                shutil.rmtree(tree)
    killed = ", ".join(f"{count} {what}" for what, count in sorted(place.killed.items()))
    print(f"killed: {killed}; {held} files held to their promise, {synced} of those written had an fsync")
    assert held
