"""What `benchmarks.serving.attack` does to a server: each attack is a function that returns how it was answered."""

import gzip
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

__all__ = ["ATTACKS", "FORGED", "Target"]

FORGED = "FORGED-LOG-LINE"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}


@dataclass
class Target:
    """A server, as an attacker sees it.

    Attributes:
        port: on this machine.
        key: of a tenant that may use `own` and evil-*.
        own: a task of its own.
        others: a task of somebody else.
        core: a core file that fits.
        statuses: how it was answered; 0: the connection was closed without an answer.
        heard: all that came back.
    """

    port: int
    key: str
    own: str
    others: str
    core: bytes
    statuses: Counter[int] = field(default_factory=Counter)
    heard: list[bytes] = field(default_factory=list)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120))

    def ask(self, method: str, path: str, keyed: bool = True, **options: Any) -> int:
        """One request, and the status of its answer."""
        headers = {"Authorization": f"Bearer {self.key}"} if keyed else {}
        headers |= options.pop("headers", {})
        try:
            answer = self.client.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, **options)
        except httpx.HTTPError:
            return self.note(0, b"")
        return self.note(answer.status_code, answer.content + str(answer.headers).encode())

    def note(self, status: int, content: bytes) -> int:
        """Remember an answer."""
        self.statuses[status] += 1
        self.heard.append(content)
        return status

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def talk(self, parts: Iterable[bytes], seconds: float = 25.0, pause: float = 0.0) -> None:
        """Send some bytes for so long, and note how it ends."""
        found, end = b"", time.monotonic() + seconds
        with suppress(OSError), self.connect() as one:
            try:
                for part in parts:
                    one.sendall(part)
                    if time.monotonic() > end:
                        break
                    time.sleep(pause)
            except OSError:
                pass
            one.settimeout(max(0.1, end - time.monotonic()))
            while part := one.recv(65536):
                found += part
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", found)]
        for status in statuses or [0]:
            self.note(status, b"")
        self.heard.append(found)

    def head(self, path: str = PLAIN, *lines: str) -> bytes:
        """The head of a request with the key."""
        first = [
            f"POST {path} HTTP/1.1",
            "Host: a",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
        ]
        return "\r\n".join([*first, *lines, "", ""]).encode()


def together(count: int, function: Callable[[int], object]) -> None:
    """Call a function so often, in as many threads."""
    with ThreadPoolExecutor(min(count, 64)) as pool:
        list(pool.map(function, range(count)))


def forever(part: bytes) -> Iterator[bytes]:
    while True:
        yield part


# ---- connections -----------------------------------------------------------------------------------------------------


def idle(target: Target) -> None:
    opened = []
    with suppress(OSError):
        for _ in range(1500):
            opened.append(target.connect())
    time.sleep(6)
    for one in opened:
        one.settimeout(0.001)
        with suppress(OSError):
            if one.recv(10) == b"":
                target.note(0, b"")
        one.close()


def slow_headers(target: Target) -> None:
    opened = [target.connect() for _ in range(300)]
    end = time.monotonic() + 24
    for one in opened:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nX: ")
    while opened and time.monotonic() < end:
        for one in list(opened):
            try:
                one.sendall(b"a")
            except OSError:
                opened.remove(one)
                target.note(0, b"")
        time.sleep(1)


def long_headers(target: Target) -> None:
    together(16, lambda _: target.talk([b"GET /health HTTP/1.1\r\nX: ", *[b"a" * 65536] * 500], 8))
    together(16, lambda _: target.talk([b"GET /health HTTP/1.1\r\n", *[b"X: a\r\n" * 9000] * 500], 8))


def slow_bodies(target: Target) -> None:
    head = target.head(PLAIN, "Content-Length: 50000")
    together(60, lambda _: target.talk([head, *forever_for(b" ", 60)], 24, pause=0.5))


def forever_for(part: bytes, count: int) -> list[bytes]:
    return [part] * count


def endless_bodies(target: Target) -> None:
    chunk = b"4000\r\n" + b"[" * 0x4000 + b"\r\n"
    heads = [target.head(path, "Transfer-Encoding: chunked") for path in (PLAIN, "/v1/tasks/evil-1/examples")]
    heads.append(heads[0].replace(target.key.encode(), b"nobody"))
    together(24, lambda number: target.talk((part for part in _then(heads[number % 3], chunk)), 8))


def _then(head: bytes, chunk: bytes) -> Iterator[bytes]:
    yield head
    yield from forever(chunk)


def unread(target: Target) -> None:
    body = json.dumps({"model": target.own, "prompt": "a", "n": 4, "max_tokens": 200, "stream": True}).encode()
    opened = []
    for _ in range(12):
        one = target.connect()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        one.sendall(target.head(PLAIN, f"Content-Length: {len(body)}") + body)
        opened.append(one)
    time.sleep(8)
    for one in opened:
        one.close()


def hang_up(target: Target) -> None:
    body = json.dumps({"model": target.own, "prompt": "a", "max_tokens": 400, "temperature": 1}).encode()

    def once(_: int) -> None:
        with suppress(OSError), target.connect() as one:
            one.sendall(target.head(PLAIN, f"Content-Length: {len(body)}") + body)
            time.sleep(0.05)
        target.note(0, b"")

    together(200, once)


def pipelined(target: Target) -> None:
    body = json.dumps({"model": target.own, "prompt": "a", "max_tokens": 1}).encode()
    one = target.head(PLAIN, f"Content-Length: {len(body)}") + body
    target.talk([one * 60, one.replace(b"Host: a", b"Host: a\r\nConnection: close")], 60)
    target.talk([b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2000], 12)


def malformed(target: Target) -> None:
    upgrade = "Connection: Upgrade\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n"
    smuggled = f"POST {PLAIN} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"
    for text in (
        f"GET {CHAT} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{upgrade}\r\n",
        f"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n{upgrade}\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        smuggled,
        smuggled.replace("Transfer-Encoding", "Transfer-Encoding "),
        f"POST {PLAIN} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        f"POST {PLAIN} HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "CONNECT evil:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://evil/metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        "GET /%zz%ff%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        target.talk([text.encode("latin1")], 1)


# ---- bodies ----------------------------------------------------------------------------------------------------------


def deep_json(target: Target) -> None:
    start = f'{{"model": "{target.own}", "prompt": '.encode()
    bodies = [
        start + b"[" * 30_000 + b"]" * 30_000 + b"}",
        start + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b"[" * 60_000,
        start + b"1" + b"0" * 60_000 + b"}",
        start + b'"a", "seed": ' + b"9" * 60_000 + b"}",
        start + b'"a", ' + b", ".join(b'"k%d": 1' % number for number in range(4000)) + b"}",
        start + b"[" + b",".join([b'"a"'] * 14_000) + b"]}",
        start + b'"' + b"a" * 60_000 + b'"}',
        b"\xff" * 60_000,
        json.dumps({"model": target.own, "messages": [{"role": "user", "content": ""}] * 400}).encode(),
    ]
    together(
        100,
        lambda number: target.ask(
            "POST", CHAT if number % 10 == 9 else PLAIN, content=bodies[number % 10], headers=JSON
        ),
    )


def safetensors_headers(target: Target) -> None:
    def file(header: object, length: int | None = None, rest: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + rest

    def shape(*sizes: int) -> dict[str, object]:
        return {"a": {"dtype": "F32", "shape": sizes, "data_offsets": [0, 0]}}

    own = {"task": "evil-1", "base": "b", "shared": "s"}
    files = [
        file(b"{}", 2**60),
        file(b"{}", 2**64 - 1),
        file(b"{}", 10**8),
        file(b"[" * 30_000),
        file(b'{"a":' * 9000),
        file(shape(2**31, 2**31, 2**31)),
        file(shape(0, 2**60)),
        file(shape(*[0] * 9000)),
        file(shape(-1)),
        b"",
        file({"__metadata__": {"colora_core": "[" * 30_000}}),
        file({"__metadata__": {"colora_core": json.dumps(own)}}),
        file({f"{number}": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]} for number in range(500)}),
        target.core[:-1],
        target.core + b"a",
        target.core[:8] + b" " + target.core[9:],
        b"\x80\x04cos\nsystem\n(S'x'\ntR.",
    ]
    for number in range(170):
        target.ask("PUT", f"/v1/tasks/evil-{number}/core", content=files[number % len(files)])
    together(6, lambda number: target.ask("PUT", "/v1/tasks/evil-1/core", content=bytes(2**24)))


def examples(target: Target) -> None:
    line = b'{"input": "a", "output": "b"}\n'
    sixteen = line * (2**24 // len(line))
    bodies = [sixteen, line * 9_999, b'{"input": "' + b"a" * (2**24 - 99) + b'", "output": "b"}', b"\n" * 2**24]
    for first in range(0, 24, 2):  # more at once are refused
        together(2, lambda second, first=first: offer(target, bodies[(first // 2 + second) % 4], first + second))


def offer(target: Target, body: bytes, number: int) -> None:
    target.ask("POST", f"/v1/tasks/evil-x{number}/examples", content=body)


def packed(target: Target) -> None:
    bomb = gzip.compress(bytes(2**26), 9)[: 60 * 1024]
    for path in (PLAIN, CHAT, "/v1/tasks/evil-1/examples"):
        for kind in ("gzip", "deflate", "br", "gzip, gzip"):
            target.ask("POST", path, content=bomb, headers=JSON | {"Content-Encoding": kind})
    target.ask("PUT", "/v1/tasks/evil-1/core", content=bomb[:9000])


# ---- names and keys --------------------------------------------------------------------------------------------------


def names(target: Target) -> None:
    one = target.others
    named = [
        one,
        one + " ",
        " " + one,
        one + "\0",
        one + "/",
        "/" + one,
        "./" + one,
        f"evil-/../{one}",
        f"{target.own}/../{one}",
        one.upper(),
        one.replace("-", "\u2010"),
        one.replace("e", "\u0435"),
        one.replace("u", "\uff55"),
        "\u200b" + one,
        one + "\u0301",
        "\u202e" + one[::-1],
        one.replace("r", "r\u00ad"),
        f"evil-\n{FORGED}",
        f"evil-\x1b[2J{FORGED}",
        f"evil-\r\n{FORGED}: all is well",
        "evil-" + "a" * 5000,
        "evil-" + "\u0301" * 300,
        "evil-..",
        "evil-../../etc/passwd",
        "..",
        ".",
        "",
        "evil-%s%n%d",
        "evil-{0.__class__}",
        "evil-$(id)",
        "evil-`id`",
        "evil-'; --",
        "*",
        "evil-*",
        "evil-\ufffd",
        "--name=evil",
        "evil- --base /etc",
    ]
    line = b'{"input": "a", "output": "b"}\n'
    for name in named:
        path = quote(name, safe="")
        for method in ("GET", "DELETE"):
            target.ask(method, f"/v1/models/{path}")
        target.ask("GET", f"/v1/tasks/{path}/core")
        target.ask("PUT", f"/v1/tasks/{path}/core", content=target.core)
        target.ask("POST", f"/v1/tasks/{path}/examples", content=line[:-3])
        target.ask("POST", PLAIN, json={"model": name, "prompt": "a", "max_tokens": 1})
        target.ask("GET", "/health", headers={"X-Forwarded-For": f"a, {quote(name)}", "User-Agent": quote(name)})


def paths(target: Target) -> None:
    for path in (
        "/metrics",
        "//metrics",
        "/./metrics",
        "/v1/../metrics",
        "/v1/models/..%2f..%2fmetrics",
        "/v1/reload",
        "/v1/jobs/1",
        "/v1/jobs/..%2f",
        "/v1/tasks/..%2f..%2f..%2fetc%2fpasswd/core",
        "/v1/tasks/%2e%2e/core",
        "/v1/models/%ff%fe",
        "/openapi.json",
        "/docs",
        "/.env",
        "/v1/models?limit=99999999",
        "/health/../metrics",
        "/METRICS",
        "/metrics/",
        "/metrics%00",
    ):
        for method in ("GET", "POST"):
            target.ask(method, path)
            target.ask(method, path, keyed=False)
    for _ in range(300):
        target.ask("GET", f"/v1/jobs/{os.urandom(16).hex()}")


def keys(target: Target) -> None:
    def guess(number: int) -> None:
        key = target.key[: number % len(target.key)] if number % 2 else f"colora-{os.urandom(24).hex()}"
        target.ask("POST", CHAT, keyed=False, headers={"Authorization": f"Bearer {key}"}, json={"model": target.others})

    together(1500, guess)


# ---- more than its share ---------------------------------------------------------------------------------------------


def flood(target: Target) -> None:
    body = {"model": target.own, "prompt": "a " * 200, "n": 8, "max_tokens": 60, "temperature": 1}
    end = time.monotonic() + 20

    def once(_: int) -> None:
        while time.monotonic() < end:
            if target.ask("POST", PLAIN, json=body) == 429:
                time.sleep(0.2)

    together(48, once)


def long_prompts(target: Target) -> None:
    end = time.monotonic() + 40

    def once(_: int) -> None:
        while time.monotonic() < end:
            if target.ask("POST", PLAIN, json={"model": target.own, "prompt": [5] * 1900, "max_tokens": 30}) == 429:
                time.sleep(0.2)

    together(24, once)


def tasks(target: Target) -> None:
    for number in range(60):
        target.ask("PUT", f"/v1/tasks/evil-{number}/core", content=target.core)
    for number in range(60):
        target.ask("DELETE", f"/v1/models/evil-{number}")
    for _ in range(200):  # names that come and go
        name = f"evil-{os.urandom(8).hex()}"
        target.ask("PUT", f"/v1/tasks/{name}/core", content=target.core)
        target.ask("DELETE", f"/v1/models/{name}")


def listing(target: Target) -> None:
    stop = threading.Event()

    def once(_: int) -> None:
        while not stop.is_set():
            target.ask("GET", "/v1/models")

    threading.Timer(8, stop.set).start()
    together(24, once)


ATTACKS: dict[str, Callable[[Target], None]] = {
    "1500 connections that say nothing": idle,
    "300 connections, headers byte by byte": slow_headers,
    "headers of 32 MB, and half a million of them": long_headers,
    "60 bodies, byte by byte": slow_bodies,
    "24 bodies without end, also without a key": endless_bodies,
    "12 answers that nobody reads": unread,
    "200 clients that hang up at once": hang_up,
    "2060 requests pipelined": pipelined,
    "WebSocket, h2c, CONNECT, smuggled and malformed requests": malformed,
    "deep and wide JSON, huge numbers, words of 60 000 letters": deep_json,
    "safetensors files of absurd headers, 16 MB cores": safetensors_headers,
    "16 MB of one-letter examples, one of 16 MB, of blank lines": examples,
    "gzip bombs": packed,
    "names with separators, dots, control characters, look-alikes": names,
    "path traversal, hidden paths, guessed jobs": paths,
    "1500 guessed keys": keys,
    "48 clients that ask for 8 answers each, again and again": flood,
    "24 clients with prompts of 1900 tokens, again and again": long_prompts,
    "tasks beyond the quota, names that come and go": tasks,
    "24 clients that list the tasks, again and again": listing,
}
