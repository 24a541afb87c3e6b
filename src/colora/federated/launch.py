"""Thin wrappers over Flower's own commands: their arguments, their settings, and how to wait for them."""

import json
import math
import os
import re
import ssl
import sys
import time
import tomllib
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from shutil import which
from subprocess import Popen
from typing import Any

from colora.common.files import write_text
from colora.errors import ConfigError, FederationError

__all__ = [
    "client_command",
    "flower_environment",
    "register_command",
    "run_command",
    "server_command",
    "status_command",
    "wait_until_ready",
    "write_app",
    "write_connection",
]

Scalar = str | int | float | bool

NO_INSTALLS = "--disable-runtime-dependency-installation"
APP = {"serverapp": "colora.federated.server_app:app", "clientapp": "colora.federated.client_app:app"}
POLL_SECONDS = 0.1
QUOTE = r"\u0022"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of all of Flower's processes: they report nothing, fetch nothing, and write to `home` alone."""
    # Flower starts its other programs by their bare names; they must be those of this interpreter.
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(home.absolute()),
        "PATH": os.pathsep.join([programs, *filter(None, [os.environ.get("PATH")])]),
    }


def server_command(host: str, port: int, database: Path, tls: Path | None = None) -> list[str]:
    """The SuperLink that serves at host:port and keeps its state in the file `database`.

    Args:
        host: an address of this machine.
        port: a free port.
        database: is made if missing. A restarted SuperLink knows its clients from it, but the interrupted run fails.
        tls: a folder of `make_credentials`. With it the connections are encrypted and only registered clients may
            join; without it whoever reaches the port may do anything, so keep that to loopback.
    """
    command = [_flower("flower-superlink"), "--host", host, "--port", str(port), "--database", str(database)]
    if tls is None:
        return [*command, NO_INSTALLS, "--insecure"]
    files = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
    files[1::2] = [str(tls / name) for name in files[1::2]]
    return [*command, NO_INSTALLS, *files, "--enable-supernode-auth"]


def client_command(
    superlink: str,
    port: int,
    node_config: Mapping[str, Scalar],
    root_certificates: Path | None = None,
    key: Path | None = None,
) -> list[str]:
    """The SuperNode of one client.

    Args:
        superlink: host:port of the SuperLink.
        port: a free port of this machine, for the SuperNode's own use on loopback.
        node_config: becomes `context.node_config` of the ClientApp.
        root_certificates: the certificate of the authority that signed the SuperLink's; without it the connection is
            not encrypted.
        key: the private key with which the client authenticates itself to a SuperLink with TLS.

    Raises:
        ConfigError: if there is a key without TLS, or if a setting cannot be written down.
    """
    if key is not None and root_certificates is None:
        raise ConfigError("expected a root certificate (--ca) along with the client's key, found none")
    command = [_flower("flower-supernode"), "--superlink", superlink, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--insecure"] if root_certificates is None else ["--root-certificates", str(root_certificates)]
    command += [] if key is None else ["--auth-supernode-private-key", str(key)]
    return [*command, "--node-config", _node_config(node_config)] if node_config else command


def register_command(public_key: Path, connection: str) -> list[str]:
    """The command that registers a client's public key at the SuperLink of the connection."""
    return [_flower("flwr"), "supernode", "register", str(public_key), connection]


def run_command(app_folder: Path, connection: str, stream: bool = True) -> list[str]:
    """The command that runs an app of `write_app`; with `stream` it shows the run's log until the run ends."""
    return [_flower("flwr"), "run", str(app_folder), connection, *(["--stream"] if stream else [])]


def status_command(connection: str, run_id: int) -> list[str]:
    """The command that prints a run's status as JSON.

    In the end `runs[0]["status"]` ends in ":completed", ":failed" or ":stopped".

    The exit code of `flwr run --stream` does not say it: it is 0 however the run ended.
    """
    return [_flower("flwr"), "list", connection, "--run-id", str(run_id), "--format", "json"]


def write_connection(home: Path, name: str, address: str, root_certificates: Path | None = None) -> None:
    """Configure the connection `name` of Flower's commands; other connections stay as they are.

    Args:
        home: Flower's folder, the one of `flower_environment`.
        name: of the connection, for `register_command` and `run_command`.
        address: host:port of the SuperLink.
        root_certificates: the certificate of the authority that signed the SuperLink's; without it the connection is
            not encrypted.

    Raises:
        ConfigError: if the name has other characters than letters, digits, _ and -, or if the file is not TOML.
        CheckpointError: if the file cannot be written.
    """
    path = home / "config.toml"
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    connection: dict[str, Scalar] = {"address": address}
    if root_certificates is None:
        connection["insecure"] = True
    else:
        connection["root-certificates"] = str(root_certificates.absolute())
    config["superlink"] = config.get("superlink", {}) | {_key(name): connection}
    write_text(path, _toml(config))


def write_app(folder: Path, config: Mapping[str, Scalar]) -> None:
    """Write the Flower app that `flwr run` asks for: a pyproject.toml alone, as its code is the installed package's.

    Args:
        folder: the app's folder; its name does not matter, and nothing else should be in it.
        config: becomes `context.run_config` of the apps.

    Raises:
        ConfigError: if a setting cannot be written down.
        CheckpointError: if the file cannot be written.
    """
    project = {
        "name": "colora-federated",
        "version": "1.0.0",
        "description": "CoLoRA across clients: the apps of the installed package",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    app = {"publisher": "colora", "components": APP, "config": {_key(key): value for key, value in config.items()}}
    write_text(folder / "pyproject.toml", _toml({"project": project, "tool": {"flwr": {"app": app}}}))


def wait_until_ready(
    url: str, seconds: float, root_certificates: Path | None = None, process: Popen[Any] | None = None
) -> None:
    """Return once the SuperLink answers.

    Args:
        url: of the SuperLink, such as http://127.0.0.1:8000, or https://... with TLS.
        seconds: how long to wait at most.
        root_certificates: the certificate of the authority that signed the SuperLink's.
        process: the SuperLink, if this process started it; its end ends the waiting.

    Raises:
        FederationError: if it does not answer in time, or has ended.
    """
    secure = ssl.create_default_context(cafile=root_certificates) if url.startswith("https:") else None
    # No proxy: the SuperLink may be on loopback.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=secure)] if secure else [])
    )
    end, last = time.monotonic() + seconds, "nothing"
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise FederationError(f"the SuperLink for {url} has ended with exit code {process.returncode}; see its log")
        try:
            with opener.open(f"{url.rstrip('/')}/health", timeout=min(5.0, seconds)):
                return
        except (OSError, HTTPException) as error:
            last = str(error)
        time.sleep(POLL_SECONDS)
    raise FederationError(f"{url} did not answer within {seconds:g} seconds; last found: {last}")


def _flower(name: str) -> str:
    """The path of one of Flower's programs, from the environment of this interpreter."""
    path = which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise ConfigError(f'federations need Flower (no {name} found): pip install "colora[federated]"')
    return path


def _node_config(config: Mapping[str, Scalar]) -> str:
    return " ".join(f"{_key(key)}={_scalar(value)}" for key, value in config.items())


def _toml(table: Mapping[str, Any], path: str = "") -> str:
    """A table as TOML; each table within it gets a heading of its own."""
    lines = [f"{_quoted(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    text = "\n".join([f"[{path}]", *lines, "", ""] if path else [*lines, ""] if lines else [])
    inner = {f"{path}.{_quoted(key)}".lstrip("."): value for key, value in table.items() if isinstance(value, dict)}
    return text + "".join(_toml(value, name) for name, value in inner.items())


def _value(value: object) -> str:
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list) else _scalar(value)


def _scalar(value: object) -> str:
    """A string, number or truth value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigError(f"expected text, a whole number of 64 bits, a finite number, true or false, found {value!r}")
    # A JSON string is a TOML string if letters beyond ASCII are not escaped and DEL is. Flower splits the settings of a
    # node at quotes, escaped or not, so a string may have none inside.
    parts = (json.dumps(part, ensure_ascii=False)[1:-1] for part in value.split('"'))
    return '"' + QUOTE.join(parts).replace("\x7f", r"\u007f") + '"'


def _key(name: str) -> str:
    if not BARE_KEY.fullmatch(name):
        raise ConfigError(f"expected a name of letters, digits, _ and -, found {name!r}")
    return name


def _quoted(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else _scalar(key)
