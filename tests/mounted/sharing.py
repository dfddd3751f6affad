"""Sharing and fetching as people do."""

import json
import random
import re
from pathlib import Path
from typing import Any

from .running import run

DATA = random.Random(7).randbytes(3_000_000)
LOADS = re.compile(rb"\d+ 8 \S+ \S+ \d+ \d+ \d+ ?\n")


def share(path: Path, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("ibpfs", "share", "--json", path, *words).stdout)
    return found


def get(home: Path, link: str, *words: object, code: int | None = 0) -> str:
    """As somebody else; what it said."""
    home.mkdir(exist_ok=True)
    done = run(
        "ibpfs", "get", "-", *words, input=link, code=code, cwd=home, env={"HOME": str(home)}, start_new_session=True
    )
    assert not link.partition("#")[2] or link.partition("#")[2] not in done.stdout + done.stderr
    return done.stdout + done.stderr


def refusal(home: Path, link: str, *words: object, code: int = 1) -> str:
    """The one line that is said."""
    said = get(home, link, "-q", *words, code=code)
    assert said.startswith("ibpfs: ")
    assert said.count("\n") == 1
    return said
