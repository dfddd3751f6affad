"""Our depot as a program of its own, with the manners of older ones: no alias allocations; nothing is given up while
STORE/keeps-all exists."""

import sys
from pathlib import Path

from ibpfs.depot.server import commands
from ibpfs.depot.wire import ErrorCode, error_for
from ibpfs.depot.wire import events as ev
from ibpfs_tools.depot import main

FLAG = "keeps-all"
_decrement = commands._HANDLERS[ev.Decrement]


def _unknown(_: commands.Desk, __: ev.Request) -> ev.Reply:
    raise error_for(ErrorCode.UNKNOWN_FUNCTION)


def _reluctant(desk: commands.Desk, request: ev.Decrement) -> ev.Reply:
    if (Path(sys.argv[sys.argv.index("--store") + 1]) / FLAG).exists():
        raise error_for(ErrorCode.CAP_ACCESS_DENIED)
    return _decrement(desk, request)


if __name__ == "__main__":
    for kind in (ev.AliasAllocate, ev.AliasProbe, ev.AliasIncrement, ev.AliasDecrement, ev.AliasChange):
        commands._HANDLERS[kind] = _unknown
    commands._HANDLERS[ev.Decrement] = _reluctant
    main()
