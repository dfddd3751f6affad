"""What the owner of a volume does for `ibpfs warm` and its kin: commands that need no key, mounted or not."""

from collections.abc import Mapping
from typing import Any

from ibpfs.control import Command, Progress
from ibpfs.exnode_store.upkeep import Upkeep


class UpkeepCommands:
    """The commands of one open volume."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    def commands(self) -> dict[str, Command]:
        return {"warm": self._warm, "repair": self._repair}

    async def _warm(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return await self._upkeep.warm(progress, every=request.get("every") is True)

    async def _repair(self, _: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return await self._upkeep.repair(progress)
