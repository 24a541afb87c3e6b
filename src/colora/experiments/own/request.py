"""What a comparison of a user's tasks is asked for: the run file's fields that it reads, and the command's options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from colora.adapter.config import CoLoRAConfig
from colora.errors import ConfigError
from colora.experiments.own.data import OwnTasks
from colora.experiments.trial import Trial
from colora.tasks.schema import SPLITS, Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AdapterSpec, RunConfig, TrainingSpec
from colora.training.rates import LR, default_weight_decay

__all__ = ["DEFAULT_MINUTES", "OwnOptions", "default_steps", "ignored_fields", "template_trial"]

DEFAULT_MINUTES = 15.0
MOST_TEST = 100  # examples of a task, unless the run file says how many
ROWS = 2  # of each task in each step
PASSES, LEAST_DEFAULT_STEPS, MOST_DEFAULT_STEPS = 7.5, 60, 400
# Of the adapter's settings and those of the training: what is read, and what changes no result.
_READ = {"r", "lora_alpha", "use_rslora", "init_rotation"}
_READ_OF_TRAINING = {"steps", "rows", "weight_decay", "max_length", "base_dtype", "device", "threads"}
_READ_OF_TRAINING |= {"save_every", "keep", "log_every", "tensorboard"}


@dataclass(frozen=True)
class OwnOptions:
    """What the command adds to a run file.

    Attributes:
        output: folder of the comparison.
        minutes: the budget of time.
        examples: further numbers of training examples of a task; those of the run file if None.
        mixed: keep finished trials that other sources made.
        rerun_old: run these again.
        command: the run file's name and the fields that were changed, for commands to copy.

    Raises:
        ConfigError: no minute at all, a number of examples below 1, or both `mixed` and `rerun_old`.
    """

    output: Path
    minutes: float = DEFAULT_MINUTES
    examples: Sequence[int] | None = field(default=None)
    mixed: bool = False
    rerun_old: bool = False
    command: Sequence[str] = ("RUN.yaml",)

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ConfigError(f"--minutes: expected a number above 0, found {self.minutes:g}")
        if any(number < 1 for number in self.examples or ()):
            raise ConfigError(f"--examples: expected numbers of at least 1, found {list(self.examples or ())}")
        if self.mixed and self.rerun_old:
            raise ConfigError("expected one of --mixed and --rerun-old, found both")


def template_trial(config: RunConfig, data: OwnTasks, tokenizer: Tokenizer) -> Trial:
    """What all trials have in common, as the first one: the base model on everything.

    Answers may be as long as the longest right one and half of that again, up to the run file's limit.

    Raises:
        ConfigError: a precision that comparisons do not have, or a scale that is not alpha / r.
    """
    if config.training.base_dtype not in ("fp32", "bf16", "fp64"):
        raise ConfigError(f"training.base_dtype: expected fp32, bf16 or fp64, found {config.training.base_dtype}")
    scale = CoLoRAConfig(
        r=config.adapter.r, lora_alpha=config.adapter.lora_alpha, use_rslora=config.adapter.use_rslora
    ).scaling
    test = min(config.evaluation.limit or MOST_TEST, max(len(task.splits["test"]) for task in data.tasks))
    decay = config.training.weight_decay
    chosen_rows = "rows" in config.training.model_fields_set
    longest = max(_answer_lengths(data.tasks, tokenizer))
    return Trial(
        method="base",
        group=data.group,
        tasks=tuple(task.name for task in data.tasks),
        regime="implicit",
        examples=max(data.pool_sizes),
        seed=config.seed,
        base=config.base,
        dtype=config.training.base_dtype,
        rank=config.adapter.r,
        alpha=scale * config.adapter.r,
        steps=1,
        rows=max(1, config.training.rows // len(data.tasks)) if chosen_rows else ROWS,
        lr=config.training.lr,
        weight_decay=default_weight_decay(LR, default_steps(config, data)) if decay is None else decay,
        options={"rotated": config.adapter.init_rotation},
        split="test",
        test=test,
        generate=test,
        max_length=config.training.max_length,
        max_new_tokens=min(config.evaluation.max_new_tokens, longest + longest // 2 + 1),
    )


def default_steps(config: RunConfig, data: OwnTasks) -> int:
    """The run file's steps where it says some; else as many as several passes over the largest task take."""
    if "steps" in config.training.model_fields_set:
        return config.training.steps
    passes = round(PASSES * max(data.pool_sizes) / ROWS)
    return min(max(passes, LEAST_DEFAULT_STEPS), MOST_DEFAULT_STEPS)


def ignored_fields(config: RunConfig) -> list[str]:
    """What a run file says of bank and training that a comparison does not heed: all contenders are trained alike."""
    names = [f"adapter.{name}" for name in _differing(config.adapter, AdapterSpec()) if name not in _READ]
    of_training = _differing(config.training, TrainingSpec())
    names += [f"training.{name}" for name in of_training if name not in _READ_OF_TRAINING]
    names += ["start_from"] if config.start_from is not None else []
    return [*names, *(["grouping"] if config.grouping != "none" else [])]


def _differing(spec: BaseModel, plain: BaseModel) -> list[str]:
    return [name for name, value in spec.model_dump().items() if value != getattr(plain, name)]


def _answer_lengths(tasks: Sequence[Task], tokenizer: Tokenizer) -> list[int]:
    texts = {output for task in tasks for split in SPLITS for one in task.splits[split] for output in one.outputs}
    return [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
