"""The certificate by which clients know a depot again: made by itself, kept in its store, trusted by fingerprint."""

import datetime
import logging
import os
import ssl
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ibpfs.depot.server.syncing import sync_directory
from ibpfs.depot.tls import harden
from ibpfs.errors import IbpfsError

log = logging.getLogger(__name__)

FILE = "certificate.pem"  # with its private key
_BORN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # whatever the clock of this machine says
_ENDS = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280: never


class BadCertificate(IbpfsError):
    """The file is damaged. A new one would be refused by every volume that knows the depot."""


def tls_context(store: Path) -> ssl.SSLContext | None:
    """With the certificate of `store`, made if there is none; None where it cannot be written."""
    path = store / FILE
    if not path.exists():
        try:
            _write(path, _make())
        except OSError as error:
            log.warning("no TLS: cannot write %s (%s)", path, error.strerror)
            return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    context.num_tickets = 0  # they would come between commands, where a client takes bytes for a goodbye
    try:
        context.load_cert_chain(path)
        log.info("TLS certificate, SHA-256: %s", fingerprint(store).hex())
    except (OSError, ValueError):  # of which SSLError is one
        raise BadCertificate(
            f"{path}: holds no certificate and key; restore it, or remove it and every volume must pin the depot anew"
        ) from None
    return context


def fingerprint(store: Path) -> bytes:
    """SHA-256 of the certificate that the store holds."""
    certificate = x509.load_pem_x509_certificate((store / FILE).read_bytes())
    return sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def _make() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ibpfs-depot")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _BORN, _ENDS)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)
