"""ibpfs-thunderbird-host: what the Thunderbird add-on starts and talks to on standard input and output."""

import os
import sys
from typing import BinaryIO

from ibpfs.errors import IbpfsError
from ibpfs.mail.filelink import FileLink
from ibpfs.mail.native_messages import BadMessage, Reader, frame
from ibpfs.mail.settings import load_settings
from ibpfs_tools.mail_sharing import MountSharer

_PIECE = 1 << 18


def main() -> None:
    """What Thunderbird says in argv (manifest, id of the add-on) is not new. Nothing but messages goes to stdout."""
    source, out = sys.stdin.buffer, sys.stdout.buffer
    try:
        sharer = MountSharer(load_settings())
    except IbpfsError as error:
        out.write(frame({"op": "error", "error": str(error)}))
        sys.exit(os.EX_CONFIG)
    link = FileLink(sharer, sharer.describe)
    try:
        sys.exit(converse(link, source, out))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        link.close()


def converse(link: FileLink, source: BinaryIO, out: BinaryIO) -> int:
    """Answer until the other side stops; returns the exit code."""
    reader = Reader()
    while data := os.read(source.fileno(), _PIECE):
        try:
            for request in reader.feed(data):
                out.write(frame(link.answer(request)))
                out.flush()
        except BadMessage as error:
            out.write(frame({"op": "error", "error": str(error)}))
            out.flush()
            return os.EX_DATAERR
    return os.EX_OK if reader.is_between else os.EX_DATAERR


if __name__ == "__main__":
    main()
