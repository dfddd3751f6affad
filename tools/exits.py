"""Where exceptions become exit codes: the one table for all commands, and one line on standard error."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import click

from ibpfs.control import Refused
from ibpfs.errors import IbpfsError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class ExitCodes:
    """The numbers a family of commands ends with."""

    failure: int  # what was asked for could not be done
    usage: int  # the command line says something that cannot be done
    system: int  # the operating system refused something
    internal: int  # a bug
    interrupted: int


#: ibpfs, mkfs.ibpfs, ibpfs-depot
COMMAND = ExitCodes(failure=1, usage=2, system=1, internal=70, interrupted=130)
#: mount(8)
MOUNT = ExitCodes(failure=32, usage=1, system=2, internal=4, interrupted=8)
#: fsck(8)
FSCK = ExitCodes(failure=8, usage=16, system=8, internal=8, interrupted=32)


class ExitWith(IbpfsError):
    """An error with an exit code of its own, within its command's family."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(command: click.Command, codes: ExitCodes, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `command` and end the process; every error is one line, no traceback (IBPFS_DEBUG=1 shows it)."""
    name = command.name or "ibpfs"
    _open_closed_streams()
    try:
        result = command.main(arguments, prog_name=name, standalone_mode=False)
        if sys.stdout is not None:  # ibpfs-depot gives it up when nobody listens
            sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:  # many lines, and an error all the same
        click.echo(error.format_message(), err=True)
        sys.exit(codes.usage)
    except BrokenPipeError:  # the reader of our output went away: no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as error:
        leave(name, error, codes)
    sys.exit(result if isinstance(result, int) else 0)


def leave(name: str, error: BaseException, codes: ExitCodes) -> NoReturn:
    """End the process as `error` wants it."""
    if isinstance(error, SystemExit):
        raise error
    line, code = explain(error, codes)
    click.echo(f"{name}: {line}", err=True)
    if os.environ.get("IBPFS_DEBUG"):
        traceback.print_exception(error)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Where the caller has closed standard input, output or error: no file and no pipe of ours gets its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def explain(error: BaseException, codes: ExitCodes) -> tuple[str, int]:
    """Return the line for a person and the exit code."""
    error = _innermost(error)
    match error:
        case ExitWith():
            return _one_line(str(error)), error.code
        case UsageError():
            return _one_line(str(error)), codes.usage
        case Refused():  # the owner of the volume speaks in the codes of `ibpfs`
            return _one_line(str(error)), codes.usage if error.exit == COMMAND.usage else codes.failure
        case IbpfsError():
            return _one_line(str(error)), codes.failure
        case click.UsageError():
            return f"{_one_line(error.format_message())} (see --help)", codes.usage
        case click.ClickException():
            return _one_line(error.format_message()), codes.failure
        case click.Abort() | KeyboardInterrupt():
            return "interrupted", codes.interrupted
        case OSError():
            place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            return _one_line(f"{place}{error.strerror or error}"), codes.system
    if logging.getLogger().handlers:  # a volume's log; never the terminal
        logging.getLogger(__name__).error("internal error", exc_info=error)
    return f"internal error: {type(error).__name__}: {_one_line(str(error))} (please report it)", codes.internal


def each(things: Sequence[T], name: Callable[[T], str], work: Callable[[T], None], codes: ExitCodes) -> None:
    """Do it with all, whatever becomes of one; then say what became of those that it failed with.

    `name` says which one that was, where there are several.
    """
    if len(things) == 1:
        work(things[0])
        return
    troubles: list[ExitWith] = []
    for one in things:
        try:
            work(one)
        except (IbpfsError, OSError) as error:
            line, code = explain(error, codes)
            troubles.append(ExitWith(f"{name(one)}: {line}", code))
    for trouble in troubles[:-1]:
        click.echo(f"ibpfs: {trouble}", err=True)
    if troubles:
        raise troubles[-1]


def _innermost(error: BaseException) -> BaseException:
    """The one error inside nested groups of one, else the first that is ours."""
    while isinstance(error, BaseExceptionGroup):
        known = [inner for inner in error.exceptions if isinstance(inner, IbpfsError | OSError | BaseExceptionGroup)]
        error = known[0] if known else error.exceptions[0]
    return error


def _one_line(text: str) -> str:
    """Harmless on a terminal: a name in it may be a stranger's. What is no UTF-8 in names is shown escaped, later."""
    return "".join(one if one.isprintable() or "\ud800" <= one <= "\udfff" else "?" for one in " ".join(text.split()))
