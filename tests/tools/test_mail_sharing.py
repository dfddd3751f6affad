"""Where files from messages pass through: what others keep there is theirs."""

import os
import threading
from pathlib import Path

from ibpfs_tools.mail_sharing import _place

AGES_AGO = 1_000_000_000


def old_directory(path: Path) -> Path:
    path.mkdir()
    (path / "file").write_bytes(b"dear to somebody")
    os.utime(path, (AGES_AGO, AGES_AGO))
    return path


def test_what_is_not_ours_stays_whatever_its_age(tmp_path: Path) -> None:
    kept = [old_directory(tmp_path / name) for name in ("photographs", "0123456789abcdef", "mail-2019")]
    elsewhere = old_directory(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "mail-00112233445566aa").symlink_to(elsewhere)
    with _place(tmp_path):
        pass
    assert all((one / "file").exists() for one in (*kept, elsewhere))


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    left = old_directory(tmp_path / "mail-00112233445566bb")
    with _place(tmp_path) as directory:
        assert not left.exists()
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not directory.exists()


def test_many_at_once_are_not_in_each_others_way(tmp_path: Path) -> None:
    troubles: list[OSError] = []

    def work() -> None:
        try:
            for _ in range(300):
                with _place(tmp_path):
                    pass
        except OSError as error:
            troubles.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert troubles == []
