"""ibpfs: a mountable file system over IBP depots."""

__version__: str


def __getattr__(name: str) -> str:
    """The version, looked up when somebody asks: it takes an eighth of a short command's time."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ibpfs")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0+unknown"
