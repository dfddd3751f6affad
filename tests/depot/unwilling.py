"""Our depot as a program of its own, with the manners of others: no renewal while STORE/renews-nothing exists."""

import sys
from pathlib import Path

from ibpfs.depot.server import commands
from ibpfs.depot.wire import ErrorCode, error_for
from ibpfs.depot.wire import events as ev
from ibpfs_tools.depot import main

FLAG = "renews-nothing"
_change = commands._HANDLERS[ev.Change]


def _unwilling(desk: commands.Desk, request: ev.Change) -> ev.Reply:
    if (Path(sys.argv[sys.argv.index("--store") + 1]) / FLAG).exists():
        raise error_for(ErrorCode.LONG_DURATION)
    return _change(desk, request)


if __name__ == "__main__":
    commands._HANDLERS[ev.Change] = _unwilling
    main()
