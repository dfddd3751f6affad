"""The man pages, from the same text as --help: `python -m ibpfs_tools.manpages DIRECTORY`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ibpfs_tools.depot import depot
from ibpfs_tools.depot_stat import stat
from ibpfs_tools.depot_units import units
from ibpfs_tools.fsck import fsck
from ibpfs_tools.mkfs import mkfs
from ibpfs_tools.mount import mount
from ibpfs_tools.sendmail import sendmail
from ibpfs_tools.umount import umount
from ibpfs_tools.undelete import undelete
from ibpfs_tools.verbs import ibpfs

#: command, name, section
PAGES: tuple[tuple[click.Command, str, int], ...] = (
    (mkfs, "mkfs.ibpfs", 8),
    (mount, "mount.ibpfs", 8),
    (umount, "umount.ibpfs", 8),
    (fsck, "fsck.ibpfs", 8),
    (depot, "ibpfs-depot", 8),
    (stat, "ibpfs-depot stat", 8),
    (undelete, "ibpfs-depot undelete", 8),
    (units, "ibpfs-depot units", 8),
    (sendmail, "ibpfs-sendmail", 1),
    (ibpfs, "ibpfs", 1),
)


def pages() -> Iterator[tuple[str, str]]:
    """Yield file names and texts."""
    for command, name, section in PAGES:
        yield f"{_title(name)}.{section}", page(command, name, section)


def page(command: click.Command, name: str, section: int) -> str:
    """Return one man page in the man(7) macros."""
    context = click.Context(command, info_name=name, **command.context_settings)
    lines = [f'.TH "{_title(name).upper()}" "{section}" "" "ibpfs" "ibpfs"', ".SH NAME"]
    lines += [f"{_plain(_title(name))} \\- {_plain(command.get_short_help_str(200).rstrip('.'))}", ".SH SYNOPSIS"]
    lines += [f".B {_plain(name)}", _plain(" ".join(command.collect_usage_pieces(context))), ".SH DESCRIPTION"]
    lines += _prose(command.help or "")
    lines += [".SH OPTIONS", *_options(command, context)]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS", *_verbs(command, context)]
    if command.epilog:
        lines += [".SH NOTES", *_prose(command.epilog)]
    others = ", ".join(f"\\fB{_plain(_title(other))}\\fR({at})" for _, other, at in PAGES if other != name)
    return "\n".join([*lines, ".SH SEE ALSO", others]) + "\n"


def _title(name: str) -> str:
    return name.replace(" ", "-")


def _verbs(group: click.Group, context: click.Context, before: str = "") -> Iterator[str]:
    for word in group.list_commands(context):
        verb, name = group.get_command(context, word), f"{before}{word}"
        assert verb is not None
        inner = click.Context(verb, info_name=word, parent=context, **verb.context_settings)
        if isinstance(verb, click.Group):
            yield from _verbs(verb, inner, f"{name} ")
            continue
        yield f".SS {_plain(name)} {_plain(' '.join(verb.collect_usage_pieces(inner)))}"
        yield from _prose(verb.help or "")
        yield from _options(verb, inner, without=("help", "version"))
        yield from _prose(verb.epilog or "")


def _options(command: click.Command, context: click.Context, without: tuple[str, ...] = ()) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and parameter.name not in without:
            yield from (".TP", f".B {_plain(record[0])}", _plain(record[1]))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs; one that click is told not to wrap stays as it is."""
    for paragraph in _clean(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from (".PP", ".nf", _plain(paragraph.removeprefix("\b\n")), ".fi")
        elif paragraph:
            yield from (".PP", _plain(" ".join(paragraph.split())))


def _clean(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip(" \n").splitlines())


def _plain(text: str) -> str:
    """Text without meaning to roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in escaped.splitlines())


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
