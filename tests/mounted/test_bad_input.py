"""Wrong calls and broken surroundings: one clear line each, the right exit code, nothing lost, no traceback."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .running import BIN, Done, run, until
from .volumes import MakeDepot, MakeVolume, Session, Volume

pytestmark = pytest.mark.mounted


@pytest.fixture(scope="module")
def made(session: Session) -> Iterator[Volume]:
    """A volume that is not mounted, with a file in it."""
    with session.volume() as volume:
        volume.expect("CRITICAL ibpfs_tools.daemon: ")  # mounts that failed have their line in the log
        (volume / "f").write_bytes(b"content")
        volume.umount()
        yield volume


def one_line(done: Done, *words: object) -> str:
    """The one line of an error, which names what it is about."""
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr
    return done.stderr


class TestMount:
    def test_missing_volume(self, made: Volume, directory: Path) -> None:
        done = run("mount.ibpfs", directory / "nowhere", made.mountpoint, code=32)
        one_line(done, directory / "nowhere")
        one_line(run("mount.ibpfs", "no-such-name", made.mountpoint, code=32), "no-such-name")

    def test_a_directory_that_is_no_volume(self, made: Volume, directory: Path) -> None:
        one_line(run("mount.ibpfs", directory, made.mountpoint, code=32), directory)

    def test_missing_mount_point(self, made: Volume, directory: Path) -> None:
        done = run("mount.ibpfs", made.root, directory / "nowhere", code=32)
        one_line(done, directory / "nowhere", "mkdir")

    def test_mount_point_that_is_a_file(self, made: Volume, directory: Path) -> None:
        (directory / "file").touch()
        one_line(run("mount.ibpfs", made.root, directory / "file", code=32), directory / "file", "not a directory")

    def test_volume_inside_its_mount_point(self, made: Volume, directory: Path) -> None:
        one_line(run("mount.ibpfs", made.root, made.base, code=32), made.base, made.root)
        one_line(run("mount.ibpfs", made.root, made.root, code=32), made.root)
        (directory / "link").symlink_to(made.base)
        one_line(run("mount.ibpfs", made.root, directory / "link", code=32), made.base, made.root)

    def test_mount_point_inside_the_volume(self, made: Volume) -> None:
        one_line(run("mount.ibpfs", made.root, made.root / "cache", code=32), made.root / "cache", made.root)

    def test_cache_inside_the_mount_point(self, made: Volume) -> None:
        options = f"cache_dir={made.mountpoint}/cache"
        done = run("mount.ibpfs", made.root, made.mountpoint, "-o", options, code=None)
        assert done.returncode in (1, 32)
        one_line(done, made.mountpoint / "cache")

    @pytest.mark.parametrize(
        "options", ["nonsense", "sync=never", "cache_size=many", "deadline=0", "dirty=-1", "min_free=2", "cache_dir="]
    )
    def test_options(self, made: Volume, options: str) -> None:
        one_line(run("mount.ibpfs", made.root, made.mountpoint, "-o", options, code=1), options.split("=")[0])

    def test_arguments(self, made: Volume) -> None:
        one_line(run("mount.ibpfs", code=1), "--help")
        one_line(run("mount.ibpfs", made.root, code=1), "--help")
        one_line(run("mount.ibpfs", made.root, made.mountpoint, "more", code=1), "more")

    def test_second_mount(self, volume: Volume, directory: Path) -> None:
        one_line(run("mount.ibpfs", volume.root, directory, code=32), volume.root, "mounted", volume.mountpoint)
        assert volume.is_mounted()
        one_line(run("mount.ibpfs", volume.root, volume.mountpoint, code=32), volume.mountpoint)

    def test_wrong_passphrase(self, volumes: MakeVolume, directory: Path) -> None:
        (directory / "right").write_text("right\n")
        (directory / "wrong").write_text("wrong\n")
        volume = volumes("--passphrase-file", directory / "right", mount=False)
        volume.expect("CRITICAL ibpfs_tools.daemon: ")
        done = run("mount.ibpfs", volume.root, volume.mountpoint, "--passphrase-file", directory / "wrong", code=32)
        one_line(done, volume.root)
        done = run("mount.ibpfs", volume.root, volume.mountpoint, "--passphrase-file", directory / "none", code=None)
        one_line(done, directory / "none")
        one_line(run("mount.ibpfs", volume.root, volume.mountpoint, code=None), "passphrase")
        volume.mount("--passphrase-file", str(directory / "right"))
        volume.umount()

    def test_wrong_key_file(self, made: Volume, volumes: MakeVolume, directory: Path) -> None:
        other = volumes(mount=False)
        kept = directory / "kept"
        shutil.copy2(made.root / "volume.key", kept)
        try:
            shutil.copy2(other.root / "volume.key", made.root / "volume.key")
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), "key")
            (made.root / "volume.key").write_bytes(b"nonsense")
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), "key")
            (made.root / "volume.key").unlink()
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), "key", "recovery")
        finally:
            shutil.copy2(kept, made.root / "volume.key")

    def test_recovery_string(self, directory: Path, session: Session) -> None:
        with session.volume(mount=False) as volume:
            shutil.rmtree(volume.root)
            recovery = run("mkfs.ibpfs", "-q", volume.root).stdout
            (directory / "recovery").write_text(recovery)
            (directory / "slip").write_text(recovery.replace(recovery[0], "2" if recovery[0] != "2" else "3", 1))
            (volume.root / "volume.key").unlink()
            words = ("mount.ibpfs", volume.root, volume.mountpoint, "--recovery-file")
            one_line(run(*words, directory / "slip", code=None))
            volume.mount("--recovery-file", str(directory / "recovery"))
            assert recovery.strip() not in volume.log()
            volume.umount()

    @pytest.mark.parametrize(
        "damage",
        [lambda text: b"", lambda text: text[: len(text) // 2],
         lambda text: text.replace(b"plain = false", b"plain = true"), lambda text: b"\xff\xfe\0" + text,
         lambda text: text.replace(b'uuid = "', b'uuid = "0')],
        ids=["empty", "cut", "changed", "binary", "field"],
    )  # fmt: skip
    def test_damaged_configuration(self, made: Volume, damage: Callable[[bytes], bytes]) -> None:
        path = made.root / "volume.toml"
        text = path.read_bytes()
        assert damage(text) != text
        try:
            path.write_bytes(damage(text))
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), path)
            one_line(run("ibpfs", "status", made.root, code=1), path)
            assert "volume.toml" in made.fsck("-n", code=4).stdout
            made.fsck("-a", code=1)  # the store keeps a copy
            assert path.read_bytes() == text
        finally:
            path.write_bytes(text)

    def test_missing_store(self, made: Volume, directory: Path) -> None:
        path = made.root / "exnode_store.sqlite"
        path.rename(directory / "kept")
        try:
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), "exnode_store.sqlite")
            path.write_bytes(b"this is no database, but it is long enough to look like one" * 100)
            one_line(run("mount.ibpfs", made.root, made.mountpoint, code=32), "exnode_store.sqlite")
        finally:
            (directory / "kept").rename(path)

    def test_files_of_root_left_by_sudo(self, session: Session, directory: Path) -> None:
        os.chown(directory, 1000, 1000)
        user = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
        volume = directory / "volume"
        run(*user, BIN / "mkfs.ibpfs", volume, cwd="/")
        for name in ("exnode_store.sqlite", "volume.key"):
            os.chown(volume / name, 0, 0)
            done = run(*user, BIN / "mount.ibpfs", volume, directory, code=32, cwd="/")
            one_line(done, volume / name, "chown")
            os.chown(volume / name, 1000, 1000)
        os.chown(volume / "spool", 0, 0)
        one_line(run(*user, BIN / "mount.ibpfs", volume, directory, code=32, cwd="/"), volume / "spool", "chown")

    def test_nothing_of_all_this_did_harm(self, made: Volume) -> None:
        made.mount()
        assert (made / "f").read_bytes() == b"content"
        made.umount()
        made.fsck("-n")


class TestMake:
    def test_twice(self, made: Volume) -> None:
        one_line(run("mkfs.ibpfs", made.root, code=None), made.root)

    def test_in_the_way(self, directory: Path) -> None:
        (directory / "file").touch()
        one_line(run("mkfs.ibpfs", directory / "file", code=None), directory / "file")
        (directory / "full").mkdir()
        (directory / "full" / "something").touch()
        one_line(run("mkfs.ibpfs", directory / "full", code=None), directory / "full")
        assert [path.name for path in (directory / "full").iterdir()] == ["something"]

    @pytest.mark.parametrize(
        "words",
        [("--depot", "http://x"), ("--depot", "ibp://"), ("--copies", "2"), ("--copies", "0"), ("--min-copies", "3"),
         ("--owner", "nobody-such"), ("--passphrase-file", "/nowhere"),
         ("--depot", "ibp://a:1", "--depot", "ibp://a:1")],
        ids=" ".join,
    )  # fmt: skip
    def test_words(self, directory: Path, words: tuple[str, ...]) -> None:
        one_line(run("mkfs.ibpfs", directory / "volume", *words, code=2))
        assert not (directory / "volume").exists()


class TestCommands:
    def test_no_volume(self, directory: Path) -> None:
        for verb in ("status", "flush", "drop-cache", "depots"):
            one_line(run("ibpfs", verb, directory / "nowhere", code=1), directory / "nowhere")
        one_line(run("ibpfs", "stat", directory, code=1), directory)
        one_line(run("ibpfs", "nonsense", code=2), "nonsense")
        assert run("ibpfs", code=2).stderr.startswith("Usage: ibpfs ")
        one_line(run("fsck.ibpfs", directory / "nowhere", code=8), directory / "nowhere")

    def test_fsck_of_a_mounted_volume(self, volume: Volume) -> None:
        one_line(volume.fsck(code=8), volume.root, "mounted")

    def test_depot(self, directory: Path) -> None:
        for words in (("--listen", "nonsense"), ("--capacity", "much"), ("--max-lease", "long"), ("--nonsense",)):
            done = run("ibpfs-depot", "--store", directory / "depot", *words, code=2)
            one_line(done, words[-1])

    def test_depot_on_a_port_in_use(self, depots: MakeDepot, directory: Path) -> None:
        place = depots().address.removeprefix("ibp://")
        done = run("ibpfs-depot", "--store", directory / "depot", "--listen", place, code=1)
        assert "in use" in done.stderr.splitlines()[-1]


class TestDepots:
    def test_a_depot_that_is_not_there(self, session: Session) -> None:
        """The mount works at once; what needs the depot says so, in its time."""
        with session.volume("--depot", "ibp://127.0.0.1:9", mount=False) as volume:
            volume.expect("does not answer|wait in the spool|answered with EIO|not on the depots")
            began = time.monotonic()
            volume.mount("-o", "deadline=2")
            assert time.monotonic() - began < 10
            (volume / "f").write_bytes(b"x" * 1000)
            assert (volume / "f").read_bytes() == b"x" * 1000
            with (volume / "f").open("rb") as file, pytest.raises(OSError) as raised:  # noqa: PT011
                os.fsync(file.fileno())
            assert raised.value.errno in (errno.EIO, errno.ETIMEDOUT)
            assert volume.status()["depots"][0]["state"] in ("stuttering", "failed")
            run("umount", volume.mountpoint)

    def test_a_full_depot(self, volumes: MakeVolume, depots: MakeDepot, session: Session) -> None:
        depot = depots("--capacity", "20M")
        with session.volume("--depot", depot.address) as volume:
            volume.expect("wait in the spool|ENOSPC|no room|full")
            until(lambda: os.statvfs(volume.mountpoint).f_bavail)
            (volume / "small").write_bytes(b"x" * 1_000_000)
            volume.flush()
            with pytest.raises(OSError) as raised, (volume / "large").open("wb") as file:  # noqa: PT011
                for _ in range(60):
                    file.write(bytes(1_000_000))
                file.flush()
                os.fsync(file.fileno())
            assert raised.value.errno == errno.ENOSPC
            (volume / "large").unlink()
            until(lambda: os.statvfs(volume.mountpoint).f_bavail * os.statvfs(volume.mountpoint).f_frsize > 2_000_000)
            (volume / "after").write_bytes(b"y" * 500_000)
            volume.flush()
            volume.remount(cold=True)
            assert (volume / "small").read_bytes() == b"x" * 1_000_000
            assert (volume / "after").read_bytes() == b"y" * 500_000

    def test_a_full_cache_disk(self, session: Session, small_disk: Path) -> None:
        """Costs speed alone, and is said once."""
        with session.volume(mount=False) as volume:
            volume.expect("cache")
            volume.mount("-o", f"cache_dir={small_disk},cache_size=1G,min_free=0%")
            content = {f"{number}": os.urandom(700_000) for number in range(20)}
            for name, data in content.items():
                (volume / name).write_bytes(data)
            volume.drop_cache()
            for _ in range(2):
                assert {path.name: path.read_bytes() for path in volume.mountpoint.iterdir()} == content
            assert volume.log().count(" WARNING ") <= 1
            volume.umount()

    def test_a_full_disk_below_everything(self, session: Session, directory: Path) -> None:
        """A write says ENOSPC; what was written stays, and room made is room to go on."""
        place = directory / "disk"
        place.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place)
        volume = place / "volume"
        mountpoint = directory / "mnt"
        mountpoint.mkdir()
        run("mkfs.ibpfs", volume)
        run("mount.ibpfs", volume, mountpoint, "-o", "deadline=3")
        try:
            (mountpoint / "small").write_bytes(b"x" * 1_000_000)
            with pytest.raises(OSError) as raised, (mountpoint / "large").open("wb") as file:  # noqa: PT011
                for _ in range(300):
                    file.write(os.urandom(1_000_000))
            assert raised.value.errno == errno.ENOSPC
            assert (mountpoint / "small").read_bytes() == b"x" * 1_000_000
            (mountpoint / "large").unlink()
            run("umount.ibpfs", mountpoint)
            run("mount.ibpfs", volume, mountpoint)
            assert (mountpoint / "small").read_bytes() == b"x" * 1_000_000
        finally:
            subprocess.run(["umount.ibpfs", mountpoint], check=False, env={**os.environ, "PATH": f"{BIN}:/usr/bin"})
            until(lambda: not run("fuser", "-m", place, code=None).stdout.split(), 30)
