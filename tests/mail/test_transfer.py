"""What decodes without doubt, and what does not."""

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.mail import transfer
from ibpfs.mail.transfer import Undecodable, decode


def decoded(data: bytes, encoding: str) -> bytes:
    return b"".join(decode(data, 0, len(data), encoding))


@pytest.fixture(params=[5, 64, 1 << 20])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(transfer, "_PIECE", request.param)
    return int(request.param)


@pytest.mark.usefixtures("piece")
class TestPieces:
    """However the pieces of a large file fall."""

    @given(st.binary(max_size=400), st.sampled_from([b"\n", b"\r\n"]))
    def test_base64(self, data: bytes, end: bytes) -> None:
        assert decoded(base64.encodebytes(data).replace(b"\n", end), "base64") == data

    @given(st.binary(max_size=400).map(lambda data: data.replace(b"\r", b"")), st.sampled_from([b"\n", b"\r\n"]))
    def test_quoted_printable(self, data: bytes, end: bytes) -> None:
        encoded = quopri.encodestring(data)
        assert decoded(encoded.replace(b"\n", end), "quoted-printable") == data

    @given(st.binary(max_size=400))
    def test_lines(self, data: bytes) -> None:
        assert decoded(data, "binary") == data
        assert decoded(data, "8bit") == data.replace(b"\r\n", b"\n")

    @pytest.mark.parametrize(
        "text", [b"QUJD*", b"QUJ", b"QUI=QUJD", b"QUJD\n=", b"QQ==\nfooter12", b"Q===", b"QUJD\n--x"]
    )
    def test_what_is_not_base64(self, text: bytes) -> None:
        with pytest.raises(Undecodable):
            decoded(text, "base64")

    @pytest.mark.parametrize("text", [b"a=b", b"a=4", b"a\0", b"\xff", b"=zz\n"])
    def test_what_is_not_quoted_printable(self, text: bytes) -> None:
        with pytest.raises(Undecodable):
            decoded(text, "quoted-printable")


def test_an_encoding_that_nobody_knows() -> None:
    with pytest.raises(Undecodable):
        decoded(b"", "x-uuencode")


def test_a_line_without_an_end() -> None:
    with pytest.raises(Undecodable):
        decoded(b"x" * (3 << 20), "quoted-printable")
