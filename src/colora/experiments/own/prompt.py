"""The prompt of a comparison: one for all contenders, decided once before anything is trained."""

from collections.abc import Callable, Sequence
from typing import Any

from colora.models.prompt_choice import likeliest_template
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import Task, prompted
from colora.tasks.tokenizer import Tokenizer

__all__ = ["decide_prompt"]


def decide_prompt(
    model: Any, tokenizer: Tokenizer, tasks: Sequence[Task], max_length: int, log: Callable[[str], None]
) -> tuple[list[Task], str]:
    """The tasks with their prompt, and what it is in words.

    Where the run file says nothing, it is the tokenizer's chat template, if that is in use, or the named template under
    which the base finds the training answers likeliest.
    """
    if tokenizer.chat_template:
        return list(tasks), "the tokenizer's chat template"
    name, nats = likeliest_template(model, tokenizer, tasks, max_length)
    log(f"prompt: {name}; nats of an answer: {', '.join(f'{one} {value:.2f}' for one, value in nats.items())}")
    template = NAMED_TEMPLATES[name]
    return [prompted(task, template) for task in tasks], template.text
