"""A trial of a comparison: one method on one group of tasks with one seed. What it is, and what it gave.

An experiment is many trials. A trial knows nothing of the experiment it was made for, so two experiments that need the
same trial share it, and a trial that has ended is never run again.

FOLDER/KEY.json       one finished or failed trial, written atomically
RECORDS.jsonl         the trials of one experiment, one `TrialRecord` a line
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from colora.common.jsonl import model_parser, read_jsonl, write_jsonl
from colora.evaluation.choices import CHOICE_METRICS, ChoiceScores, rank_correlation
from colora.evaluation.metrics import METRICS

__all__ = ["Regime", "TaskScores", "Trial", "TrialRecord", "read_trial_records", "write_trial_records"]

Regime = Literal["implicit", "explicit"]

LATER: dict[str, object] = {"prompt": None, "weight_decay": 0.0}
"""Settings that trials did not always have, with the value that those before had."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Trial(_Frozen):
    """Everything that decides a result, the code and the machine apart."""

    method: str = Field(description="Name of the method.")
    group: str = Field(description="Name of the group of tasks.")
    tasks: tuple[str, ...] = Field(min_length=1, description="Names of the tasks.")
    regime: Regime = Field(description="Whether the prompt says whose task it is ('explicit') or not ('implicit').")
    examples: int = Field(ge=1, description="Training examples of each task.")
    seed: int = Field(ge=0, description="Of the examples drawn, their order, and the initial weights.")
    base: str = Field(description="The base model.")
    dtype: Literal["fp32", "bf16", "fp64"] = Field("fp32", description="Of the base weights and its computations.")
    first_layer: int = Field(0, ge=0, description="Adapters sit on this layer of the base and on all above it.")
    rank: int = Field(8, ge=1, description="Rank r of the method, before any matching of parameters.")
    alpha: float = Field(8.0, gt=0, description="Updates are scaled by alpha / r.")
    steps: int = Field(ge=1, description="Optimiser steps (of each client, if federated).")
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rates rise to their peak.")
    rows: int = Field(2, ge=1, description="Rows of each task in each step.")
    local_steps: int = Field(10, ge=1, description="Steps of each client in a round, if the method is federated.")
    lr: float = Field(gt=0, description="Peak learning rate of the factors A and B.")
    core_lr: float | None = Field(None, gt=0, description="Peak learning rate of the cores; None: as the factors.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the factors A and B.")
    options: dict[str, float] = Field({}, description="What only this method knows, such as a penalty.")
    split: Literal["val", "test"] = Field("test", description="What is measured on.")
    test: int = Field(24, ge=1, description="Examples of each task whose likelihood is measured.")
    generate: int = Field(12, ge=0, description="The first so many of these are also answered by generation.")
    prompt: str | None = Field(
        None, description="A template or its name, or 'auto'; None: input and answer with a newline between."
    )
    max_length: int = Field(64, ge=8, description="Longest row in tokens.")
    max_new_tokens: int = Field(32, ge=1, description="Longest answer in tokens.")

    @model_serializer(mode="wrap")
    def _as_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Records from before there was a choice of prompts, or of a decay, keep their form, and their keys.
        return {name: value for name, value in serialized(self).items() if value != LATER.get(name, ...)}

    @property
    def key(self) -> str:
        """Name of the trial's file: readable, and unique by a digest of all settings."""
        settings = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        size = f"k{len(self.tasks)}-n{self.examples}-r{self.rank}"
        return f"{self.method}-{self.group}-{self.regime}-{size}-seed{self.seed}-{digest}"


class TaskScores(_Frozen):
    """What was measured on one task, example by example, in the order of the split.

    Further text metrics of `METRICS` are further fields of the same form as `rougeL`.

    Attributes:
        nll: nats of each example's answer, summed over its tokens.
        tokens: answer tokens of each example, the end token included.
        rougeL, exact_match: in [0, 100], of the first examples of the split (as many as were generated).
        choices: the nats of every choice, where the task has a closed set of answers. Those of a model are of the
            choice's tokens without the end token, so they are not those of `nll`.
    """

    model_config = ConfigDict(extra="allow")

    nll: list[float]
    tokens: list[int]
    rougeL: list[float] = []
    exact_match: list[float] = []
    choices: ChoiceScores | None = None
    __pydantic_extra__: dict[str, list[float]] = Field(init=False)

    @model_validator(mode="after")
    def _consistent(self) -> "TaskScores":
        if unknown := sorted(set(self.__pydantic_extra__) - set(METRICS)):
            raise ValueError(f"expected metrics of {', '.join(METRICS)}; found {', '.join(unknown)}")
        if len(self.nll) != len(self.tokens) or len(set(map(len, self.texts.values()))) > 1:
            raise ValueError(f"expected as many nll as tokens, and as many each of {', '.join(self.texts)}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialized(self).items() if name != "choices" or value is not None}

    @property
    def texts(self) -> dict[str, list[float]]:
        """The scores of each text metric, by its name."""
        return {"rougeL": self.rougeL, "exact_match": self.exact_match} | self.__pydantic_extra__

    def value(self, metric: str) -> float | None:
        """Mean over examples of a text metric or one of `CHOICE_METRICS`, nats per token of the likelihood; None if it
        was not measured."""
        if metric in CHOICE_METRICS:
            return self.choices.value(metric) if self.choices is not None else None
        if METRICS[metric].score is None:
            return sum(self.nll) / sum(self.tokens) if sum(self.tokens) else None
        values = self.texts.get(metric)
        return sum(values) / len(values) if values else None


class TrialRecord(_Frozen):
    """A trial and what it gave, or why it failed. Files call `trial` "cell", as they did from the start.

    Attributes:
        trial: what was run.
        error: why it failed; None if it ended well. A failed trial has no scores.
        scores: for each task.
        trainable: parameters trained, over all tasks.
        shared_numbers, task_numbers: parameters to be kept after training: once for all tasks, and for each task.
        rounds, bytes_up, bytes_down: of a federated method; bytes over all clients and rounds. None if centralised.
        seconds: "train", "evaluate", and what else was timed.
        peak_memory: bytes of the process's resident set (of the accelerator's memory, on one), the most seen.
        losses: the training loss now and then, as (step, mean over tasks of nats per token).
        prompt: the template that "auto" chose.
        similarity: cosine of the tasks' full updates, (K, K), where the method has one update per task.
        code: digest of the library's sources; records of two codes are not one experiment.
        environment: where and when it was run, with the revision of the sources.
    """

    trial: Trial = Field(validation_alias=AliasChoices("cell", "trial"))
    error: str | None = None
    scores: dict[str, TaskScores] = {}
    trainable: int = 0
    shared_numbers: int = 0
    task_numbers: int = 0
    rounds: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: dict[str, float] = {}
    peak_memory: int = 0
    losses: list[tuple[int, float]] = []
    prompt: str | None = None
    similarity: list[list[float]] | None = None
    code: str = ""
    environment: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _as_written(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = serialized(self)
        if self.prompt is None:
            del written["prompt"]
        return {"cell" if name == "trial" else name: value for name, value in written.items()}

    @property
    def key(self) -> str:
        """That of the trial."""
        return self.trial.key

    def mean(self, metric: str) -> float | None:
        """Mean over tasks of `TaskScores.value`, or None where a task lacks it.

        One of `CHOICE_METRICS` is the mean over the tasks that have choices; "rank_correlation" is one correlation over
        the examples of all of these.
        """
        if metric in CHOICE_METRICS:
            return self._mean_of_choices(metric)
        values = [scores.value(metric) for scores in self.scores.values()]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def _mean_of_choices(self, metric: str) -> float | None:
        chosen = [scores.choices for scores in self.scores.values() if scores.choices is not None]
        if metric == "rank_correlation":
            return rank_correlation(chosen)
        values = [value for scores in chosen if (value := scores.value(metric)) is not None]
        return sum(values) / len(values) if values else None


def write_trial_records(path: Path, records: Iterable[TrialRecord]) -> None:
    """Write the records of an experiment, or of one trial, one JSON object a line, atomically.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    write_jsonl(path, (record.model_dump_json() for record in records))


def read_trial_records(path: str | os.PathLike[str]) -> list[TrialRecord]:
    """All records of a JSONL file; empty lines are passed over.

    Raises:
        ColoraError: with one "file:line: ..." for each faulty line.
        OSError: if the file cannot be read.
    """
    return read_jsonl(Path(path), model_parser(TrialRecord))
