"""The prompt of each task of a run: its own entry's, or the run's, or that of the bank that the run starts from.

OUTPUT/prompt.json     what `prompt: auto` took when the run began, and the nats of each candidate
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from colora.bank.layout import BankInfo
from colora.common.device import training_device
from colora.common.json_text import parse_json
from colora.errors import ConfigError
from colora.models.likelihood import is_encoder_decoder
from colora.models.prompt_choice import likeliest_template
from colora.tasks.column.source import TasksSource
from colora.tasks.column.tasks import ColumnTasks
from colora.tasks.prompting.templates import CHAT, NAMED_TEMPLATES, PromptTemplate, template_of
from colora.tasks.read import task_name
from colora.tasks.schema import Task, TaskSource, prompted, task_template
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AUTO, RunConfig, TasksFromSpec, TaskSpec

__all__ = [
    "FILE",
    "PromptChoice",
    "check_chat",
    "choose_prompt",
    "common_template",
    "prompted_tasks",
    "read_choice",
    "source_of",
    "table_of",
    "unplaced_text",
]

FILE = "prompt.json"


@dataclass(frozen=True)
class PromptChoice:
    """What `prompt: auto` took.

    Attributes:
        prompt: the text of a template, or "chat".
        nats: of an answer under each candidate, by name, as `likeliest_template` gives them; infinite where no example
            fits.
    """

    prompt: str
    nats: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """What `prompt.json` holds."""
        return {"prompt": self.prompt, "nats": {name: x if math.isfinite(x) else None for name, x in self.nats.items()}}

    def sentence(self) -> str:
        """The choice for the log."""
        ranked = sorted(self.nats.items(), key=lambda item: item[1])
        told = ", ".join(f"{name} {nats:.3f}" if math.isfinite(nats) else f"{name} too long" for name, nats in ranked)
        return f"prompt: auto takes {self.prompt!r}; nats of an answer at the base model: {told}"


def source_of(spec: TaskSpec) -> TaskSource:
    """Where the examples of a run file's task are."""
    return TaskSource(**spec.model_dump(exclude={"prompt"}))


def table_of(spec: TasksFromSpec) -> TasksSource:
    """Where the examples of all tasks of a run file are."""
    return TasksSource(**spec.model_dump())


def prompted_tasks(
    config: RunConfig, tasks: Sequence[Task], prompt: str | None, start: BankInfo | None
) -> Sequence[Task]:
    """The tasks of a run with the prompts that its files say.

    Of each task the first of these that is given: the prompt of its entry, the template that its examples have
    already, the run's prompt, the prompt it has in the bank that the run starts from. While the run's prompt is not
    decided ("auto"), tasks that it is for stay as they are.

    Args:
        config: the run file.
        tasks: as they were read.
        prompt: the run's, as far as it is decided.
        start: of the bank to start from.

    Raises:
        ConfigError: listing each task with an instruction that its prompt has no place for, or with a conversation.
    """
    if isinstance(tasks, ColumnTasks):
        return _prompted_column(tasks, prompt, start)
    own = _own_prompts(config)
    result, faults = [], []
    for task in tasks:
        place, entry = own.get(task.name, ("prompt", None))
        has_template = task_template(task) is not None
        if entry is not None:
            task = prompted(task, template_of(entry))
        elif prompt is not None and prompt != AUTO and not has_template:
            task = prompted(task, template_of(prompt))
        elif prompt is None and start is not None:
            task = start.prompted([task])[0]
        if fault := unplaced_text(task, task_template(task)):
            faults.append(f"{place}: task {task.name!r}, {fault}")
        result.append(task)
    if faults:
        raise ConfigError("these texts have no place in their prompts:", faults)
    return result


def _prompted_column(tasks: ColumnTasks, prompt: str | None, start: BankInfo | None) -> ColumnTasks:
    if prompt == AUTO:
        return tasks
    template = _template(prompt, start)
    for task in tasks.unplaced():
        if fault := unplaced_text(task, template):
            raise ConfigError(f"a text that has no place in its prompt: prompt: task {task.name!r}, {fault}")
    return tasks.prompted(template)


def _template(prompt: str | None, start: BankInfo | None) -> PromptTemplate | None:
    """Of tasks that have none of their own."""
    if prompt is not None:
        return template_of(prompt)
    return None if start is None else start.template()


def read_choice(config: RunConfig, ended: BankInfo | None) -> str | None:
    """The run's prompt as far as it is decided: "auto" only if nobody has decided it yet.

    Args:
        config: the run file.
        ended: of the run's own bank, if there is one.

    Raises:
        ConfigError: `prompt.json` is damaged.
    """
    if config.prompt != AUTO:
        return config.prompt
    file = Path(config.output) / FILE
    if not file.is_file():
        return AUTO if ended is None else ended.prompt
    try:
        prompt: str = parse_json(file.read_text(encoding="utf-8"))["prompt"]
        template_of(prompt)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: damaged: {error!r}; restore it, or choose another output") from error
    return prompt


def choose_prompt(
    config: RunConfig, tasks: Sequence[Task], model: PreTrainedModel, tokenizer: Tokenizer, log: Callable[[str], None]
) -> PromptChoice | None:
    """Decide `prompt: auto` for all tasks of a run without a prompt of their own, and tell the log.

    The chat template is a candidate unless `chat_template` is false; of conversations it is the only one. Of several
    processes each decides for itself, on a CPU alike.

    Args:
        config: the run file.
        tasks: those of the run.
        model: the base, without adapters.
        tokenizer: its tokenizer.
        log: takes lines for the user.

    Returns:
        the choice; None if every task has a prompt of its own.

    Raises:
        ConfigError: no example fits `max_length` whole, or conversations and no chat template.
    """
    open_tasks: Sequence[Task] = tasks
    if isinstance(tasks, ColumnTasks):
        conversations = "history" in tasks.summary["first"]
    else:
        own = _own_prompts(config)
        open_tasks = [task for task in tasks if task.name not in own and task_template(task) is None]
        if not open_tasks:
            return None
        conversations = any(example.history for task in open_tasks for example in task.splits["train"])
    candidates = {CHAT: None} if conversations else None
    device = training_device(config.training.device) if int(os.environ.get("WORLD_SIZE", "1")) == 1 else None
    before = model.device
    try:
        placed: Any = model if device is None else model.to(device)
        name, nats = likeliest_template(placed, tokenizer, open_tasks, config.training.max_length, candidates)
    finally:
        model.to(before)  # what is drawn later is drawn where it would be without a choice
    if not math.isfinite(nats[name]):
        raise ConfigError(
            f"prompt: auto: no training example fits into training.max_length ({config.training.max_length} tokens) "
            "whole: name a prompt, or raise max_length"
        )
    choice = PromptChoice(CHAT if name == CHAT else NAMED_TEMPLATES[name].text, nats)
    log(choice.sentence())
    return choice


def check_chat(prompts: Sequence[str | None], model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if one of the prompts is "chat" and there is no chat template to use."""
    if CHAT not in prompts:
        return
    if is_encoder_decoder(model):
        raise ConfigError("prompt: chat: an encoder-decoder reads plain texts; name another prompt, or none")
    if not tokenizer.chat_template:
        raise ConfigError("prompt: chat: the tokenizer of the base has no chat template; name another prompt, or none")


def common_template(prompt: str | None, tasks: Sequence[Task], start: BankInfo | None) -> PromptTemplate | None:
    """The template of tasks that come to a run's bank later: the run's, or that of the bank it starts from, or what all
    its tasks have."""
    if prompt is not None or start is not None:
        return _template(prompt, start)
    if isinstance(tasks, ColumnTasks):
        return tasks.template
    found = {task_template(task) for task in tasks}
    return found.pop() if len(found) == 1 else None


def unplaced_text(task: Task, template: PromptTemplate | None) -> str | None:
    """The first text of a task that its template has no place for."""
    if template is None:
        return None
    for split, examples in task.splits.items():
        for number, example in enumerate(examples, start=1):
            where = f"{split} example {number}"
            if example.instruction and not template.takes_instruction:
                return (
                    f"{where}: found the instruction {example.instruction[:40]!r}, and {template.text!r} has no "
                    "{instruction}: add it"
                )
            if example.history:
                return f"{where}: found a conversation, and {template.text!r} has a place for one text: take chat"
    return None


def _own_prompts(config: RunConfig) -> dict[str, tuple[str, str]]:
    """For each task whose entry has a prompt, the field and the prompt."""
    return {
        task_name(source_of(spec)): (f"tasks.{number}.prompt", spec.prompt)
        for number, spec in enumerate(config.tasks)
        if spec.prompt is not None
    }
