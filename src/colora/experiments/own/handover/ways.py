"""How to go on after a comparison: commands to copy, each under what it is for."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from colora.experiments.own.contenders import IN_CONTEXT
from colora.experiments.own.handover.contexts import PROMPTS
from colora.experiments.trial import Trial
from colora.models.base import hub_name
from colora.tasks.schema import Task, task_template
from colora.training.config import RunConfig
from colora.training.rates import default_weight_decay

__all__ = ["Way", "as_lines", "to_train_again", "to_use"]

Way = tuple[str, str]
"""What a command is for, and the command."""

MOST_LETTERS = 100  # of an input that is shown
MOST_RANK = 256  # of a bank that holds the LoRAs of all tasks as they are
MOST_NAMED = 8  # LoRAs in a command
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def as_lines(ways: Sequence[Way]) -> list[str]:
    """Two lines for each: what it is for, and the command, indented."""
    return [line for purpose, command in ways for line in (f"{purpose}:", f"    {command}")]


def to_use(folder: Path, trial: Trial, tasks: Sequence[Task], config: RunConfig, prompt: str) -> list[Way]:
    """How to get answers from what was handed over.

    Args:
        folder: of the adapters.
        trial: which they are of.
        tasks: of it.
        config: the run file.
        prompt: of all tasks, as `colora import --prompt` takes it if they have one in common.
    """
    if trial.method == IN_CONTEXT:
        about = "Put before each input what this file has for its task (`before`, then `template` with the input)"
        return [(about, str(folder / PROMPTS))]
    if (folder / "bank").is_dir():
        return _from_bank(folder / "bank", tasks)
    loras = sorted(one for one in (folder / "lora").iterdir() if one.is_dir())
    rank = trial.rank * (2 if trial.method == "oppu" else 1)
    ways = [("LoRAs for PEFT, vLLM or TGI; the README of each tells the prompt. With vLLM", _vllm(loras, rank, config))]
    if rank * len(loras) > MOST_RANK or len({task_template(task) for task in tasks}) > 1:
        return ways
    bank = folder.with_name("bank-of-loras")
    given = ["colora", "import", *map(str, loras), "--output", str(bank), "--rank", str(rank * len(loras))]
    made = shlex.join([*given, "--base", config.base, "--prompt", prompt.replace("\n", "\\n")])
    return [("Make one bank of the LoRAs, exact up to rounding", made), *_from_bank(bank, tasks), *ways]


def _from_bank(bank: Path, tasks: Sequence[Task]) -> list[Way]:
    example = tasks[0].splits["test"][0]
    text = shorten(example.input, MOST_LETTERS, placeholder="…")
    told = ["--instruction", example.instruction] if example.instruction else []
    return [
        ("Generate one answer", shlex.join(["colora", "generate", str(bank), "--task", tasks[0].name, text, *told])),
        ("Serve all tasks", shlex.join(["colora", "serve", str(bank)])),
    ]


def _vllm(loras: Sequence[Path], rank: int, config: RunConfig) -> str:
    enough = next((one for one in VLLM_RANKS if one >= rank), rank)
    start = ["vllm", "serve", hub_name(config.base) or config.base, "--enable-lora", "--max-lora-rank", str(enough)]
    shown = [f"{one.name}={one}" for one in loras[:MOST_NAMED]]
    more = " NAME=FOLDER ..." if len(loras) > MOST_NAMED else ""
    return shlex.join([*start, "--lora-modules", *shown]) + more


def to_train_again(trial: Trial, config: RunConfig, command: Sequence[str]) -> Way:
    """The `colora train` that trains CoLoRA as this trial did: with its steps, rows and rates, where they differ.

    Args:
        trial: of CoLoRA.
        config: the run file.
        command: the run file's name and the fields that were changed.
    """
    spec = config.training.model_copy(update={"steps": trial.steps})
    decay = default_weight_decay(trial.lr, trial.steps) if spec.weight_decay is None else spec.weight_decay
    fields = {
        "steps": (config.training.steps, trial.steps),
        "rows": (spec.rows, trial.rows * len(trial.tasks)),
        "lr": (spec.lr, trial.lr),
        "core_lr": (spec.core_lr, trial.core_lr),
        "warmup_steps": (spec.warmup, trial.warmup_steps),
        "weight_decay": (decay, trial.weight_decay),
        "max_grad_norm": (spec.max_grad_norm, 0.0),  # comparisons do not clip
    }
    changed = {f"training.{name}": f"{new:g}" for name, (old, new) in fields.items() if new is not None and old != new}
    kept = [one for one in command if one.partition("=")[0] not in changed]
    words = ["colora", "train", *kept, *(f"{name}={value}" for name, value in changed.items())]
    return "Train CoLoRA with the steps, rows and rates that were measured", shlex.join(words)
