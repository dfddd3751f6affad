"""mount.ibpfs as mount(8) calls it: by type, from an fstab, faked, remounted.

Each test runs in a mount namespace of its own, where /sbin holds the helpers; the machine's stays as it is.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .running import BIN, Done, run, until
from .volumes import ALONE, Volume

pytestmark = [pytest.mark.mounted, pytest.mark.root]

HELPERS = {"mount.ibpfs": "mount.ibpfs", "mount.fuse.ibpfs": "mount.ibpfs", "umount.ibpfs": "umount.ibpfs",
           "umount.fuse.ibpfs": "umount.ibpfs", "fsck.ibpfs": "fsck.ibpfs"}  # fmt: skip

Shell = Callable[..., Done]


@pytest.fixture
def unmounted(volume: Volume) -> Volume:
    (volume / "f").write_bytes(b"content")
    volume.umount()
    return volume


@pytest.fixture
def shell(unmounted: Volume, as_root: None, directory: Path) -> Iterator[Shell]:
    """Runs shell lines in a namespace where /sbin (through its real place) holds the helpers."""
    helpers = directory / "sbin"
    helpers.mkdir()
    for name, target in HELPERS.items():
        (helpers / name).symlink_to(BIN / target)
    real = Path("/sbin").resolve()
    preparation = f"""{ALONE}
        set -e
        mkdir -p {directory}/upper {directory}/work
        mount -t tmpfs tmpfs {directory}/upper
        mkdir {directory}/upper/u {directory}/upper/w
        cp -a {helpers}/. {directory}/upper/u/
        mount -t overlay -o lowerdir={real},upperdir={directory}/upper/u,workdir={directory}/upper/w overlay {real}
        """

    def call(lines: str, code: int | None = 0, fstab: str = "") -> Done:
        table = directory / "fstab"
        table.write_text(fstab)
        with_table = f"mount --bind {table} /etc/fstab\n" if fstab else ""
        script = f"{preparation}{with_table}set +e\nV={unmounted.root}\nM={unmounted.mountpoint}\n{lines}\n"
        # The process that serves the mount keeps the namespace alive: without this, both would stay.
        script += "code=$?\numount -l $M 2>/dev/null\nexit $code\n"
        return run("unshare", "-m", "sh", "-c", script, code=code)

    yield call
    until(lambda: not set(unmounted.processes()) - set(unmounted.embedded_depot()), what="the end of the mount")


def test_by_type(shell: Shell) -> None:
    said = shell("mount -t ibpfs $V $M && cat $M/f && grep $M /proc/mounts && umount $M").stdout
    assert said.startswith("content")
    assert " fuse.ibpfs rw" in said


def test_by_the_type_in_proc_mounts(shell: Shell) -> None:
    assert shell("mount -t fuse.ibpfs $V $M && cat $M/f && umount.ibpfs $M").stdout == "content"


def test_fstab_by_mount_point(shell: Shell, unmounted: Volume) -> None:
    options = "nofail,noatime,_netdev,x-systemd.automount,x-gvfs-show,noexec,nosuid,user,comment=mine"
    line = f"{unmounted.root} {unmounted.mountpoint} ibpfs {options} 0 0\n"
    said = shell("mount $M && grep $M /proc/mounts && cat $M/f && umount $M", fstab=line).stdout
    assert "noatime" in said
    assert "noexec" in said
    assert "nosuid" in said
    assert said.endswith("content")


def test_all_of_an_fstab_twice(shell: Shell, unmounted: Volume) -> None:
    line = f"{unmounted.root} {unmounted.mountpoint} ibpfs defaults,nofail 0 0\n"
    said = shell("mount -a && mount -a; echo $?; grep -c $M /proc/mounts; umount $M; grep $M /proc/mounts",
                 fstab=line, code=1)  # fmt: skip
    assert said.stdout.split() == ["0", "1"]


def test_noauto(shell: Shell, unmounted: Volume) -> None:
    line = f"{unmounted.root} {unmounted.mountpoint} ibpfs noauto 0 0\n"
    assert shell("mount -a; grep -c $M /proc/mounts; mount $M && cat $M/f", fstab=line).stdout == "0\ncontent"


def test_fake(shell: Shell) -> None:
    said = shell("mount -f -v -t ibpfs $V $M; echo $?; grep -c $M /proc/mounts", code=1).stdout
    assert said.split()[-2:] == ["0", "0"]


def test_fake_of_what_cannot_be_mounted(shell: Shell) -> None:
    done = shell("mount -f -t ibpfs $V-not-there $M", code=32)
    assert done.stderr.count("\n") == 1


def test_remount(shell: Shell) -> None:
    said = shell("""
        mount -t ibpfs $V $M -o noatime,nosuid
        mount -o remount,ro $M || echo first failed
        touch $M/g 2>&1
        grep $M /proc/mounts
        mount -o remount,rw $M || echo second failed
        touch $M/g || echo touch failed
        grep $M /proc/mounts
        mount -o remount,noexec $M || echo third failed
        grep $M /proc/mounts
        umount $M
        """).stdout.splitlines()
    assert len(said) == 4, said
    assert "Read-only file system" in said[0]
    assert " ro,nosuid" in said[1]
    assert "noatime" in said[1]
    assert " rw,nosuid" in said[2]
    assert "noatime" in said[2]
    assert "noexec" in said[3]


def test_read_only(shell: Shell) -> None:
    said = shell("mount -t ibpfs -o ro $V $M; cat $M/f; touch $M/g 2>&1; rm $M/f 2>&1", code=1).stdout
    assert said.startswith("content")
    assert said.count("Read-only file system") == 2


def test_a_read_only_mount_takes_no_snapshot(shell: Shell) -> None:
    """Nor does the owner change anything else that is asked of it, until the mount is writable again."""
    said = shell("""
        mount -t ibpfs -o ro $V $M
        ibpfs snapshot create $M one 2>&1
        ibpfs trash keep $M 3d 2>&1
        mount -o remount,rw $M || echo remount failed
        ibpfs snapshot create $M two
        ls $M/.snapshots
        mount -o remount,ro $M || echo remount failed
        ibpfs snapshot delete $M two 2>&1
        ls $M/.snapshots
        """).stdout.splitlines()
    refused = [line for line in said if "is mounted read-only" in line]
    assert len(refused) == 3, said
    assert [line for line in said if line == "two"] == ["two", "two"], said
    assert not any("failed" in line for line in said), said


def test_remount_of_all_options_of_proc_mounts(shell: Shell) -> None:
    """As systemd does at shutdown: every option that the mount table shows comes back."""
    said = shell("mount -t ibpfs $V $M; O=$(grep $M /proc/mounts | cut -d' ' -f4);"
                 " mount.ibpfs $V $M -o remount,ro,$O,ro; echo $?; grep $M /proc/mounts").stdout  # fmt: skip
    assert said.startswith("0\n")
    assert " ro," in said


def test_read_only_writes_nothing(shell: Shell, unmounted: Volume) -> None:
    shell("mount -t ibpfs -o ro $V $M && cat $M/f && umount $M")
    unmounted.mount()
    assert {path.name for path in unmounted.mountpoint.iterdir()} == {"f"}
    unmounted.umount()


def test_every_generic_option_is_accepted(shell: Shell) -> None:
    options = (
        "async,atime,auto,defaults,dev,diratime,exec,group,iversion,lazytime,loud,mand,_netdev,nofail,nosuid,noiversion,"
        "nolazytime,nomand,norelatime,nostrictatime,nodiratime,nosymfollow,owner,relatime,rw,silent,strictatime,suid,"
        "symfollow,user,users,uid=0,x-mount.mkdir,x-systemd.requires=foo.service,X-mine=1,comment=c,context=x"
    )
    words = [word for word in options.split(",") if word not in ("uid=0", "context=x", "mand")]
    done = shell(f"mount.ibpfs $V $M -o {','.join(words)} && cat $M/f")
    assert done.stdout == "content"


def test_sloppy(shell: Shell) -> None:
    assert shell("mount -t ibpfs -s -o nonsense $V $M && cat $M/f").stdout == "content"


def test_second_mount_is_refused(shell: Shell, directory: Path) -> None:
    done = shell(f"mount -t ibpfs $V $M && mkdir {directory}/other && mount -t ibpfs $V {directory}/other", code=32)
    assert done.stderr.count("\n") == 1
    assert "mounted" in done.stderr


def test_another_namespace(shell: Shell) -> None:
    said = shell("sleep 60 & P=$!; unshare -m sh -c \"mount -N $P -t ibpfs $V $M\"; cat $M/f; kill $P").stdout
    assert said == "content"


def test_fsck_by_type(shell: Shell) -> None:
    assert shutil.which("fsck")
    done = shell("fsck -t ibpfs $V", code=None)
    assert done.returncode == 0, done.stderr


def test_x_mount_mkdir(shell: Shell, directory: Path) -> None:
    done = shell(f"M={directory}/new/place; mount -t ibpfs -o X-mount.mkdir $V $M && cat $M/f")
    assert done.stdout == "content"
    assert (directory / "new").is_dir()
