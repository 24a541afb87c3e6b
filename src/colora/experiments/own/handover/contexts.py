"""Examples in the prompt as a file: what stands before the input of each task, in the words that were measured.

ADAPTERS/prompts.json: for each task the text before every input, the template that the input is put into, how many
tokens and examples the text has, and the text at which an answer ends. An instruction that stands in that text alone
has no place in the template any more.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from colora.common.files import write_json
from colora.experiments.methods.in_context import questions
from colora.experiments.methods.registry import METHODS
from colora.experiments.trial import Trial
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer

__all__ = ["PROMPTS", "Context", "contexts", "write_contexts"]

PROMPTS = "prompts.json"


@dataclass(frozen=True)
class Context:
    """What stands before a task's inputs."""

    before: str
    template: str
    examples: int
    tokens: int
    answer_ends_at: str


def contexts(tasks: Sequence[Task], tokenizer: Tokenizer, model: PreTrainedModel, trial: Trial) -> dict[str, Context]:
    """The context of each task, as the trial had it."""
    method = METHODS[trial.method]
    room = int(method.with_defaults(trial.options)["context"])
    found = {}
    for task in tasks:
        asked = questions(task, tokenizer, model, trial, room, nearest=False)
        first = asked.items[0]
        template = task.splits["train"][0].template or NAMED_TEMPLATES["newline"]
        text, prompt = (_decoded(ids, tokenizer) for ids in (first.context, first.prompt))
        instruction = task.splits[trial.split][0].instruction
        shape = template.text
        if instruction and instruction in text and instruction not in prompt:
            shape = template.prompt(None, "{input}") + template.lead + "{output}"
        found[task.name] = Context(text, shape, first.examples, len(first.context), asked.end)
    return found


def _decoded(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def write_contexts(found: dict[str, Context], folder: Path) -> None:
    """Write `prompts.json`. Raises CheckpointError if it cannot be written."""
    write_json(folder / PROMPTS, {task: asdict(context) for task, context in found.items()})
