"""Examples in the prompt, slow and plain: one text for each question, read whole, token by token, without a cache."""

import re

import torch
from torch import nn

from colora.tasks.schema import Example, Task

__all__ = ["context_text", "greedy_answer", "nats_of", "words_in_common"]


def words_in_common(one: Example, other: Example) -> float:
    """Shared words over all words of two inputs."""
    mine, theirs = (set(re.findall(r"\w+", example.input.lower())) for example in (one, other))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 0.0


def context_text(
    task: Task, question: Example, template: str, limit: int, answer_room: int, nearest: bool
) -> tuple[str, str, int]:
    """The examples, the input in its template, and how many examples there are; one byte is one token.

    Args:
        task: its training examples; all examples have one instruction or none.
        question: a held-out example.
        template: begins with "{instruction}" and a separator.
        limit: bytes of the whole text, the answer included.
        answer_room: bytes kept free for the answer.
        nearest: order by shared words.
    """
    body = template.replace("{instruction}", "").lstrip()

    def asked(example: Example) -> str:
        return body.replace("{input}", example.input).partition("{output}")[0].rstrip(" ")

    lead = " " if "{output}" in body and body.partition("{output}")[0].endswith(" ") else ""
    shots = [asked(example) + lead + example.outputs[0] + "\n\n" for example in task.splits["train"]]
    order = list(range(len(shots)))
    if nearest:
        by_likeness = {n: words_in_common(question, task.splits["train"][n]) for n in order}
        order.sort(key=lambda n: (-by_likeness[n], n))
    gap = template.partition("{instruction}")[2]
    gap = gap[: len(gap) - len(gap.lstrip())]
    head = question.instruction + gap if question.instruction else ""
    queries = [question] if nearest else task.splits["test"]
    free = limit - answer_room - len(head) - max(len(asked(one).encode()) for one in queries)
    taken = []
    for n in order:
        if len(shots[n].encode()) <= free:
            taken.append(n)
            free -= len(shots[n].encode())
    if nearest:
        taken.reverse()
    return head + "".join(shots[n] for n in taken), asked(question), len(taken)


@torch.no_grad()
def nats_of(model: nn.Module, before: list[int], answer: list[int]) -> float:
    """−Σ log p of the answer's tokens after these, from one plain pass."""
    logits = model(torch.tensor([before + answer]), use_cache=False).logits[0].log_softmax(-1)
    return float(-sum(logits[len(before) - 1 + t, token] for t, token in enumerate(answer)))


@torch.no_grad()
def greedy_answer(model: nn.Module, before: list[int], steps: int, stops: set[int]) -> list[int]:
    """The likeliest tokens one after the other, up to a stop."""
    said: list[int] = []
    while len(said) < steps and not (said and said[-1] in stops):
        said.append(int(model(torch.tensor([before + said]), use_cache=False).logits[0, -1].argmax()))
    return said[:-1] if said and said[-1] in stops else said
