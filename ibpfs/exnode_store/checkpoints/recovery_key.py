"""Telling the recovery string of an open volume, and whether the last one that was told still leads somewhere."""

import json

from ibpfs.config import VolumeConfig, VolumePaths, dump_config, save_config
from ibpfs.errors import VolumeError
from ibpfs.exnode_store.checkpoints.keeper import Checkpoints
from ibpfs.exnode_store.checkpoints.log_rows import ROOT
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.creation import checkpoint_facts, new_recovery_secret, recovery_slot
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.keys import VolumeKeys, kept_secret

_PRINTED = "recovery_printed"


def prepare_checkpoints(db: Database, config: VolumeConfig, keys: VolumeKeys) -> None:
    """Make their key for a volume of a release that had none."""
    if "checkpoint_key" not in db.facts:
        with db.transaction():
            for name, value in checkpoint_facts(keys, config.uuid).items():
                db.set_fact(name, value)


class RecoveryKey:
    """Of one volume, with its keys."""

    def __init__(
        self, paths: VolumePaths, db: Database, config: VolumeConfig, keys: VolumeKeys, checkpoints: Checkpoints
    ) -> None:
        self._paths = paths
        self._db = db
        self._config = config
        self._keys = keys
        self._checkpoints = checkpoints

    async def tell(self) -> Recovery:
        """The string, after a checkpoint, so that it leads to one. VolumeError while depots take none."""
        secret = kept_secret(self._config.slots, self._keys, self._config.uuid)
        if secret is None:
            secret = self._add_slot()
        trouble = await self._checkpoints.try_make()
        rows = self._checkpoints.rows
        copies = rows.in_use(ROOT)
        if trouble or not copies:
            raise VolumeError(f"{self._paths.root}: there is no checkpoint on depots for it to lead to: {trouble}")
        with self._db.transaction() as db:
            db.set_fact(_PRINTED, json.dumps([copy.read.label for copy in copies]))
        await self._db.sync()
        return Recovery(secret, [rows.place(copy) for copy in copies])

    def _add_slot(self) -> bytes:
        """The secret of the one there is was told once and not kept: from now on there is another, too."""
        secret = new_recovery_secret()
        self._config.slots.append(recovery_slot(secret, self._keys, self._config.uuid))
        with self._db.transaction() as db:
            db.set_fact("volume_toml", dump_config(self._config))
            self._checkpoints.rows.drop(self._checkpoints.rows.copies(ROOT))  # their heads do not have the slot
        save_config(self._paths, self._config)
        return secret


def printed_holders(db: Database, checkpoints: Checkpoints) -> tuple[int, int] | None:
    """(how many copies of the root the last printed string names, how many of them still are); None: none printed."""
    printed = db.facts.get(_PRINTED)
    if printed is None:
        return None
    named = set(json.loads(printed))
    held = {copy.read.label for copy in checkpoints.roots_held()}
    return len(named), len(named & held)


def is_last_named(db: Database, checkpoints: Checkpoints, depot: int) -> bool:
    """Whether the last printed string leads to nothing but this depot."""
    named = set(json.loads(db.facts.get(_PRINTED, "[]")))
    held = [copy for copy in checkpoints.rows.copies(ROOT) if copy.read.label in named]
    staying = checkpoints.logs.staying(held)
    return bool(held) and any(copy.depot == depot for copy in held) and all(copy.depot == depot for copy in staying)


def advice(db: Database, checkpoints: Checkpoints, volume: str) -> str:
    """What status asks for; '' when the printed string is as good as it was."""
    held = printed_holders(db, checkpoints)
    if held is None:
        if not checkpoints.is_active:
            return ""
        return f"no recovery string that leads to the checkpoints was printed yet: ibpfs recovery-key {volume}"
    named, left = held
    if left >= min(2, named):
        return ""
    return f"the printed recovery string leads to {left} of {named} depots: ibpfs recovery-key {volume} prints another"
