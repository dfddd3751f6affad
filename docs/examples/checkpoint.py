"""A long computation that survives the loss of its machine and of a depot: it counts primes, and leaves checkpoints.

    python checkpoint.py STATE LIMIT --depot ibp://HOST:PORT --depot ibp://HOST:PORT... [--every N]

Every N numbers its state goes to the first depot that takes it, and from there, by a copy between depots, to a second
one; then the file STATE (small: two capabilities and no data) is replaced, and the checkpoint before is given back.
Killed at any moment, on any machine, the same command goes on from the newest checkpoint that STATE names, from
whichever depot still has it. Depots may be others than before: the next checkpoint goes to those that are named now.
"""

import argparse
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Capability, CapabilitySet
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import DepotError, DepotUnreachable

COPIES = 2
LEASE = 24 * 3600
#: Seconds that a depot gets for a command.
PATIENCE = 10


class Checkpoints:
    """The newest state, on up to COPIES depots."""

    def __init__(self, file: Path, addresses: list[str]) -> None:
        self._file = file
        self._addresses = [Address.parse(address) for address in addresses]
        self._copies: list[dict[str, str]] = []

    async def load(self) -> dict[str, Any] | None:
        """Return the state as it was saved last; None when it never was."""
        if not self._file.exists():
            return None
        told = json.loads(self._file.read_text())
        self._copies = told["copies"]
        for copy in self._copies:
            read = Capability.parse(copy["read"])
            with suppress(DepotError, DepotUnreachable, trio.TooSlowError):
                async with DepotClient(Address.of(read)) as depot:
                    with trio.fail_after(PATIENCE):
                        data = await depot.load(read.wire_key, 0, told["length"])
                if hashlib.sha256(data).hexdigest() == told["sha256"]:
                    print(f"resumed from {Address.of(read)}", flush=True)
                    state: dict[str, Any] = json.loads(data)
                    return state
        raise SystemExit("no depot has the checkpoint any more")

    async def save(self, state: dict[str, Any]) -> None:
        data = json.dumps(state).encode()
        made: list[CapabilitySet] = []
        for address in self._addresses:
            with suppress(DepotError, DepotUnreachable, trio.TooSlowError), trio.fail_after(PATIENCE):
                made.append(await self._put(address, data, made))
            if len(made) == COPIES:
                break
        if not made:
            raise SystemExit("no depot takes a checkpoint")
        before, self._copies = self._copies, [_rendered(one) for one in made]
        told = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest(), "copies": self._copies}
        fresh = self._file.with_suffix(".new")
        fresh.touch(mode=0o600)  # capabilities are secrets
        fresh.write_text(json.dumps(told))
        fresh.replace(self._file)  # from here on the new one counts
        for copy in before:
            await _release(Capability.parse(copy["manage"]))

    async def _put(self, address: Address, data: bytes, made: list[CapabilitySet]) -> CapabilitySet:
        """From here the first time, from depot to depot after that."""
        async with DepotClient(address) as depot:
            caps = await depot.allocate(len(data), LEASE)
            if not made:
                await depot.store(caps.write.wire_key, [data])
                return caps
        source = made[0].read
        async with DepotClient(Address.of(source)) as depot:
            await depot.copy(source.wire_key, caps.write, 0, len(data), seconds=PATIENCE)
        return caps


def _rendered(caps: CapabilitySet) -> dict[str, str]:
    return {"read": caps.read.render(), "manage": caps.manage.render()}


async def _release(manage: Capability) -> None:
    """What cannot be given back ends with its lease."""
    with suppress(DepotError, DepotUnreachable), trio.move_on_after(PATIENCE):
        async with DepotClient(Address.of(manage)) as depot:
            await depot.decr(manage.wire_key)


async def compute(file: Path, limit: int, addresses: list[str], every: int) -> None:
    checkpoints = Checkpoints(file, addresses)
    state = await checkpoints.load() or {"next": 2, "primes": 0}
    print(f"begins at {state['next']}", flush=True)
    while state["next"] < limit:
        stop = min(state["next"] + every, limit)
        state["primes"] += sum(map(is_prime, range(state["next"], stop)))
        state["next"] = stop
        await checkpoints.save(state)
        print(f"done up to {stop}", flush=True)
    print(f"{state['primes']} primes below {limit}")


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("limit", type=int)
    parser.add_argument("--depot", action="append", required=True)
    parser.add_argument("--every", type=int, default=10_000)
    words = parser.parse_args()
    trio.run(compute, words.state, words.limit, words.depot, words.every)


if __name__ == "__main__":
    main()
