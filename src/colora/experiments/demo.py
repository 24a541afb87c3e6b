"""The demonstration: six small tasks on a real model: untrained, with examples in the prompt, alone, together."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from peft import LoraConfig, PeftModel, get_peft_model
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from colora.adapter.model import bank_tuner
from colora.bank.overview import bank_overview
from colora.common.files import write_json
from colora.common.jsonl import write_jsonl
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.evaluation.evaluate import evaluate
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.settings import EvaluationSettings
from colora.experiments.methods.answering import answer_questions
from colora.experiments.methods.in_context import questions
from colora.experiments.methods.measure import score
from colora.experiments.trial import TaskScores, Trial
from colora.models.base import DEFAULT_BASE, load_base
from colora.tasks.families.calendar import DEMO_LOCALES, date_tasks
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import Task, prompted
from colora.tasks.tokenizer import Tokenizer
from colora.training.config import AdapterSpec, EvaluationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.rates import CORE_LR, LR
from colora.training.run import train

__all__ = [
    "FULL",
    "METHODS",
    "QUICK",
    "RATES",
    "DemoSize",
    "measure_alone",
    "measure_together",
    "quick_verdict",
    "run_demo",
    "write_tasks",
]

METHODS = ("before", "in the prompt", "alone", "together")
PROMPT = "qa"
MAX_LENGTH, MAX_NEW_TOKENS, CONTEXT = 64, 32, 1024
RANK = 16
ROWS = 12
# A LoRA each wants a higher rate on dates than elsewhere, and gets it.
RATES: dict[str, dict[str, float]] = {"alone": {"lr": 2e-3}, "together": {"lr": LR, "core_lr": CORE_LR}}


@dataclass(frozen=True)
class DemoSize:
    """How much of the demo is done.

    Attributes:
        locales: the languages, a task each.
        test: examples of each task that are measured; 16 others train it.
        steps: optimiser steps of each method.
    """

    locales: tuple[str, ...]
    test: int
    steps: int


FULL = DemoSize(DEMO_LOCALES, test=24, steps=90)
# Enough to see that an installation trains, writes, reads and answers; too little to tell methods apart.
QUICK = DemoSize(DEMO_LOCALES[:2], test=6, steps=20)


def run_demo(
    output: Path,
    seed: int = 0,
    steps: int | None = None,
    log: Callable[[str], None] = lambda line: None,
    size: DemoSize = FULL,
) -> Table:
    """Write the tasks, train and measure each method that has no records yet, and make the table.

    "in the prompt" is the untrained model with the examples before each question. "alone" is a plain LoRA of the
    same rank for each task, with the same number of optimiser steps, and of rows of this task in each, as "together".

    Args:
        output: folder for everything; what is there is reused.
        seed: of the days drawn, of the order of examples, and of initial weights.
        steps: optimiser steps; those of the size by default.
        log: takes lines for the user.
        size: the tasks and how many of their examples are measured. Sizes do not share a folder.
    """
    configure_threads()
    steps = steps or size.steps
    folders = write_tasks(output / "tasks" / f"seed-{seed}", seed, log, size)
    tasks = [prompted(task, NAMED_TEMPLATES[PROMPT]) for task in _tasks(seed, size)]
    file = output / "records.jsonl"
    measures: dict[str, Callable[..., list[Record]]] = {
        "before": partial(_measure_before, tasks, seed, steps),
        "in the prompt": partial(_measure_in_prompt, tasks, seed, steps),
        "alone": partial(measure_alone, output, folders, seed, steps),
        "together": partial(measure_together, output, folders, seed, steps),
    }
    for number, method in enumerate(METHODS, start=1):
        if _of(file, method, seed, steps):
            log(f"{number} of {len(METHODS)}, {method}: measured before, reused")
            continue
        place = f"{number} of {len(METHODS)}, {method}: "
        records = measures[method](log=lambda line, place=place: log(place + line))
        append_records(file, records)
        write_json(output / "environment.json", environment())
    return _table(file, output, seed, steps, size)


def quick_verdict(steps: int | None = None, size: DemoSize = QUICK) -> str:
    """What to think of the table of a smaller demo, of so many steps."""
    return (
        f"This was the quick demo: {len(size.locales)} of {len(FULL.locales)} tasks, {size.test} of {FULL.test} test "
        f"examples each, {steps or size.steps} steps where the whole one has {FULL.steps}. It shows that the "
        "installation trains, writes, reads and answers. It does not tell the methods apart: run `colora demo`."
    )


def _measure_before(tasks: Sequence[Task], seed: int, steps: int, log: Callable[[str], None]) -> list[Record]:
    log("the model as it is, zero-shot")
    model, tokenizer = load_base(DEFAULT_BASE, chat_template=False)
    return _measure(model, tokenizer, tasks, "before", seed, steps)


def _measure_in_prompt(tasks: Sequence[Task], seed: int, steps: int, log: Callable[[str], None]) -> list[Record]:
    log("the model as it is, with the 16 examples before each question")
    model, tokenizer = load_base(DEFAULT_BASE, chat_template=False)
    trial = _prompt_trial(tasks, seed)
    records = []
    for task in tasks:
        asked = questions(task, tokenizer, model, trial, CONTEXT, nearest=False)
        nats, answers = answer_questions(model, tokenizer, asked, len(asked.items), MAX_NEW_TOKENS)
        scores = score(task, trial.split, [question.row for question in asked.items], nats, answers)
        records += _records(task.name, scores, seed, steps)
    return records


def _records(task: str, scores: TaskScores, seed: int, steps: int) -> list[Record]:
    found = []
    for metric in METRICS:
        value, n = scores.value(metric), len(scores.texts.get(metric, [])) or sum(scores.tokens)
        if value is not None:
            found.append(Record(_run(steps), "in the prompt", task, "test", metric, value, n, seed))
    return found


def _tasks(seed: int, size: DemoSize) -> list[Task]:
    return date_tasks(size.locales, test=size.test, seed=seed)


def _prompt_trial(tasks: Sequence[Task], seed: int) -> Trial:
    most = max(len(task.splits["test"]) for task in tasks)
    return Trial(
        method="in-context",
        group="demo",
        tasks=tuple(task.name for task in tasks),
        regime="implicit",
        examples=len(tasks[0].splits["train"]),
        seed=seed,
        base=DEFAULT_BASE,
        steps=1,
        lr=LR,
        test=most,
        generate=most,
        prompt=PROMPT,
        max_length=MAX_LENGTH,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def measure_alone(
    output: Path,
    folders: dict[str, Path],
    seed: int,
    steps: int,
    rates: dict[str, float] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Train and measure a plain LoRA for each task, with the rows a step that the task has in the bank's steps."""
    records: list[Record] = []
    for name, folder in folders.items():
        log(f"a LoRA of its own for {name}")
        config = _config(
            output / f"alone-{steps}-steps-seed-{seed}" / name, {name: folder}, seed, steps, rates or RATES["alone"]
        )
        result = train(config, make_model=_plain_lora, log=log)
        records += _measure(result.model, result.tokenizer, result.tasks, "alone", seed, steps)
    return records


def measure_together(
    output: Path,
    folders: dict[str, Path],
    seed: int,
    steps: int,
    rates: dict[str, float] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Train and measure one bank of all tasks."""
    log("one bank for all tasks")
    config = _config(output / f"together-{steps}-steps-seed-{seed}", folders, seed, steps, rates or RATES["together"])
    result = train(config, log=log)
    index = {name: place for place, name in enumerate(bank_tuner(result.model).tasks)}
    return _measure(result.model, result.tokenizer, result.tasks, "together", seed, steps, index)


def _plain_lora(base: PreTrainedModel, names: Sequence[str]) -> PeftModel:
    return get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def _config(output: Path, folders: dict[str, Path], seed: int, steps: int, rates: dict[str, float]) -> RunConfig:
    return RunConfig(
        base=DEFAULT_BASE,
        chat_template=False,  # its default system message would double the tokens
        prompt=PROMPT,
        output=str(output),
        seed=seed,
        tasks=[TaskSpec(name=name, path=str(folder.resolve()), val=0) for name, folder in folders.items()],
        adapter=AdapterSpec(r=RANK, lora_alpha=RANK),
        training=TrainingSpec(
            steps=steps,
            rows=ROWS * len(folders) // len(DEMO_LOCALES),
            max_length=MAX_LENGTH,
            save_every=30,
            keep=1,
            log_every=15,
            **rates,
        ),
        evaluation=EvaluationSpec(max_new_tokens=MAX_NEW_TOKENS),
    )


def _measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    method: str,
    seed: int,
    steps: int,
    index: dict[str, int] | None = None,
) -> list[Record]:
    settings = EvaluationSettings(
        max_length=MAX_LENGTH, max_new_tokens=MAX_NEW_TOKENS, batch_rows=48, run=_run(steps), method=method, seed=seed
    )
    return evaluate(model, tokenizer, tasks, settings, index).records


def _run(steps: int) -> str:
    return f"demo-{steps}-steps"


def write_tasks(
    folder: Path, seed: int, log: Callable[[str], None] = lambda line: None, size: DemoSize = FULL
) -> dict[str, Path]:
    """Write the tasks, six in the whole demo, as folders of JSONL files; returns the folder of each."""
    folders = {}
    tasks = _tasks(seed, size)
    for task in tasks:
        folders[task.name] = folder / task.name
        for split in ("train", "test"):
            rows = ({"input": example.input, "output": example.outputs[0]} for example in task.splits[split])
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            write_jsonl(folder / task.name / f"{split}.jsonl", lines)
    first = tasks[0].splits["train"][0]
    log(f"{_count(len(folders))} tasks in {folder}, 16 examples each, such as {first.input} → {first.outputs[0]}")
    return folders


def _count(number: int) -> str:
    return {2: "two", 6: "six"}.get(number, str(number))


def _of(file: Path, method: str, seed: int, steps: int) -> list[Record]:
    records = read_records(file) if file.is_file() else []
    return [one for one in records if (one.run, one.method, one.seed) == (_run(steps), method, seed)]


def _table(file: Path, output: Path, seed: int, steps: int, size: DemoSize) -> Table:
    overview = bank_overview(output / f"together-{steps}-steps-seed-{seed}")
    own, shared = overview.per_task, overview.shared
    # A LoRA of the same rank has an A and a B of the size of the shared ones.
    sizes = {"before": None, "in the prompt": None, "alone": shared, "together": own}
    number = _count(len(size.locales))
    table = Table(
        title=f"{number} tasks, 16 examples and {size.test} test dates each, {steps} steps, seed {seed}",
        caption=f"together also shares A and B among all tasks: {shared.parameters:,} parameters, {shared.bytes:,} B",
    )
    found = {method: _of(file, method, seed, steps) for method in METHODS}
    # A metric may be younger than records that are used again.
    measured = set.intersection(*({record.metric for record in records} for records in found.values()))
    metrics = [metric for metric in METRICS.values() if metric.name in measured]
    for column in ("method", *(metric.title for metric in metrics), "parameters per task", "bytes per task"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method, records in found.items():
        means = {one.name: fmean(record.value for record in records if record.metric == one.name) for one in metrics}
        stored = sizes[method]
        table.add_row(
            method,
            *(f"{mean:.{METRICS[name].digits}f}" for name, mean in means.items()),
            *(("-", "-") if stored is None else (f"{stored.parameters:,}", f"{stored.bytes:,}")),
        )
    return table
