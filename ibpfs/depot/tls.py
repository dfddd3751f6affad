"""TLS with a depot: no authority vouches, the certificate's fingerprint is what is known."""

import hmac
import ssl
from typing import Final

import trio

from ibpfs.depot.tls_socket import TlsSocket
from ibpfs.depot.wire import Connection, DepotUnreachable, OutOfSockets, RemoteProtocolError, Role
from ibpfs.depot.wire import events as ev

RECORD: Final = b"\x16"  # the first byte of a TLS connection; no IBP line begins with it
HANDSHAKE_LIMIT: Final = 15.0


class WrongCertificate(DepotUnreachable):
    """Another certificate than the pinned one: another depot, or somebody in between."""


class NoTls(DepotUnreachable):
    """What answers does not speak TLS."""


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared instead
    harden(context)
    return context


def harden(context: ssl.SSLContext) -> None:
    """What both ends insist on."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


async def secured(sock: trio.socket.SocketType, name: str, pin: bytes | None) -> TlsSocket:
    """The depot `name` behind TLS; `pin` None takes any certificate. Closes `sock` on error.

    Raises NoTls, WrongCertificate, OutOfSockets; DepotUnreachable when nothing at all comes back.
    """
    tls = TlsSocket(sock, client_context(), server_side=False)
    try:
        try:
            await tls.handshake()
        except OSError as error:
            if (goodbye := _goodbye(tls.beginning)) is not None:
                raise OutOfSockets(goodbye.backoff) from error
            if not tls.beginning:
                raise DepotUnreachable(f"{name}: closed the connection before any answer") from error
            known = "although it is known with TLS; refused" if pin else "use ibp:// if that is meant"
            raise NoTls(f"{name}: does not speak TLS, {known}") from error
        if pin is not None and not hmac.compare_digest(tls.fingerprint, pin):
            raise WrongCertificate(
                f"{name}: refused: its certificate has changed (SHA-256 now {tls.fingerprint.hex()}, "
                f"pinned {pin.hex()}): another depot answers there, or somebody is in between; "
                "ibpfs depots pin trusts it"
            )
    except BaseException:
        tls.close()
        raise
    return tls


def _goodbye(beginning: bytes) -> ev.Goodbye | None:
    """What a depot says, in clear, that has no connection left for us."""
    codec = Connection(Role.CLIENT)
    codec.receive_data(beginning)
    try:
        event = codec.next_event()
    except RemoteProtocolError:
        return None
    return event if isinstance(event, ev.Goodbye) else None


async def probe(host: str, port: int, limit: float) -> bytes | None:
    """The fingerprint of the depot there. None: no TLS within `limit` seconds, or nobody answers."""
    with trio.move_on_after(limit):
        while True:
            try:
                sock = (await trio.open_tcp_stream(host, port)).socket
                tls = await secured(sock, host, None)
            except OutOfSockets as busy:
                await trio.sleep(busy.backoff)
                continue
            except (OSError, DepotUnreachable):
                return None
            tls.close()
            return tls.fingerprint
    return None
