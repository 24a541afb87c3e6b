"""Connections and bodies: who is slow, silent, endless or a page of another site is cut off; others notice nothing."""

import gc
import json
import logging
import socket
import time
from contextlib import contextmanager

import pytest

from colora.bank.core_file import extract_core
from colora.errors import ConfigError
from colora.serving import receiving
from colora.serving.connections import Connection
from colora.serving.server import Listen, check_listen
from tests.helpers.servers import ask, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PAGE = "https://app.example.org"


@pytest.fixture
def hasty(bank, monkeypatch):
    """A server that loses patience soon."""
    monkeypatch.setattr(Connection, "idle_seconds", 0.5)
    monkeypatch.setattr(Connection, "stuck_seconds", 0.5)
    monkeypatch.setattr(Connection, "check_seconds", 0.05)
    monkeypatch.setattr(receiving.BodyLimit.__init__, "__defaults__", (0.5,))
    with serving(bank) as running:
        yield running


@contextmanager
def connected(server, first=b""):
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20) as one:
        one.sendall(first)
        yield one


def closed(one, within):
    """What came until the server closed the connection, which it must do soon."""
    one.settimeout(within)
    found = b""
    try:
        while part := one.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def answers(server):
    return server.http.post("/v1/chat/completions", json=ask("legal", "one", max_tokens=3)).status_code == 200


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_connection_without_a_request_is_closed(hasty, first):
    with connected(hasty, first) as one:
        assert closed(one, 10) == b""
    assert answers(hasty)


def sent_until_cut_off(one, part, pause=0.0, most=15):
    """Send again and again until the server has closed the connection; whether that was soon."""
    began = time.monotonic()
    while time.monotonic() < began + most:
        try:
            one.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return True
        time.sleep(pause)
    return False


def test_headers_byte_by_byte_are_cut_off(hasty):
    with connected(hasty, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") as one:
        assert sent_until_cut_off(one, b"a", pause=0.05)


@pytest.mark.parametrize("length", [b"Content-Length: 999", b"Transfer-Encoding: chunked"])
def test_a_slow_body_is_answered_with_408(hasty, length):
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + length + b"\r\n\r\n"
    )
    with connected(hasty, head) as one:
        answer = closed(one, 10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"came too slowly" in answer
    assert answers(hasty)


def test_an_endless_body_is_cut_off(server):
    kind = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(server, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + kind) as one:
        assert sent_until_cut_off(one, b"4000\r\n" + b"[" * 0x4000 + b"\r\n")
    assert answers(server)


def test_many_connections_make_room_for_new_ones(server, monkeypatch):
    monkeypatch.setattr(Connection, "most", 12)
    opened = []
    try:
        for _ in range(30):
            opened.append(socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20))
        assert answers(server)
        assert closed(opened[0], 5) == b""  # the oldest made room
        opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b'"ok"' in closed(opened[-1], 5)
    finally:
        for one in opened:
            one.close()


def test_a_client_that_does_not_read_its_answer_is_cut_off(hasty, monkeypatch):
    names = [f"user-{number}-{'x' * 60}" for number in range(20_000)]
    monkeypatch.setattr(hasty.service.store, "after", lambda task: iter(names))
    size = len(hasty.http.get("/v1/models").content)
    with connected(hasty, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 12) as one:
        time.sleep(4)
        assert len(closed(one, 20)) < 8 * size  # what the buffers of both ends hold, and no more
    assert answers(hasty)


def test_clients_that_hang_up_leave_nothing_in_the_log(server):
    errors = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = errors.append
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    body = json.dumps(ask("legal", "one", max_tokens=300, temperature=1)).encode()
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + kind
    try:
        for sent in (head, head + body[:9], head + body):
            for _ in range(5):
                with connected(server, sent):
                    time.sleep(0.02)
        server.until("running_requests", 0)
        gc.collect()
    finally:
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).removeHandler(handler)
    assert [record.getMessage() for record in errors] == []


def test_packed_bodies_are_refused(server):
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    for path in ("/v1/completions", "/v1/tasks/new/examples"):
        answer = server.http.post(path, content=b"\x1f\x8b" + b"\0" * 99, headers=headers)
        assert (answer.status_code, "Content-Encoding" in answer.json()["error"]["message"]) == (415, True)


def test_a_core_is_not_longer_than_a_core(server, bank, tmp_path):
    extract_core(bank, "billing", tmp_path / "core")
    content = (tmp_path / "core").read_bytes()
    assert server.http.put("/v1/tasks/new/core", content=content + bytes(2**20)).status_code == 413
    assert server.http.put("/v1/tasks/new/core", content=content).status_code == 201


def header_of(value, length=None):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


HUGE = [
    header_of(b"{}", 2**60), header_of(b"{}", 2**63), header_of(b"{}", 100_000_000), header_of(b"", 0), b"",
    b"\xff" * 9,
    header_of(b"[" * 30_000), header_of(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    header_of({"a": {"dtype": "F32", "shape": [2**31, 2**31, 2**31], "data_offsets": [0, 0]}}),
    header_of({"a": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}),
    header_of({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}}),
    header_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
    header_of({"__metadata__": {"colora_core": "[" * 30_000}}),
    header_of({"__metadata__": {"colora_core": json.dumps({"task": 5, "base": [], "shared": None})}}),
    header_of({"__metadata__": {"colora_core": json.dumps({"task": "t", "base": "b" * 9000, "shared": "s" * 9000})}}),
    header_of({"__metadata__": {"colora_core": json.dumps({"task": "t", "base": "b", "shared": "s"})},
               **{f"{number}" * 500: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(9)}}),
]  # fmt: skip


@pytest.mark.parametrize("content", HUGE, ids=range(len(HUGE)))
def test_core_files_of_absurd_headers_are_refused_in_few_words(server, content):
    answer = server.http.put("/v1/tasks/new/core", content=content)
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.text) < 1500


# ---- pages in browsers -----------------------------------------------------------------------------------------------


def preflight(server, origin):
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return server.http.options("/v1/chat/completions", headers=headers)


def test_pages_may_ask_where_they_are_allowed_to(bank):
    with serving(bank, origins=[PAGE]) as server:
        asked = preflight(server, PAGE)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-origin" not in preflight(server, "https://evil.example").headers
        for body, status in [(ask("legal", "one", max_tokens=2), 200), (ask("nobody", "one"), 404)]:
            answer = server.http.post("/v1/chat/completions", json=body, headers={"Origin": PAGE})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        answer = server.http.post("/v1/completions", content=b"x" * 10**6, headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (413, PAGE)
    with serving(bank, origins=["*"]) as server:
        assert preflight(server, PAGE).headers["access-control-allow-origin"] == "*"


def test_no_page_may_ask_by_default(server):
    assert preflight(server, PAGE).status_code == 405
    answer = server.http.post("/v1/chat/completions", json=ask("legal", "one"), headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    # What a browser sends elsewhere without asking first; the page cannot read the answer, but it would be done.
    for path in ("/v1/reload", "/v1/tasks/new/examples"):
        for origin in (PAGE, "null", server.url.replace("http", "https")):
            answer = server.http.post(path, content="{}", headers={"Origin": origin, "Content-Type": "text/plain"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert server.http.post("/v1/reload", headers={"Origin": server.url}).status_code == 200  # no other site's page


def test_a_name_that_was_made_to_lead_here_is_refused(server, bank):
    """DNS rebinding: to the browser the page is one of this server, so Origin and Host agree."""
    port = server.url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example", "[::1", "", "10.0.0.1"):
        for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/reload")):
                answer = server.http.request(method, path, headers=headers)
                assert answer.status_code in (400, 403), (host, answer.text)
                if host.startswith("evil"):
                    assert answer.json()["error"]["code"] == "origin_not_allowed"
                    assert f"--cors-origin http://{host}`" in answer.json()["error"]["message"]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "Bank.LOCALHOST"):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200
    with serving(bank, origins=["http://bank.example"]) as other:  # behind a proxy that keeps its name
        assert other.http.get("/v1/models", headers={"Host": "bank.example"}).status_code == 200
        assert other.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_an_origin_is_an_origin():
    check_listen(Listen(origins=("*", "http://localhost:3000", PAGE)))
    for wrong in ("example.org", f"{PAGE}/", f"{PAGE}/chat", "https://", "**"):
        with pytest.raises(ConfigError, match="--cors-origin: expected a page's origin"):
            check_listen(Listen(origins=(wrong,)))
