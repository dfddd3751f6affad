"""POSIX access control lists as the kernel passes them in `system.posix_acl_*`: parsing, rules, nothing stored.

The rules are those of POSIX.1e draft 17, section 23, as Linux reads it.
"""

import struct
from dataclasses import dataclass, replace
from itertools import groupby

from ibpfs.errors import InvalidArgument

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
#: What an entry without a qualifier has for an id.
NO_ID = 0xFFFFFFFF

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NAMED = frozenset({USER, GROUP})
_TAGS = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
_SHIFTS = {USER_OBJ: 6, GROUP_OBJ: 3, MASK: 3, OTHER: 0}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list: whom it is about (`id` for USER and GROUP) and the rwx bits."""

    tag: int
    permissions: int
    id: int = NO_ID


Acl = tuple[Entry, ...]


def parse(value: bytes) -> Acl:
    """Return the entries of an attribute's value, none for an empty list. InvalidArgument when it is no sound list."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise InvalidArgument("not an access control list")
    if _HEADER.unpack_from(value) != (_VERSION,):
        raise InvalidArgument("an access control list of an unknown version")
    entries = (Entry(tag, bits, who) for tag, bits, who in _ENTRY.iter_unpack(value[_HEADER.size :]))
    acl = tuple(entry if entry.tag in _NAMED else replace(entry, id=NO_ID) for entry in entries)
    if acl and not _is_sound(acl):
        raise InvalidArgument("an access control list with missing, repeated or misplaced entries")
    return acl


def pack(acl: Acl) -> bytes:
    """Return the list as an attribute's value."""
    entries = (_ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in acl)
    return _HEADER.pack(_VERSION) + b"".join(entries)


def _is_sound(acl: Acl) -> bool:
    tags = [entry.tag for entry in acl]
    if any(tag not in _TAGS for tag in tags) or any(entry.permissions & ~7 for entry in acl):
        return False
    if any(entry.id == NO_ID for entry in acl if entry.tag in _NAMED):
        return False
    order = [tag for tag, _ in groupby(tags)]
    once = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) and tags.count(MASK) <= 1
    # A list with named entries needs a mask.
    return order == sorted(order) and once and (MASK in tags or not _NAMED & set(tags))


def is_trivial(acl: Acl) -> bool:
    """Whether the mode's nine bits say all that the list says."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in acl)


def apply_to_mode(acl: Acl, mode: int) -> int:
    """Return `mode` with the permission bits that setting the list gives: the group's are the mask."""
    group = _group_class(acl)
    for entry in acl:
        if entry.tag in (USER_OBJ, OTHER, group):
            shift = _SHIFTS[entry.tag]
            mode = mode & ~(7 << shift) | entry.permissions << shift
    return mode


def change_mode(acl: Acl, mode: int) -> Acl:
    """Return the access list after a chmod to `mode`."""
    group = _group_class(acl)
    return tuple(
        replace(entry, permissions=mode >> _SHIFTS[entry.tag] & 7)
        if entry.tag in (USER_OBJ, OTHER, group)
        else entry
        for entry in acl
    )


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """Return the access list and mode of a file created with `mode` where `default` is the directory's default list."""
    group = _group_class(default)
    entries = []
    for entry in default:
        if entry.tag in (USER_OBJ, OTHER, group):
            shift = _SHIFTS[entry.tag]
            entry = replace(entry, permissions=entry.permissions & mode >> shift)
            mode = mode & ~(7 << shift) | entry.permissions << shift
        entries.append(entry)
    return tuple(entries), mode


def _group_class(acl: Acl) -> int:
    # chmod's group bits are the mask where there is one (POSIX.1e 23.1.5).
    return MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
