"""One request that goes wrong, while others share its batch: an error for it alone, unchanged answers for them."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from colora.bank import core_file
from colora.bank.core_file import CoreHeader, core_bytes
from colora.errors import ConfigError
from colora.models.decoding.sampling import Sampling
from tests.helpers.servers import ask, make_bank, serving
from tests.helpers.tiny import VOCAB, byte_fallback_tokenizer, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

INNOCENT = {"model": "billing", "prompt": "hello", "temperature": 0, "max_tokens": 40}


def beside(server, body, count=4):
    """The answer to a request, and those to others that join the batch with it."""
    blocked, free = threading.Event(), threading.Event()
    server.service.scheduler.call(lambda: blocked.set() or free.wait(30))
    blocked.wait(30)
    with ThreadPoolExecutor(count + 1) as pool:
        others = [pool.submit(server.http.post, "/v1/completions", json=INNOCENT) for _ in range(count)]
        server.until("waiting_requests", count)
        answer = pool.submit(server.http.post, "/v1/completions", json=body)
        while not answer.done() and server.metric("waiting_requests") == count:
            time.sleep(0.01)
        free.set()
        return answer.result(), [other.result() for other in others]


def unharmed(server, others):
    alone = server.http.post("/v1/completions", json=INNOCENT).json()["choices"]
    return all(other.status_code == 200 and other.json()["choices"] == alone for other in others)


def wild_core(store, value=1e30):
    core = {name: torch.full(shape, value) for name, shape in store.shape.items()}
    return core_bytes(core, CoreHeader("wild", store.saved.info.base, store.shared))


def test_a_task_whose_logits_are_no_numbers_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(core_file, "LARGEST", math.inf)  # no such core can be uploaded any more
    with serving(make_bank(tmp_path, chat=False)) as server:
        server.service.put("wild", wild_core(server.service.store))
        answer, others = beside(server, INNOCENT | {"model": "wild"})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == ("the model failed at this request: its logits are NaN or infinite")
        assert unharmed(server, others)
        with server.http.stream("POST", "/v1/completions", json=INNOCENT | {"model": "wild", "stream": True}) as stream:
            assert "its logits are NaN or infinite" in [line for line in stream.iter_lines() if line][-1]
        assert server.metric("step_failures") == 2
        assert not server.service.scheduler.engine.resident._held


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-6])
def test_a_temperature_close_to_zero_is_greedy(tmp_path, temperature):
    with serving(make_bank(tmp_path, chat=False)) as server:
        answer, others = beside(server, INNOCENT | {"temperature": temperature})
        assert unharmed(server, [answer, *others])


def test_a_token_beyond_the_embeddings_is_refused_by_name(tmp_path):
    bank = make_bank(tmp_path, chat=False)
    tokenizer = tiny_tokenizer(False)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "base-0")
    with serving(bank) as server:
        for body in (INNOCENT | {"prompt": "hi <new>"}, INNOCENT | {"prompt": [7, VOCAB]}):
            answer, others = beside(server, body)
            assert answer.status_code == 400
            assert f"token ids from 0 to {VOCAB - 1}" in answer.json()["error"]["message"]
            assert unharmed(server, others)


def test_a_byte_fallback_tokenizer_streams_whatever_is_drawn(tmp_path):
    bank = make_bank(tmp_path, chat=False)
    tokenizer = byte_fallback_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base-0")
    drawn = {"model": "legal", "prompt": [9, 8], "temperature": 1.5, "max_tokens": 60}
    with serving(bank) as server, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda seed: server.http.post("/v1/completions", json=drawn | {"seed": seed}), range(30))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) > 5


def test_somebody_who_cannot_be_reached_is_no_matter_of_the_others(tmp_path):
    ended = threading.Event()
    with serving(make_bank(tmp_path)) as server:
        scheduler = server.service.scheduler

        def gone(piece):
            raise RuntimeError("event loop is closed")

        def listening(piece):
            pieces.append(piece)
            if piece.finish is not None:
                ended.set()

        pieces = []
        scheduler.submit("b", "billing", [7, 8], Sampling(20), listening)
        scheduler.submit("a", "legal", [7, 8], Sampling(20), gone)
        assert ended.wait(20)
        server.until("running_requests", 0)
        assert sum(piece.error is None for piece in pieces) == len(pieces)
        assert server.http.post("/v1/chat/completions", json=ask("legal", "one", max_tokens=3)).status_code == 200


def test_the_model_is_checked_with_cores_of_the_bank_that_leave_again(tmp_path, monkeypatch):
    from colora.models.decoding import batch

    seen, checked_mask = [], batch.checked_mask

    def watched(model, positions, tasks):
        cores = next(parameter for name, parameter in model.named_parameters() if "colora_core" in name)
        seen.append([cores[task].clone() for task in tasks])
        return checked_mask(model, positions, tasks)

    monkeypatch.setattr(batch, "checked_mask", watched)
    with serving(make_bank(tmp_path)) as server:
        saved, resident = server.service.store.saved, server.service.scheduler.engine.resident
        assert not torch.equal(*seen[0])
        for index, found in enumerate(seen[0]):
            assert any(torch.equal(found, core) for core in saved.core(index).values())
        assert len(resident) == 0
        assert not any(stack.any() for stack in resident.stacks.values())


def test_a_base_that_cannot_run_so_ends_the_start_by_name(tmp_path, monkeypatch):
    from colora.models.decoding.cache import SlotCache

    monkeypatch.setattr(SlotCache, "additive_mask", lambda cache, dtype: cache.visible[:, None, None] * 0.0)
    monkeypatch.setattr("colora.models.decoding.probe.MASKS", ("additive",))
    with (
        pytest.raises(ConfigError, match="LlamaForCausalLM cannot run in continuous batches: the logits of"),
        serving(make_bank(tmp_path)),
    ):
        pass
