"""Tenants: the keys that name them, stored as digests, the tasks each may use, and how much each may have.

A key is 32 random bytes, so one round of SHA-256 hides it: there is nothing to guess.
"""

import hashlib
import logging
import math
import secrets
import threading
import time
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from colora.common.files import write_json
from colora.common.json_text import JsonFault, parse_json
from colora.common.text import listed
from colora.errors import ColoraError, ConfigError
from colora.serving.quotas import UNLIMITED, Limits

__all__ = [
    "LOCAL",
    "Access",
    "RateError",
    "Tenant",
    "WrongKeyError",
    "add_tenant",
    "read_tenants",
    "remove_tenant",
    "renew_key",
    "retire_key",
]

logger = logging.getLogger(__name__)
PREFIX = "colora-"
DIGEST = r"^[0-9a-f]{64}$"
LOG_SECONDS = 60


class WrongKeyError(ColoraError):
    """A request without a key, or with a key of no tenant."""


class RateError(ColoraError):
    """A tenant asked more often than it may. `seconds`: until it may ask again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"too many requests; try again in {seconds:.1f} seconds")


class Tenant(BaseModel):
    """One tenant in the file of keys.

    Attributes:
        name: of the tenant; unique in the file.
        key_sha256: digest of the key.
        new_key_sha256: digest of a second key, which opens the same; so that a key can be changed without a gap.
        tasks: patterns of the tasks it may use, change and add, such as "acme-*".
        requests_per_minute: how often it may ask; None: without a limit.
        admin: whether it may reload the bank and read the metrics.
        limits: how much of the server it may take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    key_sha256: str = Field(pattern=DIGEST)
    new_key_sha256: str | None = Field(default=None, pattern=DIGEST)
    tasks: tuple[str, ...] = ("*",)
    requests_per_minute: float | None = Field(default=None, gt=0)
    admin: bool = False
    limits: Limits = Limits()

    @property
    def digests(self) -> list[str]:
        """Of its keys, the older one first."""
        return [digest for digest in (self.key_sha256, self.new_key_sha256) if digest is not None]

    def may(self, task: str) -> bool:
        """Whether this tenant's patterns cover a task."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


LOCAL = Tenant(name="local", key_sha256="0" * 64, admin=True, limits=UNLIMITED)
"""The tenant of every request to a server without keys."""


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tenants: list[Tenant]


class Access:
    """Keys and rates of one server; safe to use from several threads.

    Args:
        tenants: None: no keys, every request is that of `LOCAL`.
    """

    def __init__(self, tenants: list[Tenant] | None = None) -> None:
        self._use(tenants)
        self._path: Path | None = None
        self._version: tuple[int, ...] = ()  # of the file when it was read
        self._buckets: dict[str, tuple[float, float]] = {}  # by tenant: requests left, and when that was counted
        self._lock = threading.Lock()
        self._wrong, self._wrong_told = 0, -math.inf  # wrong keys since the log spoke of them, and when that was

    def _use(self, tenants: list[Tenant] | None) -> None:
        self._tenants = tenants
        # What is looked up is a digest: how long that takes says nothing of a key.
        self._by_digest = {digest: tenant for tenant in tenants or () for digest in tenant.digests}

    @classmethod
    def of_file(cls, path: Path) -> "Access":
        """The tenants of a file of keys, which is read again whenever it changes, so that a key that was removed is
        refused at once. If the file becomes unreadable, the tenants stay as they were, and the log says so.

        Raises:
            ConfigError: see `read_tenants`.
        """
        version = _file_version(path)  # taken before reading: a change in between is read again
        access = cls(read_tenants(path))
        access._path, access._version = path, version
        return access

    @property
    def tenants(self) -> list[Tenant] | None:
        """All tenants now, or None on a server without keys."""
        if self._path is None:
            return self._tenants
        with self._lock:
            if (version := _file_version(self._path)) != self._version:
                self._version = version
                try:
                    self._use(read_tenants(self._path))
                except ConfigError as error:
                    logger.error("the keys stay as they were: %s", error)
            return self._tenants

    def tenant(self, authorization: str | None) -> Tenant:
        """The tenant whose key is in the HTTP header `Authorization: Bearer KEY`. Raises WrongKeyError."""
        tenants = self.tenants
        if tenants is None:
            return LOCAL
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise WrongKeyError("expected a key, as Authorization: Bearer KEY")
        tenant = self._by_digest.get(_digest(key.strip()))
        if tenant is None:
            self._tell_wrong()
            raise WrongKeyError("nobody has this key")
        return tenant

    def _tell_wrong(self) -> None:
        """Let the log say that keys are being guessed, once a minute at most, and no key."""
        with self._lock:
            self._wrong += 1
            now = time.monotonic()
            if now - self._wrong_told >= LOG_SECONDS:
                logger.warning("requests with keys that nobody has: %d", self._wrong)
                self._wrong, self._wrong_told = 0, now

    def count(self, tenant: Tenant) -> None:
        """Count one request. Raises RateError if it exceeds the rate; the requests of a minute may come at once."""
        rate = tenant.requests_per_minute
        if rate is None:
            return
        now, capacity = time.monotonic(), max(1.0, rate)
        with self._lock:
            left, counted_at = self._buckets.get(tenant.name, (capacity, now))
            left = min(capacity, left + (now - counted_at) * rate / 60)
            if left < 1:
                self._buckets[tenant.name] = (left, now)
                raise RateError((1 - left) * 60 / rate)
            self._buckets[tenant.name] = (left - 1, now)


def read_tenants(path: Path) -> list[Tenant]:
    """The tenants of a file of keys. Raises ConfigError naming every fault."""
    try:
        content = path.read_bytes()
        tenants = _KeyFile.model_validate_json(content).tenants
        parse_json(content.decode())  # pydantic takes the second of two equal keys without a word
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: not a file of keys, as `colora keys add` writes it:", _faults(error)) from error
    except JsonFault as error:
        raise ConfigError(f"{path}:{error.line}: {error}; remove one of them") from error
    names = [tenant.name for tenant in tenants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: these tenants appear twice: {', '.join(twice)}; keep one entry of each")
    keys = Counter(digest for tenant in tenants for digest in tenant.digests)
    if shared := [tenant.name for tenant in tenants if any(keys[digest] > 1 for digest in tenant.digests)]:
        raise ConfigError(
            f"{path}: expected a different key for each tenant, found the same key for {', '.join(shared)}"
        )
    return tenants


def add_tenant(
    path: Path,
    name: str,
    tasks: list[str],
    requests_per_minute: float | None = None,
    admin: bool = False,
    limits: Limits | None = None,
) -> str:
    """Add a tenant to a file of keys; the file is made if there is none.

    Returns:
        the tenant's key. The file has only its digest.

    Raises:
        ConfigError: the name is taken, or the file is not one of keys.
    """
    tenants = read_tenants(path) if path.exists() else []
    if any(tenant.name == name for tenant in tenants):
        raise ConfigError(f"{path}: {name!r} has a key already; remove it first")
    key = _new_key()
    try:
        new = Tenant(
            name=name,
            key_sha256=_digest(key),
            tasks=tuple(tasks),
            requests_per_minute=requests_per_minute,
            admin=admin,
            limits=limits or Limits(),
        )
    except ValidationError as error:
        raise ConfigError("this cannot be a tenant:", _faults(error)) from error
    _write(path, [*tenants, new])
    return key


def renew_key(path: Path, name: str) -> str:
    """Give a tenant a second key; the first goes on opening the same until `retire_key`.

    Returns:
        the new key.

    Raises:
        ConfigError: there is no such tenant, or it has two keys.
    """
    tenants = read_tenants(path)
    tenant = _named(path, tenants, name)
    if tenant.new_key_sha256 is not None:
        raise ConfigError(f"{path}: {name!r} has two keys already; retire the older one first (`colora keys retire`)")
    key = _new_key()
    _replace(path, tenants, tenant.model_copy(update={"new_key_sha256": _digest(key)}))
    return key


def retire_key(path: Path, name: str) -> None:
    """Take the older one of a tenant's two keys away. Raises ConfigError if there are no two."""
    tenants = read_tenants(path)
    tenant = _named(path, tenants, name)
    if tenant.new_key_sha256 is None:
        raise ConfigError(f"{path}: {name!r} has one key; make the new one first (`colora keys renew`)")
    _replace(path, tenants, tenant.model_copy(update={"key_sha256": tenant.new_key_sha256, "new_key_sha256": None}))


def remove_tenant(path: Path, name: str) -> None:
    """Take a tenant out of a file of keys. Raises ConfigError if it is not there."""
    tenants = read_tenants(path)
    gone = _named(path, tenants, name)
    _write(path, [tenant for tenant in tenants if tenant is not gone])


def _named(path: Path, tenants: list[Tenant], name: str) -> Tenant:
    found = next((tenant for tenant in tenants if tenant.name == name), None)
    if found is None:
        raise ConfigError(
            f"{path}: no tenant {name!r}; there are {listed((one.name for one in tenants), 20) or 'none'}"
        )
    return found


def _replace(path: Path, tenants: list[Tenant], new: Tenant) -> None:
    _write(path, [new if tenant.name == new.name else tenant for tenant in tenants])


def _new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _write(path: Path, tenants: list[Tenant]) -> None:
    write_json(path, {"tenants": [tenant.model_dump(mode="json") for tenant in tenants]})


def _faults(error: ValidationError) -> list[str]:
    """A line for each fault; without the input, in which there may be keys."""
    return [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False)]


def _file_version(path: Path) -> tuple[int, ...]:
    """What changes whenever the file is written or replaced; empty if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
