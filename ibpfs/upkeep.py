"""What the owner of a volume does for `ibpfs warm` and its kin: commands that need no key, mounted or not."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ibpfs.control import Command, Progress
from ibpfs.errors import UsageError
from ibpfs.exnode_store.draining import Draining
from ibpfs.exnode_store.findings import Findings
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.schema import ROOT_INO
from ibpfs.exnode_store.scrubbing import Scrubbing
from ibpfs.exnode_store.settling import Settling
from ibpfs.exnode_store.upkeep import Upkeep


class UpkeepCommands:
    """The commands of one open volume."""

    def __init__(
        self, upkeep: Upkeep, draining: Draining, scrubbing: Scrubbing, findings: Findings, settling: Settling
    ) -> None:
        self._findings = findings
        self._upkeep = upkeep
        self._settling = settling
        self._scrubbing = scrubbing
        self._draining = draining

    def commands(self) -> dict[str, Command]:
        return {
            "warm": self._warm,
            "repair": self._repair,
            "scrub": self._scrub,
            "doctor": self.doctor,
            "warm-cap": self._write_capability,
            "warm-merge": self._merge,
            "policy": self._policy,
            "policy-set": self._set_policy,
            "depots-label": self._label,
            "depots-drain": self._drain,
            "depots-remove": self._remove,
        }

    async def _warm(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        await self._settling.go_on(progress)
        return await self._upkeep.warm(progress, every=request.get("every") is True)

    async def _repair(self, _: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return await self._upkeep.repair(progress)

    async def _scrub(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        """Set the period, in seconds; null: never."""
        period = request.get("period")
        if not isinstance(period, int | float | None):
            raise UsageError("the period must be a number of seconds")
        await self._scrubbing.set_period(period)
        return self._scrubbing.state()

    async def doctor(self, _: Mapping[str, Any], __: Progress) -> list[dict[str, Any]]:
        """What is wrong with depots, leases and copies."""
        return [asdict(one) for one in await self._findings.collect()]

    async def _write_capability(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        return await self._upkeep.write_capability(_path(request))

    async def _merge(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return await self._upkeep.merge(_path(request), progress)

    async def _policy(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        return _described(self._settling.policies.of(_inode(request)))

    async def _set_policy(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """`recursive`: and what is stored of the tree; returns when that is done, or can go no further now."""
        settings = {str(key): str(value) for key, value in (request.get("settings") or {}).items()}
        policy = self._settling.walks.set(_inode(request), settings, recursive=request.get("recursive") is True)
        done = request.get("recursive") is not True or await self._upkeep.settle(self._settling, progress)
        unknown = sorted(set(policy.labels) - self._draining.label_names())
        return _described(policy) | {"settled": done, "unknown_labels": unknown}

    async def _label(self, request: Mapping[str, Any], _: Progress) -> None:
        labels = {str(key): str(value) for key, value in (request.get("labels") or {}).items()}
        self._draining.label(str(request.get("address")), labels)

    async def _drain(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return {"imported": await self._draining.drain(str(request.get("address")), progress)}

    async def _remove(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        return {"removed": await self._draining.remove(str(request.get("address")))}


def _inode(request: Mapping[str, Any]) -> int:
    ino = request.get("ino", ROOT_INO)
    if not isinstance(ino, int):
        raise UsageError("ino must be a number")
    return ino


def _described(policy: Policy) -> dict[str, Any]:
    return {
        "policy": policy.id,
        "copies": policy.copies,
        "min_copies": policy.min_copies,
        "labels": list(policy.labels),
        "code": policy.code,
    }


def _path(request: Mapping[str, Any]) -> Path:
    path = Path(str(request.get("file")))
    if not path.is_absolute():
        raise UsageError("the file's path must be absolute")
    return path
