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

__all__ = ["LEFT_OUT", "likeliest_template", "template_nats"]

EXAMPLES = 8
ROWS = 16

# An arrow makes an untouched model say single words of the right kind, and is a bad beginning for training: on lists a
# LoRA each reached 55 % after it and 73 % after "Q: ... A:" (docs/decisions/tasks-and-prompts.md).
LEFT_OUT = ("arrow",)


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
        tasks: the answers of at most `EXAMPLES` training examples of each are looked at.
        max_length: rows that are longer are left out.
        candidates: templates by name, None for the tokenizer's own chat template; by default the named ones without
            the arrow, and the chat template where there is one.

    Returns:
        the name, and for each candidate the mean over tasks of the mean nats of an answer without its end token, which
        do not depend on how a template makes an answer fall into tokens.
    """
    if candidates is None:
        candidates = {name: one for name, one in NAMED_TEMPLATES.items() if name not in LEFT_OUT}
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
        examples = prompted(task, template).splits["train"][:EXAMPLES]
        rows = [
            (
                prompt_ids(example, tokenizer, encoder_decoder=encoder_decoder),
                _answer(example, tokenizer, encoder_decoder),
            )
            for example in examples
        ]
        fitting = [(prompt, answer) for prompt, answer in rows if len(prompt) + len(answer) <= max_length]
        if fitting:
            means.append(_mean_nats(model, fitting))
    return sum(means) / len(means) if means else float("inf")


def _answer(example: Example, tokenizer: Tokenizer, encoder_decoder: bool) -> list[int]:
    return answer_ids(example, example.outputs[0], tokenizer, encoder_decoder)


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
