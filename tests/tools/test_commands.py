"""What all command lines have in common."""

from ibpfs_tools.commands import escaped
from ibpfs_tools.snapshot import describe


def test_names_in_lists_are_whole_and_harmless() -> None:
    assert escaped("caf\u00e9 1\nx\x1b[31m") == "caf\u00e9 1\\x0ax\\x1b[31m"
    assert escaped("\udcff") == "\\udcff"
    row = {"name": "a\nb", "trouble": None, "created_at": 0, "files": 3, "own_bytes": 0}
    assert describe(row).startswith("a\\x0ab  ")
    assert "\n" not in describe({**row, "trouble": "lost"})
