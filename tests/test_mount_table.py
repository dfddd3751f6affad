"""The mount table as it is written."""

from pathlib import Path

import pytest

from ibpfs import mountinfo
from ibpfs.mount_table import mount_entries

TABLE = rb"""27 1 259:1 / / rw,relatime - ext4 /dev/root rw
42 27 0:39 / /mnt/with\040blank rw,nosuid,noatime shared:5 - fuse.ibpfs /srv/a\054b\134c rw,user_id=0
43 27 0:40 / /mnt/over rw master:1 propagate_from:2 - fuse.ibpfs /srv/vol ro
""" + b"44 27 0:41 / /mnt/odd\x0cname\xe2\x80\xa8 rw - tmpfs tmpfs rw\n"


def test_table_is_read_with_its_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(TABLE)
    monkeypatch.setattr(mountinfo, "TABLE", str(table))
    root, blank, over, odd = mount_entries()
    assert (root.device, root.kind, root.source) == ("259:1", "ext4", "/dev/root")
    assert blank.mountpoint == Path("/mnt/with blank")
    assert blank.source == "/srv/a,b\\c"
    assert blank.options == ("rw", "nosuid", "noatime")
    assert odd.mountpoint == Path("/mnt/odd\x0cname\u2028")
    assert (over.kind, over.device) == ("fuse.ibpfs", "0:40")
