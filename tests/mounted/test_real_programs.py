"""Larger programs: a database server, builds, package installers, mail delivery."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .running import run
from .volumes import Session, Volume

pytestmark = pytest.mark.mounted

UID = 1000
SOMEBODY = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups") if not os.geteuid() else ()
GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}  # fmt: skip
WORKER = """
import sqlite3, sys, threading
def work(writer):
    base = sqlite3.connect(sys.argv[1], timeout=60)
    for number in range(60):
        with base:
            base.execute("INSERT INTO rows VALUES (?, ?, randomblob(2000))", (writer, number))
        base.execute("SELECT sum(length(data)) FROM rows WHERE writer = ?", (writer - 1,)).fetchone()
        if number % 20 == 19:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.close()
threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.fixture(scope="module")
def bzip2_source(session: Session) -> Iterator[Path]:
    """The upstream source of a small C program, from the source packages of the machine's own mirror."""
    with session.scratch() as path:
        parts = path / "sources"
        parts.mkdir()
        for name in Path("/etc/apt").rglob("*.sources"):
            (parts / name.name).write_text(re.sub(r"(?m)^Types:.*", "Types: deb-src", name.read_text()))
        for name in Path("/etc/apt").rglob("*.list"):
            (parts / name.name).write_text(re.sub(r"(?m)^deb(-src)? ", "deb-src ", name.read_text()))
        (path / "lists" / "partial").mkdir(parents=True)
        apt = ("-o", "Dir::Etc::sourcelist=-", "-o", f"Dir::Etc::sourceparts={parts}", "-o", "APT::Sandbox::User=root",
               "-o", f"Dir::State::lists={path / 'lists'}", "-o", f"Dir::Cache={path}")  # fmt: skip
        run("apt-get", "-qq", *apt, "update")
        run("apt-get", "-qq", *apt, "source", "--download-only", "bzip2", cwd=path)
        yield next(path.glob("bzip2_*.orig.tar.*"))


def test_postgres_serves_a_database(shared: Volume, place: Path) -> None:
    """initdb, a load of several clients, a crash of the server, its recovery, and the same after a cold remount."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    data = place / "data"
    if SOMEBODY:
        os.chown(place, UID, UID)

    def call(name: str, *words: object, code: int = 0) -> str:
        # The server keeps what it inherits open: nothing may wait for the end of its output.
        return run(*SOMEBODY, programs / name, *words, cwd=place, code=code).stdout

    def start() -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={place} -c fsync=on -c full_page_writes=on"
        call("pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, "start")

    def rows() -> str:
        words = ("-h", place, "-U", "postgres", "-d", "postgres", "-Atc")
        return call("psql", *words, "SELECT sum(abalance), count(*) FROM pgbench_accounts")

    connection = ("-h", place, "-U", "postgres")
    call("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-instructions", "-k")
    start()
    try:
        call("pgbench", *connection, "-i", "-q", "-s", "1", "postgres")
        load = call("pgbench", *connection, "-c", "4", "-j", "2", "-t", "50", "postgres")
        assert re.search(r"number of failed transactions: 0\b", load), load
        before = rows()
        call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")  # as a crash: the next start recovers
        start()
        assert rows() == before
    finally:
        call("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")
    assert "Bad checksums:  0" in call("pg_checksums", "--check", "-D", data)
    shared.remount(cold=True)
    start()
    try:
        assert rows() == before
    finally:
        call("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


def test_sqlite_with_threads(place: Path) -> None:
    path = place / "base.sqlite"
    base = sqlite3.connect(path)
    assert base.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    base.execute("CREATE TABLE rows (writer INTEGER, number INTEGER, data BLOB)")
    base.commit()
    run(sys.executable, "-c", WORKER, path)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert base.execute("SELECT count(*), count(DISTINCT writer) FROM rows").fetchone() == (360, 6)
    base.close()


def test_git_clones_and_worktrees(place: Path, source_tree: Path) -> None:
    origin, clone, tree = place / "origin", place / "clone", place / "worktree"

    def git(where: Path, *words: object) -> str:
        return run("git", "-C", where, *words, env=GIT).stdout

    origin.mkdir()
    run("tar", "-C", origin, "-xf", source_tree, "./json", "./asyncio", "./email")
    git(origin, "init", "-q", "-b", "trunk")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "first")
    git(place, "clone", "-q", f"file://{origin}", clone)
    git(clone, "worktree", "add", "-q", "-b", "side", tree)
    (tree / "json" / "decoder.py").unlink()
    git(tree, "commit", "-qam", "less")
    git(clone, "merge", "-q", "side")
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    git(clone, "push", "-q", "origin", "trunk:copy")
    git(origin, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "worktree", "remove", tree)
    assert not tree.exists()


def test_a_c_project_is_built_from_its_debian_source(place: Path, bzip2_source: Path) -> None:
    run("tar", "-C", place, "--strip-components=1", "-xf", bzip2_source)
    run("make", "-C", place, "-j2", "all", timeout=300)  # its default target compresses, expands and compares samples
    run("make", "-C", place, "install", f"PREFIX={place}/installed")
    run(place / "installed/bin/bzip2", "-k", place / "bzip2.c")
    assert run(place / "installed/bin/bzcat", place / "bzip2.c.bz2").stdout == (place / "bzip2.c").read_text()


def test_python_packages_are_installed_into_an_environment(place: Path) -> None:
    environment = place / "environment"
    run(sys.executable, "-m", "venv", environment)  # installs pip itself
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir")
    wheel = place / "sample"
    (wheel / "sample_package").mkdir(parents=True)
    (wheel / "sample_package" / "__init__.py").write_text("def main() -> None:\n    print('it runs')\n")
    (wheel / "setup.cfg").write_text(
        "[metadata]\nname = sample-package\nversion = 1\n[options]\npackages = sample_package\n"
        "[options.entry_points]\nconsole_scripts = sample = sample_package:main\n"
    )
    (wheel / "setup.py").write_text("import setuptools\nsetuptools.setup()\n")
    with_tools = {"PYTHONPATH": str(Path(__import__("setuptools").__file__).parents[1])}
    run(environment / "bin/python", "-m", "pip", "install", *offline, wheel, env=with_tools)
    assert run(environment / "bin/sample").stdout == "it runs\n"
    run(environment / "bin/python", "-m", "pip", "uninstall", "-q", "-y", "sample-package")
    assert not (environment / "bin/sample").exists()


def test_mail_is_delivered_to_a_maildir_by_many_at_once(place: Path) -> None:
    box = place / "Maildir"
    rules = place / "procmailrc"
    rules.write_text(f"MAILDIR={place}\nDEFAULT={box}/\nLOGFILE={place}/log\n")
    message = "From: a@b.c\nTo: d@e.f\nSubject: {}\nMessage-ID: <{}@b.c>\n\n" + "text\n" * 500
    deliveries = []
    for number in range(40):
        delivery = subprocess.Popen(["procmail", "-m", rules], stdin=subprocess.PIPE)
        assert delivery.stdin is not None
        delivery.stdin.write(message.format(number, number).encode())
        delivery.stdin.close()
        deliveries.append(delivery)
    assert [one.wait(60) for one in deliveries] == [0] * 40
    found = {path.read_text().split("Subject: ")[1].split("\n")[0] for path in (box / "new").iterdir()}
    assert found == {str(number) for number in range(40)}
    assert not list((box / "tmp").iterdir())


def test_tar_keeps_attributes_holes_and_links(place: Path, directory: Path) -> None:
    source = place / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(40_000_000)
        file.write(b"end")
    (source / "plain").write_text("text")
    (source / "other").hardlink_to(source / "plain")
    run("setfattr", "-n", "user.colour", "-v", "blue", source / "plain")
    run("setfacl", "-m", "u:33:rw", source / "plain")
    run("tar", "-C", source, "--xattrs", "--acls", "--sparse", "-cf", directory / "all.tar", ".")
    assert (directory / "all.tar").stat().st_size < 5_000_000
    back = place / "back"
    back.mkdir()
    run("tar", "-C", back, "--xattrs", "--acls", "--sparse", "-xf", directory / "all.tar")
    assert run("getfattr", "--only-values", "-n", "user.colour", back / "plain").stdout == "blue"
    assert "user:www-data:rw-" in run("getfacl", "-p", back / "plain").stdout
    assert (back / "plain").stat().st_ino == (back / "other").stat().st_ino
    assert run("cmp", source / "sparse", back / "sparse").stdout == ""
    assert (back / "sparse").stat().st_blocks * 512 < 5_000_000


def test_rsync_in_place_with_holes_links_and_attributes(place: Path, source_tree: Path) -> None:
    there = place / "there"
    source = source_tree.parent / "tree" / "email"
    run("rsync", "-aHAXS", f"{source}/", there)
    (there / "message.py").write_bytes(b"changed")
    run("rsync", "-aHAX", "--inplace", "--checksum", f"{source}/", there)
    again = run("rsync", "-aHAXS", "--checksum", "--delete", "--dry-run", "--itemize-changes", f"{source}/", there)
    assert again.stdout == ""


def test_npm_installs_packages(place: Path) -> None:
    """Local ones: a test needs no registry. Links in node_modules/.bin, a lock file, and scripts that run."""
    tool, project = place / "tool", place / "project"
    for directory, text in (
        (tool, '{"name": "tool", "version": "1.0.0", "bin": {"tool": "tool.js"}}'),
        (project, '{"name": "project", "version": "1.0.0", "scripts": {"go": "tool"}}'),
    ):
        directory.mkdir()
        (directory / "package.json").write_text(text)
    (tool / "tool.js").write_text("#!/usr/bin/env node\nconsole.log('it runs')\n")
    env = {"npm_config_cache": f"{place}/cache", "npm_config_offline": "true", "npm_config_update_notifier": "no"}
    run("npm", "pack", "--silent", cwd=tool, env=env)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", tool / "tool-1.0.0.tgz", cwd=project, env=env)
    assert "it runs" in run("npm", "run", "--silent", "go", cwd=project, env=env).stdout
    run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=project, env=env)
    assert run(project / "node_modules/.bin/tool", cwd=project).stdout == "it runs\n"
