"""The fixtures of tests on real mounts, here as well."""

from tests.mounted.conftest import depots, directory, session, source_tree, volume, volumes

__all__ = ["depots", "directory", "session", "source_tree", "volume", "volumes"]
