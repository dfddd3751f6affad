"""The exceptions of ibpfs. They are mapped to errno and exit codes only at the borders."""


class IbpfsError(Exception):
    """Base of everything ibpfs raises on purpose; its text is one line for a person."""


class UsageError(IbpfsError):
    """The command line or a configuration says something that cannot be done."""


class VolumeError(IbpfsError):
    """A volume is missing, damaged, locked or of an unknown format."""


class WrongKey(VolumeError):
    """No key slot opens with the secret that was given."""


class VolumeBusy(VolumeError):
    """Another process owns the volume."""


class DataError(IbpfsError):
    """Bytes of a file cannot be had or are not what was written: names depot and allocation."""


class NoSpace(IbpfsError):
    """The depots, or the local disk, have no room."""


class DeadlineExceeded(IbpfsError):
    """The caller's deadline passed before the depots answered."""


class NotFound(IbpfsError):
    """No such name, or no such inode."""


class NameExists(IbpfsError):
    """The name, or the extended attribute that was to be new, is there already."""


class NotEmpty(IbpfsError):
    """The directory has entries."""


class NotADirectory(IbpfsError):
    """A directory is needed there."""


class IsADirectory(IbpfsError):
    """Anything but a directory is needed there."""


class NameTooLong(IbpfsError):
    """A name is longer than 255 bytes, or a symlink's target than 4095."""


class TooManyLinks(IbpfsError):
    """The inode has as many links as one may have."""


class InvalidArgument(IbpfsError):
    """What is asked makes no sense: a directory moved into itself, flags that exclude each other."""


class NotPermitted(IbpfsError):
    """Nobody may do that to this kind of inode."""


class NotSupported(IbpfsError):
    """There is no such thing on this file system."""


class NoAttribute(IbpfsError):
    """The inode has no extended attribute of that name."""


class AttributeTooBig(IbpfsError):
    """An extended attribute's value is longer than 64 KiB."""


class AttributeNameTooLong(IbpfsError):
    """An extended attribute's name is longer than 255 bytes."""
