"""Programs that people use all day, on a real mount."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from .running import BIN, run
from .test_loads import at_once
from .volumes import Volume

pytestmark = pytest.mark.mounted

WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60)
for number in range(int(sys.argv[3])):
    with base:
        base.execute("INSERT INTO rows VALUES (?, ?, randomblob(3000))", (sys.argv[2], number))
    if number % 10 == 5:
        with base:
            base.execute("UPDATE rows SET data = randomblob(5000) WHERE writer = ? AND number = ?", (sys.argv[2], 3))
base.close()
"""


def test_git(shared: Volume, place: Path, source_tree: Path) -> None:
    env = {
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
    }  # fmt: skip

    def git(*words: str) -> str:
        return run("git", "-C", place, *words, env=env).stdout

    run("tar", "-C", place, "-xf", source_tree)
    git("init", "-q")
    git("add", "-A", ".")
    git("commit", "-q", "-m", "everything")
    git("fsck", "--strict")
    git("gc", "-q")
    assert git("status", "--porcelain") == ""
    shared.remount(cold=True)
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""


def test_sqlite_with_concurrent_writers(shared: Volume, place: Path) -> None:
    path = place / "base.sqlite"
    base = sqlite3.connect(path)
    assert base.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    base.execute("CREATE TABLE rows (writer TEXT, number INTEGER, data BLOB)")
    base.commit()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(number), "40"], stderr=subprocess.PIPE)
        for number in range(3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert base.execute("SELECT count(*) FROM rows").fetchone() == (120,)
    base.close()
    shared.remount(cold=True)
    base = sqlite3.connect(path)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert base.execute("SELECT count(*) FROM rows").fetchone() == (120,)
    base.close()


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory"])
def test_sqlite_journals(place: Path, mode: str) -> None:
    def work(who: int) -> None:
        base = sqlite3.connect(place / "base.sqlite", timeout=60)
        base.execute(f"PRAGMA journal_mode={mode}")
        for _ in range(10):
            with base:
                base.execute("INSERT INTO rows VALUES (?, ?)", (who, "x" * 3000))
        base.close()

    with sqlite3.connect(place / "base.sqlite") as base:
        base.execute("CREATE TABLE rows (who INTEGER, data TEXT)")
    base.close()
    at_once(3, work)
    base = sqlite3.connect(place / "base.sqlite")
    assert base.execute("SELECT count(*) FROM rows").fetchone() == (30,)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


def test_rsync_there_and_back_has_nothing_left_to_do(place: Path, directory: Path, source_tree: Path) -> None:
    source = directory / "source"
    run("cp", "-a", source_tree.parent / "tree" / "asyncio", source)
    (source / "link").hardlink_to(source / "base_events.py")
    (source / "symbolic").symlink_to("events.py")
    os.mkfifo(source / "pipe")
    (source / "sparse").write_bytes(b"")
    os.truncate(source / "sparse", 3_000_000)
    run("setfacl", "-m", "u:1000:rw,g:33:r", source / "events.py")
    run("setfattr", "-n", "user.colour", "-v", "blue", source / "queues.py")
    os.utime(source / "tasks.py", ns=(1, 987_654_321_123_456_789))
    there, back = place / "there", directory / "back"
    run("rsync", "-aHAX", "--checksum", f"{source}/", there)
    run("rsync", "-aHAX", "--checksum", f"{there}/", back)
    for left, right in ((source, there), (there, source), (there, back), (source, back), (back, source)):
        done = run("rsync", "-aHAX", "--checksum", "--delete", "--dry-run", "--itemize-changes", f"{left}/", right)
        assert done.stdout == "", f"{left} and {right} differ"


def test_c_program_is_compiled_and_runs(place: Path) -> None:
    (place / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 7; }\n')
    run("gcc", "-O1", "-o", place / "hello", place / "hello.c")
    assert run(place / "hello", code=7).stdout == "hello\n"


@pytest.mark.parametrize("engine", ["psync", "mmap", "libaio --direct=1 --iodepth=8"])
def test_fio_verifies_random_reads_and_writes(place: Path, engine: str) -> None:
    run(
        "fio", "--name=mixed", f"--directory={place}", "--rw=randrw", "--size=16m", "--bsrange=1k-64k", "--numjobs=2",
        *f"--ioengine={engine}".split(), "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--randseed=7",
        "--fallocate=none", "--end_fsync=1", "--group_reporting", cwd=place,
    )  # fmt: skip


def test_python_runs_from_a_copy_of_its_library(shared: Volume, place: Path, source_tree: Path) -> None:
    run("tar", "-C", place, "-xf", source_tree, "./json", "./collections", "./keyword.py")
    code = "import json; print(json.__file__, json.dumps([1]))"
    done = run(BIN / "python", "-c", code, env={"PYTHONPATH": str(place)}, cwd="/")
    assert done.stdout == f"{place}/json/__init__.py [1]\n"
