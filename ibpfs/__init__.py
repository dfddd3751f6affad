"""ibpfs: a mountable file system over IBP depots."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ibpfs")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"
