"""Which prompt suits a model: the one under which it finds the right answers likeliest before it learns anything."""

from collections.abc import Mapping, Sequence

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

__all__ = ["likeliest_template", "template_nats"]

EXAMPLES = 8
ROWS = 16


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
        tasks: at most `EXAMPLES` training examples of each are looked at.
        max_length: rows that are longer are left out.
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
    means = []
    for task in tasks:
        rows = [
            _row(example, tokenizer, is_encoder_decoder(model))
            for example in prompted(task, template).splits["train"][:EXAMPLES]
        ]
        rows = [row for row in rows if len(row[0]) + len(row[1]) <= max_length]
        if rows:
            means.append(_mean_nats(model, rows))
    return sum(means) / len(means) if means else float("inf")


def _row(example: Example, tokenizer: Tokenizer, encoder_decoder: bool) -> tuple[list[int], list[int]]:
    prompt = prompt_ids(example, tokenizer, encoder_decoder=encoder_decoder)
    return prompt, answer_ids(example, example.outputs[0], tokenizer, encoder_decoder)


@torch.no_grad()
def _mean_nats(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> float:
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
