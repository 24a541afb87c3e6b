"""The server as a process: where it may listen, how it starts, and how it ends without dropping a request."""

import ipaddress
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from colora.common.text import shortened
from colora.errors import ConfigError
from colora.serving.access import Access
from colora.serving.app import make_app
from colora.serving.service import Options, Service

__all__ = ["Listen", "check_listen", "serve"]

GRACE_SECONDS = 120


@dataclass(frozen=True)
class Listen:
    """Where a server listens, and to whom.

    Attributes:
        host, port: port 0 is one that is free.
        keys: file of keys; None: everybody may do everything.
        certificate, private_key: for TLS, PEM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None


def check_listen(listen: Listen) -> None:
    """Refuse to listen beyond this machine without keys and TLS.

    Raises:
        ConfigError: saying what is missing.
    """
    if (listen.certificate is None) != (listen.private_key is None):
        raise ConfigError("TLS needs both a certificate and its private key (--tls-cert, --tls-key)")
    if _is_loopback(listen.host):
        return
    missing = ["keys (--keys; make some with `colora keys add`)"] if listen.keys is None else []
    missing += ["TLS (--tls-cert, --tls-key)"] if listen.certificate is None else []
    if missing:
        raise ConfigError(
            f"{listen.host} can be reached from other machines: expected {' and '.join(missing)}. To listen on this "
            "machine alone, leave --host out"
        )


def serve(options: Options, listen: Listen, log: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; then take no more requests and finish those that are there.

    Raises:
        ConfigError: see `check_listen`; or the address is taken.
        BankFileError, BaseMismatchError: see `Service`.
    """
    check_listen(listen)
    access = Access() if listen.keys is None else Access.of_file(listen.keys)
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        door = socket.create_server((listen.host, listen.port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {listen.host}:{listen.port}: {error}") from error
    with door:
        service = Service(options, lambda: len(access.tenants or ()))
        store = service.store
        stale = [
            f"the core of {task!r} in {options.state} belongs to another bank, and is not served"
            for task in store.stale
        ]
        for warning in shortened(stale, 20):
            log(f"warning: {warning}")
        config = uvicorn.Config(
            make_app(service, access), log_level="warning", access_log=False, lifespan="on",
            ssl_certfile=listen.certificate, ssl_keyfile=listen.private_key, timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip
        scheme, (host, port) = ("https" if listen.certificate else "http"), door.getsockname()[:2]
        server = uvicorn.Server(config)
        # uvicorn handles these itself and raises them once more at its end: that must not turn a good end into a bad.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        host = f"[{host}]" if ":" in host else host
        log(f"{len(store)} tasks at {scheme}://{host}:{port}/v1 (Ctrl-C ends it)")
        server.run(sockets=[door])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
