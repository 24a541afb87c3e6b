"""Examples in the prompt of the base model: which ones, in what order, and as which tokens.

A prompt is the task's training examples with their answers, a blank line after each, and the input that is to be
answered. All stand in the trial's own template. An instruction stands once, at the top, if the template begins with it
and all examples have the same one; otherwise in each.

The end of an answer here is the blank line, not the end token: after every answer that the model has seen in its
prompt comes a blank line, so the end token would charge it for a habit it was never shown. An answer therefore counts
as many tokens as with a trained method: its own, and one that ends it, the first of the blank line.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from colora.errors import ConfigError
from colora.experiments.methods.forward import Row
from colora.experiments.trial import Trial
from colora.models.positions import most_positions
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import answer_ids, fit_prompt
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import Example, Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["BLANK_LINE", "Question", "Questions", "answer_end", "questions", "similarity_order"]

BLANK_LINE = "\n\n"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """A held-out example with examples before it, in tokens.

    Attributes:
        context: the examples with their answers and the blank line after each, and what a tokenizer puts first.
        prompt: the input, in its template; it is not empty.
        answer: the right answer, and the token that ends it.
        examples: how many are in the context.
    """

    context: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    examples: int

    @property
    def row(self) -> Row:
        """The question without its context, as the rows of trained methods are: for the count of answer tokens."""
        return Row(self.prompt + self.answer, (IGNORED,) * len(self.prompt) + self.answer)


@dataclass(frozen=True)
class Questions:
    """The questions of one task.

    Attributes:
        items: one for each held-out example.
        end: the text at which an answer ends.
    """

    items: tuple[Question, ...]
    end: str

    @property
    def share_context(self) -> bool:
        """Whether all have the same examples before them, whose keys and values are then computed once."""
        return len({question.context for question in self.items}) == 1


def questions(
    task: Task, tokenizer: Tokenizer, model: nn.Module, trial: Trial, context: int, nearest: bool
) -> Questions:
    """The task's held-out examples of the trial, each with as many training examples before it as fit.

    Args:
        task: with training examples, and those of `trial.split`.
        tokenizer: of the base model.
        model: whose positions bound the context as well.
        trial: says which split, how many examples, and how long an answer may be.
        context: most tokens of prompt and answer together.
        nearest: the examples most like the input (`similarity_order`), the nearest last; otherwise the first ones, in
            the order of the training list, the same for all inputs.

    Raises:
        ConfigError: if there is no room even for an input alone.

    Warns:
        UserWarning: if not all training examples fit.
    """
    positions = most_positions(model)
    limit = context if positions is None else min(context, positions)
    writer = _Writer(task, tokenizer)
    held_out = task.splits[trial.split][: trial.test]
    answers = [writer.answer(example) for example in held_out]
    longest = max(trial.max_new_tokens, *map(len, answers))
    room = limit - len(writer.start) - longest
    if room < 1:
        raise ConfigError(
            f"task {task.name!r}: expected room for a prompt in {limit} tokens, of which an answer takes {longest}: "
            "raise the option context"
        )
    prompts = [writer.prompt(example, room, False) for example in held_out]
    train = task.splits["train"]
    orders = [similarity_order(example, train) if nearest else list(range(len(train))) for example in held_out]
    used = [len(prompt) for prompt in prompts] if nearest else [max(map(len, prompts))] * len(prompts)
    items = []
    for example, order, prompt, answer, taken in zip(held_out, orders, prompts, answers, used, strict=True):
        chosen = writer.fitting(order, room - taken)
        shown = chosen[::-1] if nearest else chosen
        if not shown and writer.instructed_once:
            prompt = writer.prompt(example, room, True)
        items.append(Question(writer.context(shown), tuple(prompt), tuple(answer), len(shown)))
    if (fewest := min(item.examples for item in items)) < len(train):
        warnings.warn(
            f"task {task.name!r}: {fewest} of {len(train)} training examples fit a context of {limit} tokens",
            stacklevel=2,
        )
    return Questions(tuple(items), answer_end(train))


def answer_end(examples: Sequence[Example]) -> str:
    """Where a generated answer ends: at its first line break, or its first blank line if answers have lines."""
    return BLANK_LINE if any("\n" in output.strip() for example in examples for output in example.outputs) else "\n"


def similarity_order(example: Example, others: Sequence[Example]) -> list[int]:
    """Indices of `others`, the most similar input first: shared words over all words (Jaccard), ties by order."""
    words = _words(example)

    def similarity(index: int) -> float:
        theirs = _words(others[index])
        return len(words & theirs) / max(1, len(words | theirs))

    return sorted(range(len(others)), key=lambda index: -similarity(index))


def _words(example: Example) -> set[str]:
    return set(_WORD.findall(example.input.lower()))


class _Writer:
    """The tokens of one task's examples.

    Attributes:
        start: what the tokenizer puts before every text, such as a beginning-of-sequence token.
        instructed_once: the instruction stands before the first example alone.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        examples = [example for split in task.splits.values() for example in split]
        template = examples[0].template or NAMED_TEMPLATES["newline"]
        first_word = template.text.lstrip()
        self.instructed_once = len({example.instruction for example in examples}) == 1 and first_word.startswith(
            "{instruction}"
        )
        self.start = _start_ids(tokenizer)
        self.blank_line = list(tokenizer(BLANK_LINE, add_special_tokens=False, verbose=False)["input_ids"])
        self.train = task.splits["train"]
        room = len(max((example.input for example in self.train), key=len)) * 8 + 10_000  # nothing is cut here
        self._shown = {
            first: [self._shot(example, room, first) for example in self.train]
            for first in ({True, False} if self.instructed_once else {True})
        }

    def prompt(self, example: Example, room: int, first: bool) -> list[int]:
        """The input in its template, of at most `room` tokens; `first`: nothing stands before it."""
        ids, _ = fit_prompt(self._bare(example, first), self.tokenizer, room + len(self.start))
        return ids[len(self.start) :]

    def answer(self, example: Example) -> list[int]:
        """The right answer and what ends it."""
        return [*self._answer(example), self.blank_line[0]]

    def fitting(self, order: Sequence[int], room: int) -> list[int]:
        """As many training examples in this order as fit `room` tokens; one that does not fit is passed over."""
        if self.instructed_once and self.train:  # of which one will be the first, with the instruction
            room -= max(len(a) - len(b) for a, b in zip(self._shown[True], self._shown[False], strict=True))
        chosen = []
        for index in order:
            size = len(self._shown[not self.instructed_once][index])
            if size <= room:
                chosen.append(index)
                room -= size
        return chosen

    def context(self, shown: Sequence[int]) -> tuple[int, ...]:
        """These training examples in this order."""
        ids = list(self.start)
        for place, index in enumerate(shown):
            ids += self._shown[place == 0 or not self.instructed_once][index]
        return tuple(ids)

    def _shot(self, example: Example, room: int, first: bool) -> list[int]:
        return [*self.prompt(example, room, first), *self._answer(example), *self.blank_line]

    def _answer(self, example: Example) -> list[int]:
        return answer_ids(self._bare(example, True), example.outputs[0], self.tokenizer)

    def _bare(self, example: Example, first: bool) -> Example:
        template = example.template or NAMED_TEMPLATES["newline"]
        instruction = example.instruction if first or not self.instructed_once else None
        return replace(example, template=template, instruction=instruction)


def _start_ids(tokenizer: Tokenizer) -> list[int]:
    whole = list(tokenizer("a", verbose=False)["input_ids"])
    text = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    return next(whole[:n] for n in range(len(whole)) if whole[n : n + len(text)] == text)
