"""Volumes by word, volume.toml and its damage, key files, quantities."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.config import (
    VolumeConfig,
    VolumePaths,
    dump_config,
    find_volume,
    load_config,
    parse_config,
    read_key_file,
    save_config,
    write_key_file,
)
from ibpfs.errors import UsageError, VolumeError
from ibpfs.quantities import format_size, parse_duration, parse_fraction, parse_size

CONFIG = VolumeConfig(bytes(range(16)), 1, False, "2026-01-02T03:04:05Z", [{"kind": "keyfile"}], [{"epoch": 1}], [])


def test_config_round_trip(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path)
    save_config(paths, CONFIG)
    assert load_config(paths) == CONFIG
    assert paths.properties.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["volume.toml"]


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_any_changed_byte_of_volume_toml_is_one_line(position: int, value: int) -> None:
    text = bytearray(dump_config(CONFIG).encode())
    text[position % len(text)] = value
    if bytes(text) == dump_config(CONFIG).encode():
        return
    with pytest.raises(VolumeError) as caught:
        parse_config(text.decode("latin-1"), Path("/v/volume.toml"))
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_text(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path)
    with pytest.raises(VolumeError, match="missing; fsck"):
        load_config(paths)
    paths.properties.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(VolumeError, match="not text"):
        load_config(paths)


def test_future_format_is_refused() -> None:
    future = VolumeConfig(bytes(16), 2, False, "", [], [], [])
    with pytest.raises(VolumeError, match="format 2 is not known"):
        parse_config(dump_config(future), Path("/v/volume.toml"))


def test_what_a_word_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert find_volume("home", create=True).root == tmp_path / "data" / "ibpfs" / "home"
    assert find_volume("./home", create=True).root == tmp_path / "home"
    save = VolumePaths(tmp_path / "home")
    save.root.mkdir()
    save_config(save, CONFIG)
    assert find_volume("home").root == tmp_path / "home"
    with pytest.raises(VolumeError, match="no volume there; make one with"):
        find_volume("other")
    with pytest.raises(UsageError):
        find_volume("")


def test_key_file(tmp_path: Path) -> None:
    path = tmp_path / "volume.key"
    write_key_file(path, b"\x01" * 32)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = read_key_file(path)
    assert (secret.kind, secret.value) == ("keyfile", b"\x01" * 32)
    assert (b"\x01" * 4).hex() not in repr(secret)
    assert "x01" not in repr(secret)
    path.write_bytes(b"rubbish")
    with pytest.raises(VolumeError, match="not a key file"):
        read_key_file(path)


def test_sizes() -> None:
    assert parse_size("4096") == 4096
    assert parse_size("16M") == parse_size("16MiB") == parse_size("16mb") == 16 << 20
    assert parse_size("1.5G") == 3 << 29
    assert parse_size("1B") == 1
    for wrong in ("", "M", "-1", "1X", "1 000"):
        with pytest.raises(UsageError, match="not a size"):
            parse_size(wrong)
    assert format_size(0) == "0 B"
    assert format_size(17 << 20) == "17.0 MiB"


def test_durations() -> None:
    assert parse_duration("20") == 20
    assert parse_duration("500ms") == 0.5
    assert parse_duration("5m") == 300
    assert parse_duration("30d") == 30 * 86400
    for wrong in ("", "d", "1 fortnight", "-5"):
        with pytest.raises(UsageError, match="not a duration"):
            parse_duration(wrong)


def test_fractions() -> None:
    assert parse_fraction("5%") == parse_fraction("0.05") == 0.05
    for wrong in ("100%", "-1", "x", "nan"):
        with pytest.raises(UsageError):
            parse_fraction(wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others; CI runs this as root")
def test_files_left_by_another_user_are_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    volume = tmp_path / "v"
    (volume / "spool").mkdir(parents=True)
    save_config(VolumePaths(volume), CONFIG)
    volume.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-") and parent.stat().st_uid == os.geteuid():
            parent.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                load_config(VolumePaths(volume))
            except VolumeError as error:
                os._exit(0 if "belongs to root" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
