"""Random models, tenants, tasks, joins and leaves: every answer is the model's own, token by token, in float64."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from benchmarks.architectures.zoo import ZOO
from colora.adapter.config import CoLoRAConfig
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.models.decoding.batch import Batch
from colora.models.decoding.sampling import Sampling
from colora.serving.metrics import Metrics
from colora.serving.resident import Resident, attach_slots
from colora.serving.scheduler import Engine, Scheduler
from colora.serving.store import CoreStore
from tests.helpers.tiny import VOCAB, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TASKS = [f"task-{number}" for number in range(5)]
TENANTS = ("red", "blue", "green")
ROWS, SLOTS, POSITIONS = 3, 4, 48
MODELS = [
    "Llama", "Llama, yarn", "Mistral", "Mixtral", "Qwen 3", "Qwen 3 MoE", "Gemma 2", "gpt-oss", "DeepSeek V3", "Phi",
    "Cohere", "OLMo 2", "GPT-2", "GPT-NeoX", "GPT-J", "OPT", "BLOOM", "Falcon", "Falcon, ALiBi", "MPT", "BioGPT",
]  # fmt: skip


@dataclass
class Recorder:
    """The logits that rows of a batch got, by the id of the row."""

    batch: Batch
    logits: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self):
        forward = self.batch._forward

        def recorded(rows, *arguments):
            found = forward(rows, *arguments)
            for row, one in zip(rows, found, strict=True):
                self.logits.setdefault(id(row), []).append(one)
            return found

        self.batch._forward = recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("banks")


@cache
def served(name, folder):
    """A bank on one of the zoo's models as it was trained, and an engine that serves it from disk."""
    base = ZOO[name].make()
    torch.manual_seed(1)
    config = CoLoRAConfig(r=2, lora_alpha=8, tasks=TASKS, init_weights=False, task_type="CAUSAL_LM")
    bank = get_peft_model(base, config).double().eval()
    save_bank(bank, folder / name, BankInfo("zoo", chat_template=False, max_length=POSITIONS))
    store = CoreStore(folder / name)
    model = attach_slots(ZOO[name].make(), store.saved, SLOTS)
    resident = Resident(model)
    with resident.sample(store.saved) as tasks:
        batch = Batch(model, tiny_tokenizer(), ROWS, POSITIONS, tasks)
    batch.ends = set()
    return bank, Engine(batch, store, resident), Recorder(batch)


requests = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "task": st.integers(0, len(TASKS) - 1),
        "seed": st.integers(0, 10**6),
        "length": st.integers(1, POSITIONS - 1),
        "tokens": st.integers(1, 14),
        "steps": st.integers(0, 3),  # that follow before the next request
        "cancelled_after": st.sampled_from([None, None, None, 0, 2]),  # steps
    }
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(MODELS), st.lists(requests, min_size=2, max_size=8))
def test_every_answer_is_what_plain_generation_gives(folder, name, asked):
    bank, engine, recorder = served(name, folder)
    recorder.logits.clear()
    scheduler = Scheduler(engine, 100, Metrics(), lambda: len(TENANTS))
    faults, tickets, leaving = [], [], {}

    def iterate(steps):
        for _ in range(steps):
            for ticket in [ticket for ticket, left in leaving.items() if left == 0]:
                scheduler.cancel(ticket)
            leaving.update({ticket: left - 1 for ticket, left in leaving.items()})
            scheduler._iterate()

    for one in asked:
        prompt = torch.randint(6, VOCAB, (one["length"],), generator=torch.Generator().manual_seed(one["seed"]))
        ticket = scheduler.submit(
            one["tenant"], TASKS[one["task"]], prompt.tolist(), Sampling(one["tokens"]),
            lambda piece: faults.append(piece) if isinstance(piece, Exception) else None,
        )  # fmt: skip
        tickets.append((ticket, one["task"]))
        if one["cancelled_after"] is not None:
            leaving[ticket] = one["cancelled_after"]
        iterate(one["steps"])
    while scheduler.waiting or scheduler.running:
        iterate(1)
    assert not faults
    assert not engine.batch.rows
    for ticket, task in tickets:
        row = ticket.row
        assert ticket.cancelled or row.finish == "length"
        if row.tokens:
            check(bank, row, task, recorder.logits[id(row)])


@torch.inference_mode()
def check(bank, row, task, logits):
    """Each token is the likeliest one after those before it, by the plain forward pass, and its logits are those."""
    ids = torch.tensor([row.prompt + row.tokens[:-1]])
    expected = bank(input_ids=ids, task_ids=[task], use_cache=False).logits[0, len(row.prompt) - 1 :]
    assert row.tokens == expected.argmax(-1).tolist()
    spread = expected.std(-1, keepdim=True)
    assert ((torch.stack(logits) - expected).abs() / spread).max() < 1e-5  # softmax and norms are in float32
