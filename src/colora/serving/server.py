"""The server as a process: where it may listen, how it starts, and how it ends without dropping a request."""

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from colora.common.text import shortened
from colora.errors import ConfigError
from colora.serving.access import Access
from colora.serving.app import make_app
from colora.serving.connections import Connection, allow_files
from colora.serving.loopback import is_loopback
from colora.serving.service import Options, Service

__all__ = ["GRACE_SECONDS", "Listen", "check_listen", "listening_socket", "serve", "server_config", "url_of"]

GRACE_SECONDS = 120
MOST_WARNINGS = 20


@dataclass(frozen=True)
class Listen:
    """Where a server listens, and how it is protected.

    Attributes:
        host: name or address.
        port: 0: a free one.
        keys: file of keys; None: every request may do everything.
        certificate: for TLS, PEM.
        private_key: of the certificate, PEM.
        origins: of pages in browsers that may ask; none by default.
        page: whether browsers get a page to try the tasks at the root.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    origins: tuple[str, ...] = ()
    page: bool = True


def check_listen(listen: Listen) -> None:
    """Refuse to listen beyond this machine without keys and TLS.

    Raises:
        ConfigError: saying what is missing.
    """
    if (listen.certificate is None) != (listen.private_key is None):
        raise ConfigError("TLS needs both a certificate and its private key (--tls-cert, --tls-key)")
    for origin in listen.origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
            raise ConfigError(f"--cors-origin: expected a page's origin such as https://example.org, found {origin!r}")
    if is_loopback(listen.host):
        return
    missing = ["keys (--keys; make some with `colora keys add`)"] if listen.keys is None else []
    missing += ["TLS (--tls-cert, --tls-key)"] if listen.certificate is None else []
    if missing:
        raise ConfigError(
            f"{listen.host} can be reached from other machines: expected {' and '.join(missing)}. To listen on this "
            "machine alone, leave --host out"
        )


def serve(options: Options, listen: Listen, log: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; then refuse new requests and finish the others.

    Raises:
        ConfigError: see `check_listen`; or the address is taken.
        BankFileError, BaseMismatchError: see `Service`.
    """
    check_listen(listen)
    allow_files()
    access = Access() if listen.keys is None else Access.of_file(listen.keys)
    with listening_socket(listen) as listening:  # before the bank is loaded: a taken address fails at once
        service = Service(options, lambda: len(access.tenants or ()))
        store = service.store
        stale = [
            f"the core of {task!r} in {options.state} belongs to another bank, and is not served"
            for task in store.stale
        ]
        for warning in shortened(stale, MOST_WARNINGS):
            log(f"warning: {warning}")
        app = make_app(service, access, listen.origins, listen.page)
        server = uvicorn.Server(server_config(app, listen))
        # uvicorn handles these itself and raises them once more at its end, which would make the exit code an error.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        url, precision = url_of(replace(listen, port=listening.getsockname()[1])), str(service.dtype).split(".")[-1]
        log(f"{len(store)} tasks at {url}/v1, in {precision} (Ctrl-C ends it)")
        if listen.page:
            log(f"to try them in a browser: {url}/")
        server.run(sockets=[listening])


def server_config(app: FastAPI, listen: Listen, grace: int = GRACE_SECONDS) -> uvicorn.Config:
    """How uvicorn runs the application.

    h11 bounds the headers of a request, which httptools does not. Errors alone are logged: what a stranger can bring
    about with a malformed request is a warning.
    """
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="error",
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.private_key,
        timeout_graceful_shutdown=grace,
    )


def listening_socket(listen: Listen) -> socket.socket:
    """A socket that listens there. Raises ConfigError if the address is taken, or is none of this machine's."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        return socket.create_server((listen.host, listen.port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {listen.host}:{listen.port}: {error}") from error


def url_of(listen: Listen) -> str:
    """Where clients find the server."""
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{'https' if listen.certificate else 'http'}://{host}:{listen.port}"
