"""mail.toml."""

from pathlib import Path

import pytest

from ibpfs.errors import UsageError
from ibpfs.mail.delivery import Program, Smarthost
from ibpfs.mail.settings import Settings, load_settings, parse_host, read_settings


def test_all_of_it() -> None:
    found = read_settings('volume = "home"\nthreshold = "10M"\nsigned = "wrap"\nsmarthost = "mail.example:25"\n')
    assert (found.rules.threshold, found.rules.wrap, found.volume) == (10 << 20, True, "home")
    assert found.next_hop == Smarthost("mail.example", 25)
    assert Settings().next_hop == Program("/usr/sbin/sendmail")
    assert found.over({"volume": "other", "signed": None}).volume == "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "Expected"), ("treshold = '5M'", "knows no 'treshold'"), ("threshold = 5", "text in quotes"),
        ("threshold = 'much'", "not a size"), ("expires = '5s'", "of no use"), ("on_error = 'drop'", "one of send"),
        ("directory = '/etc'", "a name on the mount"), ("directory = 'a/../..'", "a name on the mount"),
        ("directory = ''", "a name on the mount"), ("directory = '.'", "a name on the mount"),
        ("signed = ''", "one of keep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_settings(text, "/etc/mail.toml")
    assert str(caught.value).startswith("/etc/mail.toml: ")


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IBPFS_MAIL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_settings() == Settings()
    (tmp_path / "ibpfs").mkdir()
    (tmp_path / "ibpfs" / "mail.toml").write_text('volume = "one"')
    assert load_settings().volume == "one"
    other = tmp_path / "other.toml"
    other.write_text('volume = "two"')
    monkeypatch.setenv("IBPFS_MAIL_CONFIG", str(other))
    assert load_settings().volume == "two"
    with pytest.raises(UsageError, match="no such file"):
        load_settings(str(tmp_path / "none"))


def test_a_password_that_others_could_read(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret\n")
    path.chmod(0o644)
    settings = Settings(smarthost="mail.example", user="ada", password_file=str(path))
    with pytest.raises(UsageError, match="chmod 600"):
        _ = settings.next_hop
    path.chmod(0o600)
    found = settings.next_hop
    assert isinstance(found, Smarthost)
    assert found.password == "secret"
    assert "secret" not in repr(found)


@pytest.mark.parametrize("text", ["", ":25", "host:", "host:x", "host:70000"])
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(UsageError):
        parse_host(text, 25)


def test_hosts() -> None:
    assert parse_host("host", 25) == ("host", 25)
    assert parse_host("host:26", 25) == ("host", 26)
    assert parse_host("[::1]:26", 25) == ("::1", 26)
    assert parse_host("[::1]", 25) == ("::1", 25)


def test_a_password_goes_through_tls_or_nowhere() -> None:
    settings = {"security": "none", "user": "ada"}
    with pytest.raises(UsageError, match="TLS"):
        assert Settings(smarthost="mail.example:25", **settings).next_hop
    for host in ("localhost:25", "127.0.0.1", "[::1]:25"):
        assert isinstance(Settings(smarthost=host, **settings).next_hop, Smarthost)
