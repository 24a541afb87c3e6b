"""Which prompt suits a model: the one under which it finds the right answers likeliest before it learns anything."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel

from colora.models.batching import device_of, pad
from colora.models.likelihood import is_encoder_decoder, row_nll
from colora.models.modes import eval_mode
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import answer_ids, prompt_ids
from colora.tasks.prompting.templates import NAMED_TEMPLATES, PromptTemplate
from colora.tasks.schema import Example, Task, prompted
from colora.tasks.tokenizer import Tokenizer

__all__ = ["EXAMPLES", "LEFT_OUT", "TASKS", "likeliest_template"]

EXAMPLES, TASKS = 16, 64
"""Of each task at most so many training examples are looked at, and of a run at most so many tasks."""
ROWS = 16
ENOUGH = 0.5
"""A template is compared if it leaves room for this share of the examples that fit under the shortest one."""

# An arrow makes an untouched model say single words of the right kind, and is a bad beginning for training: on lists a
# LoRA each reached 55 % after it and 73 % after "Q: ... A:" (docs/decisions/tasks-and-prompts.md).
LEFT_OUT = ("arrow",)

Item = TypeVar("Item")


class _Place(NamedTuple):
    """An example: the number of its task, and its own among those looked at."""

    task: int
    example: int


class _Row(NamedTuple):
    prompt: list[int]
    answer: list[int]


def likeliest_template(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    max_length: int,
    candidates: Mapping[str, PromptTemplate | None] | None = None,
) -> tuple[str, dict[str, float]]:
    """The name of the template under which the model finds the training answers likeliest, and the nats of each.

    All templates are compared on the same examples: those whose rows fit under every template that is compared. Files
    may be sorted, by label or by date, so examples are taken at equal distances over the whole training split.

    Args:
        model: the base, without adapters.
        tokenizer: its tokenizer.
        tasks: at most `TASKS` of them, at equal distances, and at most `EXAMPLES` training examples of each are looked
            at.
        max_length: rows that are longer are left out.
        candidates: templates by name, None for the tokenizer's own chat template; by default the named ones without
            the arrow, and the chat template where there is one.

    Returns:
        the name, and for each candidate the mean over tasks of the mean nats of an answer without its end token, which
        do not depend on how a template makes an answer fall into tokens; infinite if the template makes rows too long.
    """
    if candidates is None:
        candidates = {name: one for name, one in NAMED_TEMPLATES.items() if name not in LEFT_OUT}
        if tokenizer.chat_template and not is_encoder_decoder(model):
            candidates["chat"] = None
    encoder_decoder = is_encoder_decoder(model)
    some = _spread(tasks, TASKS)
    rows = {name: _rows(some, one, tokenizer, encoder_decoder, max_length) for name, one in candidates.items()}
    compared, places = _comparable(rows)
    nats = {name: _mean_nats(model, rows[name], places) if name in compared else float("inf") for name in candidates}
    return min(nats, key=nats.__getitem__), nats


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of these, at equal distances, the first among them."""
    number = min(most, len(items))
    return [items[index * len(items) // number] for index in range(number)]


def _rows(
    tasks: Sequence[Task],
    template: PromptTemplate | None,
    tokenizer: Tokenizer,
    encoder_decoder: bool,
    max_length: int,
) -> dict[_Place, _Row]:
    """The rows that fit, of each task's examples that are looked at."""
    found = {}
    for number, task in enumerate(tasks):
        for index, example in enumerate(_spread(prompted(task, template).splits["train"], EXAMPLES)):
            row = _row(example, tokenizer, encoder_decoder)
            if len(row.prompt) + len(row.answer) <= max_length:
                found[_Place(number, index)] = row
    return found


def _row(example: Example, tokenizer: Tokenizer, encoder_decoder: bool) -> _Row:
    prompt = prompt_ids(example, tokenizer, encoder_decoder=encoder_decoder)
    return _Row(prompt, answer_ids(example, example.outputs[0], tokenizer, encoder_decoder))


def _comparable(rows: Mapping[str, Mapping[_Place, _Row]]) -> tuple[set[str], list[_Place]]:
    """The templates with enough rows that fit, and the examples whose rows fit under all of these.

    Templates that leave the least room are given up one by one until the others have enough examples in common.
    """
    left = sorted(rows, key=lambda name: len(rows[name]), reverse=True)
    while left and rows[left[0]]:
        common = [place for place in rows[left[0]] if all(place in rows[name] for name in left)]
        if len(common) >= ENOUGH * len(rows[left[0]]):
            return set(left), common
        left.pop()
    return set(), []


@torch.no_grad()
def _mean_nats(model: PreTrainedModel, rows: Mapping[_Place, _Row], places: Sequence[_Place]) -> float:
    """Mean over tasks of the mean nats of an answer."""
    device, encoder_decoder = device_of(model), is_encoder_decoder(model)
    nats: dict[int, list[float]] = defaultdict(list)
    with eval_mode(model):
        for start in range(0, len(places), ROWS):
            some = places[start : start + ROWS]
            prompts, answers = [rows[place].prompt for place in some], [rows[place].answer for place in some]
            if encoder_decoder:
                ids, labels = prompts, answers
            else:
                ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
                labels = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
            padded, mask = pad(ids, 0, device)
            inputs = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
            values = row_nll(model, inputs, pad(labels, IGNORED, device)[0]).tolist()
            for place, value in zip(some, values, strict=True):
                nats[place.task].append(value)
    return fmean(fmean(of_task) for of_task in nats.values())
