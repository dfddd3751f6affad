"""A message on its way, when all is well and when it is not."""

import errno

import pytest

from ibpfs.errors import VolumeError
from ibpfs.mail.handling import Deferred, handle, take_back
from ibpfs.mail.planning import Rules

from .letters import CORPUS, RULES, link
from .receivers import Links

TWO_FILES = (CORPUS / "same-name-twice.eml").read_bytes()


def test_files_become_links() -> None:
    links = Links()
    handled = handle(TWO_FILES, RULES, links, defer=False)
    assert [name for name, _ in links.files] == ["same.pdf", "same.pdf"]
    assert [one.id for one in handled.shares] == [link(0).locator.id, link(1).locator.id]
    assert len(handled.message) < len(TWO_FILES)
    assert handled.said[0].startswith("same.pdf (4500 bytes) goes as link")
    assert not links.revoked


def test_nothing_to_do() -> None:
    links = Links(fails_at=0)
    assert handle(TWO_FILES, Rules(), links, defer=True).message is TWO_FILES


@pytest.mark.parametrize("fails_at", [0, 1])
def test_the_original_goes_and_links_are_taken_back(fails_at: int) -> None:
    links = Links(fails_at)
    handled = handle(TWO_FILES, RULES, links, defer=False)
    assert handled.message is TWO_FILES
    assert handled.said == ("sent as it was: no volume is mounted",)
    assert links.revoked == [link(number).locator.id for number in range(fails_at)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/mnt/.ibpfs-mail/mail-1/same.pdf"),
        VolumeError("/.ibpfs-mail/mail-1/same.pdf: cannot be shared:\nit is too large"),
    ],
)
def test_no_name_of_a_file_gets_into_logs(error: Exception) -> None:
    class Full(Links):
        def share(self, *_: object) -> None:  # type: ignore[override]
            raise error

    handled = handle(TWO_FILES, RULES, Full(), defer=False)
    assert handled.message is TWO_FILES
    assert "same" not in handled.trouble
    assert "\n" not in handled.trouble
    assert "No space left" in handled.trouble or "too large" in handled.trouble
    with pytest.raises(Deferred) as caught:
        handle(TWO_FILES, RULES, Full(), defer=True)
    assert "same" not in str(caught.value)


def test_or_nothing_goes() -> None:
    links = Links(1)
    with pytest.raises(Deferred, match="no volume is mounted"):
        handle(TWO_FILES, RULES, links, defer=True)
    assert links.revoked == [link(0).locator.id]


def test_a_bug_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Links):
        def share(self, *_: object) -> None:  # type: ignore[override]
            raise ZeroDivisionError

    handled = handle(TWO_FILES, RULES, Broken(), defer=False)
    assert handled.message is TWO_FILES
    assert "could not be rewritten" in caplog.text


def test_links_that_cannot_be_taken_back_are_no_reason_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Links):
        def revoke(self, ids: object) -> None:
            raise OSError("stuck")

    take_back(handle(TWO_FILES, RULES, Links(), defer=False).shares, Stuck())
    assert "could not be revoked" in caplog.text


def test_who_is_signed_is_left_alone_and_that_is_said() -> None:
    data = (CORPUS / "signed-pgp.eml").read_bytes()
    handled = handle(data, RULES, Links(fails_at=0), defer=True)
    assert handled.message is data
    assert handled.said == ("left as it was: the message is signed",)
