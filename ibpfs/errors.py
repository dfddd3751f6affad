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
