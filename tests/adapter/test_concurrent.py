"""Several threads, replicas and coroutines call one model, each with tasks of its own."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.checkpoint import checkpoint

from colora.adapter.config import CoLoRAConfig
from colora.errors import TaskIdError
from tests.helpers.tiny import VOCAB, tiny_llama, tiny_t5

TASKS = ["a", "b"]
STEPS = 20


def banked(base: nn.Module, task_type: str | None = "CAUSAL_LM", **options: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(
        base, CoLoRAConfig(r=4, lora_alpha=8, tasks=TASKS, init_weights=False, task_type=task_type, **options)
    )


def in_threads(*work: Callable[[], object]) -> list[Any]:
    """What each function gave, all run at once; the first error of any is raised."""
    results: list[Any] = [None] * len(work)
    errors: list[Exception] = []
    start = threading.Barrier(len(work))

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = work[index]()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def replica(model: nn.Module) -> Any:
    """A shallow copy as `torch.nn.DataParallel` makes one for each device; that class itself wants two GPUs."""
    copies = {id(module): module._replicate_for_data_parallel() for module in model.modules()}
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None:
                copies[id(module)]._modules[name] = copies[id(child)]
        copies[id(module)]._parameters = dict(module._parameters)
    return copies[id(model)]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(6, VOCAB, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_replicas_in_threads_compute_each_with_its_own_tasks(ids, checkpointing):
    model = banked(tiny_llama(layers=4)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()

    def gradients(forward: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        forward().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def loss(part: Any, row: int) -> torch.Tensor:
        rows = ids[row : row + 1]
        return part(input_ids=rows, labels=rows, task_ids=torch.tensor([row])).loss

    want = gradients(lambda: loss(model, 0) + loss(model, 1))
    for _ in range(STEPS):
        parts = [replica(model), replica(model)]
        got = gradients(
            lambda parts=parts: sum(in_threads(lambda: loss(parts[0], 0), lambda: loss(parts[1], 1)))  # type: ignore[misc]
        )
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("base", "task_type"), [(tiny_llama, "CAUSAL_LM"), (tiny_t5, "SEQ_2_SEQ_LM")])
def test_threads_generate_each_with_its_own_tasks(ids, base, task_type):
    model = banked(base(), task_type).eval()

    def generate(task: str) -> list[int]:
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        return model.generate(input_ids=ids[:1, :7], task_ids=[task], **options)[0].tolist()

    want = [generate("a"), generate("b")]
    assert want[0] != want[1]
    for _ in range(5):
        assert in_threads(lambda: generate("a"), lambda: generate("b")) == want


def test_a_generation_keeps_the_task_that_was_set_when_it_began(ids):
    model = banked(tiny_llama()).eval()
    model.set_task("a")
    base = model.get_base_model()
    want = base(input_ids=ids).logits
    with model.base_model.tasks_of(None):
        in_threads(lambda: model.set_task("b"))
        torch.testing.assert_close(base(input_ids=ids).logits, want)
    assert not torch.allclose(base(input_ids=ids).logits, want)


def test_coroutines_that_wait_inside_a_block_keep_their_tasks(ids):
    model = banked(tiny_llama()).eval()
    base = model.get_base_model()
    want = {task: model(input_ids=ids, task_ids=[task, task]).logits for task in TASKS}

    async def ask(task: str) -> torch.Tensor:
        with model.base_model.tasks_of([task, task]):
            await asyncio.sleep(0)
            here = base(input_ids=ids).logits
            await asyncio.sleep(0)
            there = await asyncio.to_thread(base, input_ids=ids)
        torch.testing.assert_close(here, there.logits)
        return here

    async def both() -> list[torch.Tensor]:
        return await asyncio.gather(*map(ask, TASKS))

    for task, logits in zip(TASKS, asyncio.run(both()), strict=True):
        torch.testing.assert_close(logits, want[task])


def test_a_thread_does_not_see_the_tasks_of_another(ids):
    model = banked(tiny_llama())
    model(input_ids=ids, task_ids=["a", "b"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with pytest.raises(TaskIdError, match="which task"):
        in_threads(lambda: layer(torch.zeros(2, 3, 32)))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("failing", [False, True])
def test_an_inner_module_does_not_see_the_tasks_of_an_earlier_batch(ids, grad, failing, monkeypatch):
    model = banked(tiny_llama())
    base = model.get_base_model()
    with torch.set_grad_enabled(grad):
        if failing:
            monkeypatch.setattr(base.lm_head, "forward", lambda x: x @ torch.zeros(3, 3))
            with pytest.raises(RuntimeError):
                model(input_ids=ids, task_ids=["a", "b"])
            monkeypatch.undo()
        else:
            model(input_ids=ids, task_ids=["a", "b"])
        with pytest.raises(TaskIdError, match="which task"):
            base.model(input_ids=ids)
        model.set_task("b")
        with model.base_model.tasks_of(["b", "a"]):
            inner = base.model(input_ids=ids)[0]
        whole = model(input_ids=ids, task_ids=["b", "a"], output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(inner, whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_routing_of_its_own(ids, copied):
    model = banked(tiny_llama()).eval()
    with model.base_model.tasks_of(["a", "b"]):
        other = copied(model)
        assert other.base_model.router.generating is None
    other.set_task("b")
    assert model.base_model.router.selected == {}
    torch.testing.assert_close(
        other(input_ids=ids).logits[:1], model(input_ids=ids, task_ids=["b", "b"]).logits[:1], rtol=0, atol=0
    )


# ---- what is computed again in the backward pass ------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A block as code outside of transformers checkpoints it: by a plain call, which knows nothing of tasks."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.block, *args, use_reentrant=False, **kwargs)


def checkpointed_by_hand(wrap: Callable[[nn.Module], nn.Module]) -> Any:
    model = banked(tiny_llama()).train()
    layers = model.base_model.model.model.layers
    for index in range(len(layers)):
        layers[index] = wrap(layers[index])
    return model


def loss_of(model: Any, ids: torch.Tensor, tasks: list[str]) -> torch.Tensor:
    return model(input_ids=ids, labels=ids, task_ids=tasks, use_cache=False).loss


def core_gradients(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for name, p in model.named_parameters() if "colora_core" in name]


def test_torchs_checkpoint_wrapper_keeps_the_tasks_of_its_call(ids):
    plain, wrapped = banked(tiny_llama()).train(), checkpointed_by_hand(CheckpointWrapper)
    for model in (plain, wrapped):
        losses = [loss_of(model, ids, ["a", "b"]), loss_of(model, ids, ["b", "b"])]
        for loss in losses:
            loss.backward()
    for got, want in zip(core_gradients(wrapped), core_gradients(plain), strict=True):
        torch.testing.assert_close(got, want)


def test_a_foreign_checkpoint_is_right_or_refused(ids):
    plain, wrapped = banked(tiny_llama()).train(), checkpointed_by_hand(Checkpointed)
    for model in (plain, wrapped):
        for tasks in (["a", "b"], ["b", "b"]):
            loss_of(model, ids, tasks).backward()
    for got, want in zip(core_gradients(wrapped), core_gradients(plain), strict=True):
        torch.testing.assert_close(got, want)
    first, _ = loss_of(wrapped, ids, ["a", "b"]), loss_of(wrapped, ids, ["b", "b"])
    with pytest.raises(TaskIdError, match="several forward passes went before"):
        first.backward()


def test_a_foreign_checkpoint_in_another_thread_is_refused(ids):
    loss = loss_of(checkpointed_by_hand(Checkpointed), ids, ["a", "b"])
    with pytest.raises(TaskIdError, match="ran in another thread"):
        in_threads(loss.backward)


def compiled_in_pieces(base: nn.Module, **options: Any) -> tuple[Any, Any]:
    """A bank, and it compiled; the compiler gives up between the model's entry and its layers, and goes on after it."""
    torch._dynamo.reset()
    model = banked(base, **options)
    model.base_model.model.model.embed_tokens.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    return model, torch.compile(model, backend="eager")


def test_a_model_compiled_in_pieces_has_the_tasks_of_each_call():
    model, compiled = compiled_in_pieces(tiny_llama(layers=1))
    x = torch.randint(6, VOCAB, (2, 7))
    calls = [torch.tensor(ids) for ids in ([0, 1], [1, 0], [1, 1], [0, 1])]
    expected = [model(input_ids=x, task_ids=ids).logits.detach() for ids in calls]
    found = [compiled(input_ids=x, task_ids=ids).logits.detach() for ids in calls]
    assert all(map(torch.allclose, found, expected))
    with model.base_model.tasks_of(["b", "a"]):
        assert torch.allclose(compiled(input_ids=x).logits, expected[1])
    with pytest.raises(TaskIdError, match="which task"):
        compiled(input_ids=x)
    assert torch.allclose(compiled(input_ids=x, task_ids=calls[0]).logits, expected[0])


def test_a_compiled_model_may_be_called_in_other_threads():
    model, compiled = compiled_in_pieces(tiny_llama(layers=1))
    x = torch.randint(6, VOCAB, (2, 7))
    calls = [torch.tensor(ids) for ids in ([0, 1], [1, 0], [1, 1])]
    expected = [model(input_ids=x, task_ids=ids).logits.detach() for ids in calls]
    compiled(input_ids=x, task_ids=calls[0])
    for ids, logits in zip(calls, expected, strict=True):
        (found,) = in_threads(lambda ids=ids: compiled(input_ids=x, task_ids=ids).logits.detach())
        assert torch.allclose(found, logits)


def test_a_whole_compiled_model_without_ids_refuses_and_keeps_no_ids():
    torch._dynamo.reset()
    model = banked(tiny_llama(layers=1))
    compiled, x = torch.compile(model, backend="eager"), torch.randint(6, VOCAB, (2, 7))
    expected = model(input_ids=x, task_ids=["a", "b"]).logits
    model(input_ids=x, task_ids=["b", "a"])
    with pytest.raises(TaskIdError, match="which task"):
        compiled(input_ids=x)
    assert torch.allclose(compiled(input_ids=x, task_ids=torch.tensor([0, 1])).logits, expected)
