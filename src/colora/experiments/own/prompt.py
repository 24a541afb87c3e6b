"""The prompt of a comparison: the same for all contenders, decided once before anything is trained."""

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from colora.bank.layout import BankInfo
from colora.experiments.own.data import OwnTasks
from colora.tasks.prompting.templates import CHAT
from colora.tasks.schema import task_template
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AUTO, RunConfig
from colora.training.prompts import common_template
from colora.training.resolve import ResolvedRun, settle_prompt

__all__ = ["bank_info", "prompt_in_words", "settled"]


def settled(run: ResolvedRun, model: PreTrainedModel, tokenizer: Tokenizer, log: Callable[[str], None]) -> ResolvedRun:
    """The run with a prompt for each task.

    What the run file says holds. Where it says nothing, it is the tokenizer's chat template if that is in use, else
    "auto".

    Raises:
        ConfigError: see `settle_prompt`.
    """
    if run.prompt is None and not tokenizer.chat_template:
        run = replace(run, prompt=AUTO)
    return settle_prompt(run, model, tokenizer, log)


def prompt_in_words(run: ResolvedRun, tokenizer: Tokenizer) -> str:
    """The prompt of all tasks, or of each where they differ."""
    plain = CHAT if tokenizer.chat_template else "newline"
    texts = {task.name: plain if (found := task_template(task)) is None else found.text for task in run.tasks}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{task}: {text}" for task, text in texts.items())


def bank_info(config: RunConfig, data: OwnTasks, max_length: int, seen: int) -> BankInfo:
    """What a bank of these tasks says of itself; `seen`: rows of each task that were trained on."""
    common = common_template(None, data.tasks, None)
    info = BankInfo(
        base=config.base,
        chat_template=config.chat_template,
        max_length=max_length,
        examples=dict(zip([task.name for task in data.tasks], data.pool_sizes, strict=True)),
        seen={task.name: seen for task in data.tasks},
        sources={task.name: {"split_seed": task.split_seed} for task in data.tasks},
        prompt=None if common is None else common.text,
    )
    for task in data.tasks:
        info.set_template(task.name, task_template(task))
    return info
