"""Every word that fstab, systemd, mount(8) on remount, or a person may put behind -o."""

from pathlib import Path

import pytest

from ibpfs.errors import UsageError
from ibpfs.mount_options import MS_NOATIME, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_RELATIME, parse_mount_options

FSTAB = "defaults,noatime,nofail,_netdev,user,noauto,x-systemd.automount,x-gvfs-show,exec,nosuid,comment=hello"
PROC_MOUNTS = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576"


def test_generic_words_are_accepted() -> None:
    options = parse_mount_options([FSTAB])
    assert options.noatime
    assert options.kernel_flags & MS_NOSUID
    assert not options.kernel_flags & MS_NOEXEC
    assert not options.read_only


def test_remount_arrives_with_every_option_of_proc_mounts() -> None:
    options = parse_mount_options([f"remount,{PROC_MOUNTS},ro"])
    assert options.remount
    assert options.read_only
    assert options.kernel_flags & (MS_RDONLY | MS_RELATIME) == MS_RDONLY | MS_RELATIME


def test_the_last_of_two_wins() -> None:
    assert not parse_mount_options(["ro", "rw"]).read_only
    assert parse_mount_options(["rw,ro"]).read_only
    options = parse_mount_options(["noatime,relatime"])
    assert not options.noatime
    assert not options.kernel_flags & MS_NOATIME
    assert not parse_mount_options(["allow_other,noallow_other"]).allow_other


def test_settings_of_our_own() -> None:
    options = parse_mount_options(
        ["sync=close,cache_dir=/c,cache_size=2G", "min_free=10%,dirty=64M,deadline=1500ms,writeback"]
    )
    assert options.sync == "close"
    assert options.cache_dir == Path("/c")
    assert options.cache_size == 2 << 30
    assert options.min_free == 0.1
    assert options.dirty == 64 << 20
    assert options.deadline == 1.5
    assert options.writeback


def test_sync_of_mount8_is_sync_write() -> None:
    assert parse_mount_options(["sync"]).sync == "write"
    assert parse_mount_options(["sync,async"]).sync == ""


@pytest.mark.parametrize(
    "word", ["nonsense", "cache_sise=1G", "sync=never", "cache_size=much", "deadline=0", "cache_dir=", "dirty=0"]
)
def test_nonsense_is_one_line(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount_options([word])
    assert "\n" not in str(caught.value)


def test_sloppy_forgives_unknown_words() -> None:
    assert parse_mount_options(["nonsense,ro"], sloppy=True).read_only
