"""Names of this machine: what a server without keys listens on, and the only names that it answers to."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["asks_this_machine", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether to listen on a name or an address is to be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def asks_this_machine(host: str) -> bool:
    """Whether a Host header, with or without a port, has a name of this machine."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and (is_loopback(name) or name.endswith(".localhost"))  # which browsers ask nobody for
