"""What a run would do, without doing it: files and config validated, tokens counted, memory estimated."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import get_peft_model

from colora.adapter.model import bank_tuner
from colora.adapter.targets.linear import LeftOutWarning
from colora.bank.overview import TaskSize, task_sizes
from colora.common.device import DTYPES
from colora.models.base import load_base
from colora.tasks.encode import EncodedTasks, EncodingReport, prompt_and_answer
from colora.tasks.prompting.marked import MarkedRow, mark_row
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import RunConfig
from colora.training.encode import encode_run
from colora.training.place_cores import room_for
from colora.training.resolve import ResolvedRun, resolve_run, settle_prompt
from colora.training.run_folder import check_free
from colora.training.seen import run_seen_note
from colora.training.starts.from_bank import check_start
from colora.training.starts.spectral import start_cost

__all__ = ["RunPlan", "check_run"]

FEW = 3  # tasks of a column whose first example is shown


@dataclass(frozen=True)
class RunPlan:
    """What would be trained.

    Attributes:
        reports: tokens of each task's training examples; of `tasks_from` one report, of those that the run draws.
        manifest: source and splits of each task; of `tasks_from` one entry for all.
        base_parameters, shared, per_task: sizes of the base, of A and B, and of one task's cores.
        tokens_per_step: of an average step; padding not counted.
        notes: what `prompt: auto` takes, layers that the bank does not have, what else a run does than to train one
            bank from an ordinary start, and what is unusual about splits.
        examples: the first training example of each task in tokens, its prompt and its answer; of `tasks_from` those
            of a few.
        memory_bytes: estimated peak of weights, gradients, optimiser state and activations; good to about a factor 1.5.
    """

    reports: list[EncodingReport]
    manifest: dict[str, Any]
    base_parameters: int
    shared: TaskSize
    per_task: TaskSize
    tokens_per_step: float
    memory_bytes: int
    examples: Mapping[str, MarkedRow]
    notes: tuple[str, ...] = ()


def check_run(config: RunConfig) -> RunPlan:
    """Validate everything a run needs and say what it would train. Trains nothing and writes nothing.

    Raises:
        TaskFileError: listing all faults of all task files.
        ConfigError: a rank that is too large, a target that matches nothing, an output folder of another run, ...
        BankFileError, BaseMismatchError: the bank to start from is none, or of another base.
    """
    run = resolve_run(config)
    config = run.config
    if not (run.output / "rounds.jsonl").exists():  # of a federation: `colora federate` looks at its folder
        check_free(run.output, config, run.manifest)
    model, tokenizer = load_base(
        config.base, dtype=DTYPES[config.training.base_dtype], chat_template=config.chat_template
    )
    if run.start is not None:
        check_start(run.adapter, run.start, model)
    told: list[str] = []
    run = settle_prompt(run, model, tokenizer, told.append)
    data = encode_run(run, tokenizer, model).train
    base_parameters = sum(parameter.numel() for parameter in model.parameters())
    base_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    adapter = run.adapter_on(model)
    if run.start is not None:  # which has been checked, and says itself which layers it has
        adapter.base_identity = run.start.config.base_identity
    with init_empty_weights(), warnings.catch_warnings():  # thousands of tasks cost nothing: their weights are not made
        warnings.simplefilter("ignore", LeftOutWarning)  # these are the plan's notes
        bank = get_peft_model(model, adapter)
        if model.dtype == torch.float64:
            bank.double()  # PEFT does that where the weights are real
    per_task, shared = task_sizes(bank)
    tokens = sum(report.tokens for report in data.report) / sum(report.examples for report in data.report)
    longest = max(report.max_tokens for report in data.report)
    at_hand = room_for(config) if run.begins_in_store else len(run.tasks)
    trained = shared.bytes + per_task.bytes * at_hand
    rows = config.training.rows // config.training.accumulation
    return RunPlan(
        reports=data.report,
        manifest=dict(run.manifest),
        base_parameters=base_parameters,
        shared=shared,
        per_task=per_task,
        tokens_per_step=tokens * config.training.rows,
        memory_bytes=base_bytes + 4 * trained + _activations(model.config, rows * longest, config),
        examples=_first_examples(data, run.names, tokenizer),
        notes=(
            *told,
            *map(str, bank_tuner(bank).left_out),
            *_notes(config, len(run.tasks)),
            *_task_notes(run, data),
        ),
    )


def _first_examples(data: EncodedTasks, names: Sequence[str], tokenizer: Tokenizer) -> dict[str, MarkedRow]:
    few = range(len(names) if isinstance(data.sizes, list) else min(len(names), FEW))
    rows = {names[task]: data[int(data.offsets[task])] for task in few if data.sizes[task]}
    return {name: mark_row(*prompt_and_answer(row), tokenizer) for name, row in rows.items()}


def _notes(config: RunConfig, tasks: int) -> tuple[str, ...]:
    found = []
    if config.grouping == "auto":
        found.append(
            f"grouping: {tasks} forward and backward passes of the base model say which tasks are alike; then each "
            "group has a bank, with an A and a B, of its own"
        )
    elif config.grouping != "none":
        found.append(f"grouping: {len(config.grouping)} banks, each with an A and a B of its own")
    return (*found, *start_cost(config, tasks))


def _task_notes(run: ResolvedRun, data: EncodedTasks) -> list[str]:
    if run.column is None:
        seen = run_seen_note(run.tasks)
        return [*(f"task {task.name}: {note}" for task in run.tasks for note in task.notes), *([seen] if seen else [])]
    splits, (report,) = run.manifest["tasks_from"]["splits"], data.report
    sizes = ", ".join(f"{entry['examples']:,} {split}" for split, entry in splits.items())
    told = f"tasks_from: {len(run.tasks):,} tasks of {run.column.source.task}, with {sizes} examples"
    return [f"{told}; the run draws {report.examples:,} of those for training", *run.column.notes()]


def _activations(model_config: Any, tokens: int, config: RunConfig) -> int:
    """Bytes kept for the backward pass: per token and layer about 34 hidden vectors (Korthikanti et al.,
    arXiv:2205.05198, without the attention scores), a hidden vector per layer if checkpointed, and the logits twice."""
    text = model_config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    width = torch.finfo(DTYPES[config.training.base_dtype]).bits // 8
    kept = layers + 34 if config.training.gradient_checkpointing else layers * 34
    return int(tokens * (kept * hidden * width / 2 + text.vocab_size * (width + 4)))
