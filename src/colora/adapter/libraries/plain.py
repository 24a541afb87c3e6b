"""A bank used through transformers alone: `load_adapter`, `AutoModelForCausalLM.from_pretrained(bank)`, `pipeline`.

There is no `PeftModel` there whose `generate` would take the ids. So the class of a model that gets a bank learns
`generate(task_ids=...)` and `set_task`, and transformers' pipelines learn `task_ids=[...]`, one for each input.
Models without a bank, also those of the same class, do what they did.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from colora.adapter.hook import batch_of
from colora.adapter.lookup import bank_router, bank_routers, set_task, with_tasks
from colora.errors import TaskIdError

__all__ = ["teach_class", "teach_pipelines"]


def teach_class(model: nn.Module) -> None:
    """Let `generate` of the model's class take `task_ids`, and give transformers' models `set_task`; idempotent."""
    kinds: tuple[Any, ...] = type(model).__mro__
    for cls in kinds:
        generate = vars(cls).get("generate")
        if generate is not None:
            if not hasattr(generate, "_colora_routed"):
                cls.generate = _routed_generate(generate)
            break
    if isinstance(model, PreTrainedModel) and not hasattr(type(model), "set_task"):
        type(model).set_task = set_task


def _routed_generate(generate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(generate)
    def routed(self: nn.Module, *args: object, **kwargs: Any) -> Any:
        if kwargs.get("task_ids") is None or bank_router(self) is None:
            return generate(self, *args, **kwargs)
        with with_tasks(self, kwargs.pop("task_ids"), batch_of(args, kwargs)):
            return generate(self, *args, **kwargs)

    routed._colora_routed = True  # type: ignore[attr-defined]
    return routed


def teach_pipelines() -> None:
    """Let every pipeline of transformers take `task_ids` where its model has a bank; idempotent."""
    from transformers.pipelines.base import Pipeline

    if not hasattr(Pipeline.__call__, "_colora_routed"):
        Pipeline.__call__ = _routed_call(Pipeline.__call__)


def _routed_call(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def routed(self: object, inputs: object, *args: object, **kwargs: Any) -> Any:
        model = getattr(self, "model", None)
        if kwargs.get("task_ids") is None or not isinstance(model, nn.Module) or not bank_routers(model):
            return call(self, inputs, *args, **kwargs)
        ids = kwargs.pop("task_ids")
        ids = [ids] if isinstance(ids, str | int) else ids
        if isinstance(inputs, Iterator | Dataset):
            raise TaskIdError(f"a pipeline with task_ids takes a list of inputs, found a {type(inputs).__name__}")
        many = inputs if isinstance(inputs, list | tuple) and not _is_chat(inputs) else None
        count = 1 if many is None else len(many)
        if len(ids) != count:
            raise TaskIdError(
                f"task_ids name {len(ids)} rows, but the pipeline got {count} inputs: expected one for each"
            )
        if many is None:
            with with_tasks(model, ids):
                return call(self, inputs, *args, **kwargs)
        together = _rows_together(self, kwargs)
        results: list[Any] = []
        for start in range(0, count, together):
            with with_tasks(model, ids[start : start + together]):
                results += call(self, list(many[start : start + together]), *args, **kwargs)
        return results

    routed._colora_routed = True  # type: ignore[attr-defined]
    return routed


def _rows_together(pipeline: object, settings: Mapping[str, Any]) -> int:
    """How many inputs the pipeline gives its model at once; one, where an input becomes several rows."""
    from transformers.pipelines.base import ChunkPipeline

    if isinstance(pipeline, ChunkPipeline):
        return 1
    return settings.get("batch_size") or getattr(pipeline, "_batch_size", None) or 1


def _is_chat(inputs: object) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and isinstance(inputs[0], Mapping) and "role" in inputs[0]
