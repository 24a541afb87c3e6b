"""Which prompt suits a model: the one under which it finds the right answers likeliest before it learns anything.

Some examples of the task stand before each question. Without them a prompt wins that makes the model say anything at
all of the right kind; with them one wins under which the model sees what is asked (docs/decisions/prompts.md).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from colora.models.batching import device_of, pad
from colora.models.likelihood import is_encoder_decoder, row_nll
from colora.models.modes import eval_mode
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import answer_ids, end_token_id, prompt_ids
from colora.tasks.prompting.templates import NAMED_TEMPLATES, PromptTemplate
from colora.tasks.schema import Example, Task, prompted
from colora.tasks.tokenizer import Tokenizer

__all__ = ["likeliest_template", "template_nats"]

EXAMPLES = 6
SHOTS = 3
ROWS = 16
BETWEEN = "\n\n"


def likeliest_template(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    max_length: int,
    candidates: Mapping[str, PromptTemplate | None] | None = None,
) -> tuple[str, dict[str, float]]:
    """The name of the template under which the model finds the training answers likeliest, and the nats of each.

    Args:
        model: the base, without adapters.
        tokenizer: its tokenizer.
        tasks: the answers of at most `EXAMPLES` training examples of each are looked at, each after `SHOTS` others.
        max_length: rows that are longer get fewer examples to begin with, at last none; longer ones are left out.
        candidates: templates by name, None for the tokenizer's own chat template; by default all named ones, and the
            chat template where there is one.

    Returns:
        the name, and for each candidate the mean over tasks of the mean nats of an answer without its end token, which
        do not depend on how a template makes an answer fall into tokens.
    """
    if candidates is None:
        candidates = dict(NAMED_TEMPLATES)
        if tokenizer.chat_template and not is_encoder_decoder(model):
            candidates["chat"] = None
    nats = {name: template_nats(model, tokenizer, tasks, max_length, one) for name, one in candidates.items()}
    return min(nats, key=nats.__getitem__), nats


def template_nats(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    max_length: int,
    template: PromptTemplate | None,
) -> float:
    """Mean over tasks of the mean nats of an answer, without its end token; infinite if every row is too long."""
    encoder_decoder = is_encoder_decoder(model)
    means = []
    for task in tasks:
        examples = prompted(task, template).splits["train"]
        asked = range(min(EXAMPLES, len(examples)))
        rows = [_fitting_row(examples, index, tokenizer, max_length, encoder_decoder) for index in asked]
        if fitting := [row for row in rows if row is not None]:
            means.append(_mean_nats(model, fitting))
    return sum(means) / len(means) if means else float("inf")


_IdsAndAnswer = tuple[list[int], list[int]]


def _fitting_row(
    examples: Sequence[Example], index: int, tokenizer: Tokenizer, max_length: int, encoder_decoder: bool
) -> _IdsAndAnswer | None:
    """Prompt and answer of one example after as many others as fit; None if it is too long alone."""
    example = examples[index]
    shots = 0 if encoder_decoder else min(SHOTS, len(examples) - 1)  # an encoder was trained to read one question
    others = [examples[(index + 1 + offset) % len(examples)] for offset in range(shots)]
    question = prompt_ids(example, tokenizer, encoder_decoder=encoder_decoder)
    answer = answer_ids(example, example.outputs[0], tokenizer, encoder_decoder)
    for number in range(shots, -1, -1):
        prompt = _joined([*map(partial(_answered, tokenizer=tokenizer), others[:number]), question], tokenizer)
        if len(prompt) + len(answer) <= max_length * (1 + number):
            return prompt, answer
    return None


def _answered(example: Example, tokenizer: Tokenizer) -> list[int]:
    ids = prompt_ids(example, tokenizer) + answer_ids(example, example.outputs[0], tokenizer)
    ends = example.template is None and tokenizer.chat_template
    return [*ids, end_token_id(tokenizer)] if ends else ids


def _joined(parts: Sequence[list[int]], tokenizer: Tokenizer) -> list[int]:
    """One text of several, with the token that begins a text at its beginning alone."""
    between = tokenizer(BETWEEN, add_special_tokens=False)["input_ids"]
    ids = list(parts[0])
    for part in parts[1:]:
        begins = bool(part) and part[0] == tokenizer.bos_token_id
        ids += [*between, *part[begins:]]
    return ids


@torch.no_grad()
def _mean_nats(model: PreTrainedModel, rows: Sequence[_IdsAndAnswer]) -> float:
    device, encoder_decoder = device_of(model), is_encoder_decoder(model)
    total = 0.0
    with eval_mode(model):
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            if encoder_decoder:
                ids, labels = [prompt for prompt, _ in part], [answer for _, answer in part]
            else:
                ids = [prompt + answer for prompt, answer in part]
                labels = [[IGNORED] * len(prompt) + answer for prompt, answer in part]
            padded, mask = pad(ids, 0, device)
            inputs = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
            total += float(row_nll(model, inputs, pad(labels, IGNORED, device)[0]).sum())
    return total / len(rows)
