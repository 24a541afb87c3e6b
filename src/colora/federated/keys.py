"""Keys to try a federation with: a TEST certificate authority, the server's certificate, and each client's key pair."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from colora.common.files import NAME_RULE, fits_name_rule
from colora.common.systems import file_name_fault
from colora.errors import ConfigError

__all__ = ["client_key", "make_credentials"]

VALID_DAYS = 365
CLOCKS_APART = timedelta(minutes=10)  # between the machine that makes a certificate and the one that checks it


def client_key(folder: Path, name: str) -> Path:
    """The private key of the client `name`; its public key lies beside it and ends in .pub."""
    return folder / "clients" / f"{name}.key"


def make_credentials(folder: Path, clients: Sequence[str], hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> None:
    """Write the files for TLS and the authentication of clients into `folder`; valid for a year, and for tests only.

    Whoever has ca.key can pose as the server. In production an authority signs the server's certificate elsewhere,
    and each client makes its own key and hands out its public key alone.

    Args:
        folder: gets ca.pem, ca.key, server.pem and server.key, and for each client clients/NAME.key and
            clients/NAME.pub. Only the owner may read the files that end in .key.
        clients: the names of the clients.
        hosts: the names and addresses by which the clients reach the server.

    Raises:
        ConfigError: if a file exists already or cannot be written, or if a name or host is not valid.
    """
    _check(folder, clients, hosts)
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CoLoRA TEST authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CoLoRA TEST server")])
    root = _certificate(issuer, issuer, authority, authority, _authority_extensions())
    signed = _certificate(subject, issuer, server, authority, _server_extensions(hosts))
    try:
        _write_key(folder / "ca.key", authority, PrivateFormat.PKCS8)
        _write(folder / "ca.pem", root.public_bytes(Encoding.PEM))
        _write_key(folder / "server.key", server, PrivateFormat.PKCS8)
        _write(folder / "server.pem", signed.public_bytes(Encoding.PEM))
        for name in clients:
            key = ec.generate_private_key(ec.SECP384R1())
            private_path, public_path = _key_paths(folder, name)
            _write_key(private_path, key, PrivateFormat.OpenSSH)
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            _write(public_path, public + b"\n")
    except OSError as error:
        raise ConfigError(f"could not write the keys: {error}") from error


def _check(folder: Path, clients: Sequence[str], hosts: Sequence[str]) -> None:
    misnamed = [name for name in clients if not fits_name_rule(name)]
    repeated = sorted({name for name in clients if clients.count(name) > 1})
    faults = [f"expected as a client's name {NAME_RULE}, found {name!r}" for name in misnamed]
    faults += [f"found the client {name!r} twice" for name in repeated]
    faults += [fault for name in clients if (fault := file_name_fault(name))]
    if not hosts:
        faults.append("expected a host by which the clients reach the server, found none")
    for host in hosts:
        try:
            _general_name(host)
        except ValueError:
            faults.append(f"expected the name or address of a host, without port, found {host!r}")
    if not faults:
        paths = [folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key")]
        paths += [path for name in clients for path in _key_paths(folder, name)]
        faults = [f"{path} is there already; remove it, or choose another folder" for path in paths if path.exists()]
    if faults:
        raise ConfigError("cannot make the keys; nothing was written:", faults)


def _key_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """A client's private and public key."""
    key = client_key(folder, name)
    return key, key.with_suffix(".pub")


def _general_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it. Raises ValueError if this is not the name or address of a host."""
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        if not host or not all(char.isalnum() or char in "-.*" for char in host):
            raise
        return x509.DNSName(host)  # which refuses letters beyond ASCII with a ValueError


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCKS_APART).not_valid_after(now + timedelta(days=VALID_DAYS))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = builder.add_extension(issuer_key, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority, hashes.SHA384())


def _authority_extensions() -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.BasicConstraints(ca=True, path_length=0), True), (_usage(signs=False, certifies=True), True)]


def _server_extensions(hosts: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs=True, certifies=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False),
    ]


def _usage(signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        key_cert_sign=certifies,
        crl_sign=certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    _write(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a new file; its mode is set when it is created, so that a private key is never readable for others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    binary = getattr(os, "O_BINARY", 0)  # Windows would end lines in its own way
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | binary, mode), "wb") as file:
        file.write(content)
