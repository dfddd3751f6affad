"""The page for operators explains every option, every key of the file, every number."""

import re
from pathlib import Path

import click
import pytest

from ibpfs.depot.server import stat
from ibpfs.depot.server.counters import Counters, Durations
from ibpfs.depot.server.metrics import DepotCollector
from ibpfs_tools.depot import depot
from ibpfs_tools.depot_config import keys

PAGE = (Path(__file__).parents[2] / "docs" / "depot.md").read_text()
CONTEXT = click.Context(depot, info_name="ibpfs-depot", **depot.context_settings)  # a command keeps its help option
OPTIONS = [option for one in depot.get_params(CONTEXT) for option in (*one.opts, *one.secondary_opts)]
HELP = depot.get_help(CONTEXT)


@pytest.mark.parametrize("option", sorted(set(OPTIONS) | set(re.findall(r"--[a-z][a-z-]+", HELP))))
def test_options(option: str) -> None:
    assert option in ("--help", "--version", "-v", "-h") or re.search(rf"`{option}[` ]", PAGE)


@pytest.mark.parametrize("key", sorted(keys(depot)))
def test_keys_are_named_like_options(key: str) -> None:
    assert f"--{key}" in OPTIONS
    assert f"`--{key}" in PAGE


def test_every_number_of_stat() -> None:
    source = Path(stat.__file__).read_text()
    for key in re.findall(r'^ +"([a-z_]+)":', source, re.MULTILINE):
        assert f"`{key}`" in PAGE


async def test_every_metric() -> None:
    collector = DepotCollector([], Counters(), Durations())  # type: ignore[arg-type]
    for family in collector.collect():
        name = family.name.removeprefix("ibpfs_depot") + ("_total" if family.type == "counter" else "")
        assert re.search(rf"`(ibpfs_depot)?{name}`", PAGE), name
