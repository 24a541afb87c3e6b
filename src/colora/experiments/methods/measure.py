"""What a trained method is worth on held-out examples, example by example, and what it costs to keep."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from colora.evaluation.choices import ChoiceScores
from colora.evaluation.metrics import METRICS
from colora.experiments.methods.forward import Row, SplitForward
from colora.experiments.methods.layer import ConstrainedLinear, distinct_parts
from colora.experiments.trial import TaskScores, Trial
from colora.models.generate import fit_prompts, generate_outputs
from colora.models.modes import eval_mode
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["in_blocks", "kept_parameters", "likelihoods", "score", "similarity", "texts", "trained_parameters"]

ROWS = 96


def likelihoods(forward: SplitForward, rows: Sequence[Sequence[Row]]) -> list[list[float]]:
    """Nats of every row's answer, task by task."""
    return [values.tolist() for values in in_blocks(forward, rows, forward.row_nll)]


def in_blocks(
    forward: SplitForward, rows: Sequence[Sequence[Row]], measure: Callable[[Sequence[Row]], Tensor]
) -> list[Tensor]:
    """What `measure` gives, (rows, ...), for every row, task by task: (rows of the task, ...) each.

    Tasks may differ in their number of rows: short ones are filled up.
    """
    longest = max(map(len, rows))
    found: list[list[Tensor]] = [[] for _ in rows]
    block = max(1, ROWS // len(rows))
    with eval_mode(forward.model):
        for start in range(0, longest, block):
            places = range(start, min(start + block, longest))
            batch = [examples[place % len(examples)] for examples in rows for place in places]
            for own, part in zip(found, measure(batch).chunk(len(rows)), strict=True):
                own.append(part)
    return [torch.cat(own)[: len(examples)] for own, examples in zip(found, rows, strict=True)]


def texts(model: nn.Module, tokenizer: Tokenizer, tasks: Sequence[Task], trial: Trial) -> list[list[str]]:
    """The greedy answers to the first `trial.generate` examples of each task in the trial's split.

    Tasks may differ in their number of examples: short ones are filled up, and what that adds is left out.
    """
    asked = [task.splits[trial.split][: trial.generate] for task in tasks]
    number = max(map(len, asked))
    rows = [
        (task.name, examples[place % len(examples)])
        for task, examples in zip(tasks, asked, strict=True)
        for place in range(number)
    ]
    prompts = fit_prompts(rows, model, tokenizer, trial.max_length, trial.max_new_tokens)
    block = max(1, ROWS // len(tasks))
    # Every batch holds the tasks in equal blocks.
    batches = [
        [task * number + place for task in range(len(tasks)) for place in range(start, min(start + block, number))]
        for start in range(0, number, block)
    ]
    answers = generate_outputs(model, tokenizer, prompts, None, trial.max_new_tokens, batches=batches)
    return [answers[task * number : task * number + len(examples)] for task, examples in enumerate(asked)]


def score(
    task: Task,
    split: str,
    rows: Sequence[Row],
    nll: Sequence[float],
    answers: Sequence[str],
    choices: ChoiceScores | None = None,
) -> TaskScores:
    """The scores of one task, rounded to what can matter."""
    references = [example.outputs for example in task.splits[split][: len(answers)]]
    pairs = list(zip(answers, references, strict=True))
    return TaskScores(
        nll=[round(value, 4) for value in nll],
        tokens=[row.answer_tokens for row in rows],
        choices=choices,
        **{
            metric.name: [round(metric.score(answer, right), 2) for answer, right in pairs]
            for metric in METRICS.values()
            if metric.score is not None
        },
    )


def trained_parameters(layers: dict[str, ConstrainedLinear]) -> int:
    """Parameters that were trained: copies that a server averages count once, and so does what several layers share."""
    total = 0
    for term, name, tensor in distinct_parts(layers.values()):
        part = term.term.parts()[name.rstrip("'")]
        if part.trained:
            total += tensor[0].numel() if part.averaged else tensor.numel()
    return total


def kept_parameters(layers: dict[str, ConstrainedLinear]) -> tuple[int, int]:
    """Parameters to be kept after training: once for all tasks, and for each task. Silent terms need not be kept."""
    shared = own = 0
    for layer in layers.values():
        shared += 0 if layer.folded is None else layer.folded.numel()
    for term, name, tensor in distinct_parts(layers.values()):
        part = term.term.parts()[name.rstrip("'")]
        if term.silent:
            continue
        if part.own and not part.averaged:
            own += tensor[0].numel()
        else:
            shared += tensor[0].numel()
    return shared, own


@torch.no_grad()
def similarity(layers: dict[str, ConstrainedLinear]) -> list[list[float]] | None:
    """Cosine of the tasks' full updates, (K, K), over all layers; None without updates of their own.

    ⟨B_i A_i, B_j A_j⟩ = ⟨B_iᵀ B_j, A_i A_jᵀ⟩, so no weight-sized matrix is formed. What is folded into W0 for all tasks
    is left out.
    """
    gram: Tensor | None = None
    for layer in layers.values():
        terms = layer.acting()
        if not terms:
            return None
        pairs = [[term.factors(task) for term in terms] for task in range(layer.tasks)]
        B = torch.stack([torch.cat([left for left, _ in pair], dim=1) for pair in pairs])
        A = torch.stack([torch.cat([right for _, right in pair], dim=0) for pair in pairs])
        left, right = torch.einsum("iab,jac->ijbc", B, B), torch.einsum("iba,jca->ijbc", A, A)
        part = layer.scale**2 * (left * right).sum((-1, -2))
        gram = part if gram is None else gram + part
    if gram is None:
        return None
    norm = gram.diagonal().clamp(min=1e-30).sqrt()
    return [[round(value, 4) for value in row] for row in (gram / norm[:, None] / norm).tolist()]
