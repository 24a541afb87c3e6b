"""Who may use which tasks: keys of tenants, stored as digests, and how often each may ask.

A key is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess.
"""

import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from colora.common.files import write_json
from colora.errors import ColoraError, ConfigError

__all__ = ["Access", "RateError", "Tenant", "WrongKeyError", "add_tenant", "read_tenants", "remove_tenant"]

logger = logging.getLogger(__name__)
PREFIX = "colora-"


class WrongKeyError(ColoraError):
    """No key, or one that nobody has."""


class RateError(ColoraError):
    """A tenant asked more often than it may. `seconds`: until it may ask again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"too many requests; try again in {seconds:.1f} seconds")


class Tenant(BaseModel):
    """One tenant in the file of keys.

    Attributes:
        name: whose key it is.
        key_sha256: digest of the key.
        tasks: patterns of the tasks it may use, change and bring, such as "acme-*".
        requests_per_minute: how often it may ask; None: as often as it likes.
        admin: whether it may reload the bank and read the metrics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    key_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tasks: tuple[str, ...] = ("*",)
    requests_per_minute: float | None = Field(default=None, gt=0)
    admin: bool = False

    def may(self, task: str) -> bool:
        """Whether this tenant's patterns cover a task."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


LOCAL = Tenant(name="local", key_sha256="0" * 64, admin=True)
"""Everybody, on a server without keys."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tenants: list[Tenant]


class Access:
    """Keys and rates of one server; safe to use from several threads.

    Args:
        tenants: None: everybody may do everything.
    """

    def __init__(self, tenants: list[Tenant] | None = None) -> None:
        self._tenants = tenants
        self._path: Path | None = None
        self._seen: tuple[int, ...] = ()
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of_file(cls, path: Path) -> "Access":
        """The tenants of a file of keys, which is read again whenever it changes: a key that was removed opens nothing
        any more. Should it become unreadable, those that were there stay, and the log says so.

        Raises:
            ConfigError: see `read_tenants`.
        """
        seen = _stamp(path)  # before it is read: a change in between is read again
        access = cls(read_tenants(path))
        access._path, access._seen = path, seen
        return access

    @property
    def tenants(self) -> list[Tenant] | None:
        """All of them now, or None if everybody may do everything."""
        if self._path is None:
            return self._tenants
        with self._lock:
            if (now := _stamp(self._path)) != self._seen:
                self._seen = now
                try:
                    self._tenants = read_tenants(self._path)
                except ConfigError as error:
                    logger.error("the keys stay as they were: %s", error)
            return self._tenants

    def tenant(self, authorization: str | None) -> Tenant:
        """Who asks, by the HTTP header `Authorization: Bearer KEY`. Raises WrongKeyError."""
        tenants = self.tenants
        if tenants is None:
            return LOCAL
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise WrongKeyError("expected a key, as Authorization: Bearer KEY")
        digest = _digest(key.strip())
        found = [one for one in tenants if hmac.compare_digest(one.key_sha256, digest)]
        if not found:
            raise WrongKeyError("nobody has this key")
        return found[0]

    def count(self, tenant: Tenant) -> None:
        """Note one request. Raises RateError if it is one too many; a minute's worth may come at once."""
        rate = tenant.requests_per_minute
        if rate is None:
            return
        now, most = time.monotonic(), max(1.0, rate)
        with self._lock:
            left, before = self._buckets.get(tenant.name, (most, now))
            left = min(most, left + (now - before) * rate / 60)
            if left < 1:
                self._buckets[tenant.name] = (left, now)
                raise RateError((1 - left) * 60 / rate)
            self._buckets[tenant.name] = (left - 1, now)


def read_tenants(path: Path) -> list[Tenant]:
    """The tenants of a file of keys. Raises ConfigError naming every fault."""
    try:
        tenants = _File.model_validate_json(path.read_bytes()).tenants
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise ConfigError(f"{path}: not a file of keys, as `colora keys add` writes it:", faults) from error
    names = [one.name for one in tenants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: these tenants stand twice: {', '.join(twice)}")
    return tenants


def add_tenant(
    path: Path, name: str, tasks: list[str], requests_per_minute: float | None = None, admin: bool = False
) -> str:
    """Add a tenant to a file of keys, which is made if need be.

    Returns:
        its key, which is kept nowhere.

    Raises:
        ConfigError: the name is taken, or the file is none of keys.
    """
    tenants = read_tenants(path) if path.exists() else []
    if any(one.name == name for one in tenants):
        raise ConfigError(f"{path}: {name!r} has a key already; remove it first")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        new = Tenant(
            name=name, key_sha256=_digest(key), tasks=tuple(tasks), requests_per_minute=requests_per_minute, admin=admin
        )
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise ConfigError("this cannot be a tenant:", faults) from error
    _write(path, [*tenants, new])
    return key


def remove_tenant(path: Path, name: str) -> None:
    """Take a tenant out of a file of keys. Raises ConfigError if it is not there."""
    tenants = read_tenants(path)
    if all(one.name != name for one in tenants):
        raise ConfigError(f"{path}: no tenant {name!r}; there are {', '.join(one.name for one in tenants) or 'none'}")
    _write(path, [one for one in tenants if one.name != name])


def _write(path: Path, tenants: list[Tenant]) -> None:
    write_json(path, {"tenants": [json.loads(one.model_dump_json()) for one in tenants]})


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written or replaced; nothing of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
