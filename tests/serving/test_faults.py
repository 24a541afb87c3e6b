"""Faults around a server: clients that hang up, a full queue, steps that fail, signals."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from colora.models.decoding.sampling import Sampling
from colora.serving.access import Tenant
from colora.serving.scheduler import BusyError
from tests.helpers.servers import ask, process, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

LONG = {"max_tokens": 450, "temperature": 1, "seed": 5}


def long_requests(server, count=1, **fields):
    """Requests that run for a while, each in a thread."""
    pool = ThreadPoolExecutor(count)
    body = ask("legal", "one", **LONG | fields)
    return [pool.submit(server.http.post, "/v1/chat/completions", json=body) for _ in range(count)]


def test_long_requests_are_long(bank):
    with serving(bank) as server:
        (request,) = long_requests(server)
        assert request.result().json()["usage"]["completion_tokens"] > 150


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("unhurried")
def test_client_that_hangs_up_frees_its_row(bank, stream):
    with serving(bank, rows=1) as server:
        if stream:
            with server.http.stream(
                "POST", "/v1/chat/completions", json=ask("legal", "one", stream=True, **LONG)
            ) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, timeout=0.2) as client:
                client.post("/v1/chat/completions", json=ask("legal", "one", **LONG))
        server.until("cancelled_requests", 1)
        server.until("running_requests", 0)
        assert server.metric("output_tokens") < 400
        again = server.http.post("/v1/chat/completions", json=ask("legal", "one", max_tokens=3))
        assert again.status_code == 200


@pytest.mark.usefixtures("unhurried")
def test_client_that_hangs_up_leaves_the_queue(bank):
    with serving(bank, rows=1) as server:
        running = long_requests(server)
        server.until("running_requests", 1)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, timeout=0.2) as client:
            client.post("/v1/chat/completions", json=ask("sales", "one", **LONG))
        server.until("cancelled_requests", 1)
        assert server.metric("waiting_requests") == 0
        assert running[0].result().status_code == 200


@pytest.mark.usefixtures("unhurried")
def test_full_queue_refuses_then_accepts_again(bank):
    with serving(bank, rows=1, queue=2) as server:
        running = long_requests(server)
        server.until("running_requests", 1)  # three that come at once would be one too many for the queue
        running += long_requests(server, 2)
        server.until("waiting_requests", 2)
        refused = server.http.post("/v1/chat/completions", json=ask("sales", "one"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert [request.result().status_code for request in running] == [200] * 3
        assert server.http.post("/v1/chat/completions", json=ask("sales", "one", max_tokens=2)).status_code == 200
        # of several outputs of one request none stays in the queue if one is refused
        many = server.http.post("/v1/chat/completions", json=ask("sales", "one", n=8, **LONG))
        assert many.status_code == 429
        server.until("running_requests", 0)
        assert server.metric("waiting_requests") == 0


def test_tenants_alternate_and_none_fills_the_queue(bank):
    tenants = [Tenant(name=name, key_sha256=digit * 64) for name, digit in (("many", "0"), ("few", "1"))]
    with serving(bank, tenants, rows=1, queue=8) as server:
        scheduler, order = server.service.scheduler, []
        ended = threading.Event()

        def submit(tenant, name):
            def deliver(piece):
                if isinstance(piece, Exception) or piece.finish is not None:
                    order.append(name)
                    if len(order) == 7:
                        ended.set()

            scheduler.submit(tenant, "legal", [7, 8, 9], Sampling(40, 1.0, seed=1), deliver)

        blocked, free = threading.Event(), threading.Event()
        scheduler.call(lambda: blocked.set() or free.wait(30))
        blocked.wait(30)
        for number in range(4):
            submit("many", f"many-{number}")
        with pytest.raises(BusyError):
            submit("many", "one too many")
        for number in range(3):
            submit("few", f"few-{number}")
        free.set()
        assert ended.wait(60)
    assert order == ["many-0", "few-0", "many-1", "few-1", "many-2", "few-2", "many-3"]


def test_failing_step_ends_its_requests_and_not_the_server(bank):
    with serving(bank) as server:
        batch = server.service.scheduler.engine.batch
        forward = batch._forward

        def fail(*arguments):
            batch._forward = forward
            raise RuntimeError("out of memory, with internal details")

        batch._forward = fail
        answer = server.http.post("/v1/chat/completions", json=ask("legal", "one"))
        assert answer.status_code == 500
        assert "details" not in answer.text
        batch._forward = fail
        with server.http.stream("POST", "/v1/chat/completions", json=ask("legal", "one", stream=True)) as streamed:
            lines = [line for line in streamed.iter_lines() if line]
        assert "the model failed" in lines[-1]
        assert "details" not in "".join(lines)
        assert server.metric("step_failures") == 2
        assert not server.service.scheduler.engine.resident._held
        assert server.http.post("/v1/chat/completions", json=ask("legal", "one", max_tokens=3)).status_code == 200


@pytest.mark.slow
def test_sigterm_finishes_every_request_and_exits_with_zero(bank, tmp_path):
    log = tmp_path / "log"
    with process(bank, "--rows", "1", log=log) as (server, server_process):
        running = long_requests(server, 8)
        server.until("waiting_requests", 2, or_more=True)
        server_process.send_signal(signal.SIGTERM)
        answers = [request.result() for request in running]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert server_process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    text = log.read_text()
    assert "one" not in text.replace("tasks at", "").split()  # no prompt in the log
    assert "Traceback" not in text


@pytest.mark.slow
def test_serve_command_with_keys_and_tls(bank, tmp_path):
    from colora.federated.keys import make_credentials
    from colora.serving.access import add_tenant

    make_credentials(tmp_path / "tls", ["client"])
    keys = tmp_path / "keys.json"
    key = add_tenant(keys, "acme", ["legal"])
    tls = {"--tls-cert": "server.pem", "--tls-key": "server.key"}
    options = [part for flag, name in tls.items() for part in (flag, str(tmp_path / "tls" / name))]
    with process(bank, "--keys", str(keys), *options, log=tmp_path / "log") as (server, server_process):
        assert server.url.startswith("https://127.0.0.1")
        trusted = httpx.create_ssl_context(verify=str(tmp_path / "tls" / "ca.pem"))
        with httpx.Client(base_url=server.url, verify=trusted, timeout=60) as client:
            headers = {"Authorization": f"Bearer {key}"}
            answer = client.post("/v1/chat/completions", json=ask("legal", "secret words"), headers=headers)
            assert answer.status_code == 200
            assert (
                client.post("/v1/chat/completions", json=ask("sales", "secret words"), headers=headers).status_code
                == 404
            )
            assert client.post("/v1/chat/completions", json=ask("legal", "secret words")).status_code == 401
        server_process.send_signal(signal.SIGINT)
        assert server_process.wait(60) == 0
    assert "secret" not in (tmp_path / "log").read_text()


def test_requests_leave_nothing_in_memory(bank):
    """Neither in the scheduler, nor among the resident cores, nor in the cache."""
    with serving(bank, rows=4, resident=4) as server:

        def load(count):
            with ThreadPoolExecutor(4) as pool:
                bodies = [ask("legal", f"{number}", max_tokens=4) for number in range(count)]
                return list(pool.map(lambda body: server.http.post("/v1/chat/completions", json=body), bodies))

        load(5)
        scheduler = server.service.scheduler
        before = scheduler.engine.batch.cache.bytes()
        load(20)
        assert scheduler.engine.batch.cache.bytes() == before
        assert not scheduler._running
        assert not scheduler._waiting
        assert not scheduler.engine.resident._held
        assert not scheduler.engine.batch.rows
