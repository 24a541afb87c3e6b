"""A process of `colora onboard` beside the server, for one new task or several at once."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch

from colora.adapter.core_size import resized_core
from colora.bank.core_file import CoreHeader, core_bytes
from colora.bank.layout import CONFIG_FILE
from colora.bank.part import write_part
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.serving.store import CoreStore

__all__ = ["MOST_SECONDS", "NUMBERS", "Onboarded", "OnboardingProcess", "write_start_bank"]

START_TASKS = 8  # tasks whose cores a new one may start from: the trainer need not read thousands
NUMBERS = ("examples", "start", "before", "at_start", "after", "validation", "coverage")
MOST_SECONDS = 3600  # of one process, for which all others wait


@dataclass
class Onboarded:
    """What became of a new task.

    Attributes:
        told: what its owner is told.
        core: its core file; None if it was not trained.
        numbers: what the training came to, by the names of `NUMBERS`; None where there is none.
    """

    told: str
    core: bytes | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


class OnboardingProcess:
    """Trains new tasks in a process of its own; one at a time.

    Args:
        base: another path or name of the same base model.
    """

    def __init__(self, base: str | None) -> None:
        self.base = base
        self.closed = False
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the process that runs."""
        self.closed = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def train(self, store: CoreStore, examples: Mapping[str, bytes], folder: Path) -> dict[str, Onboarded]:
        """Train new tasks.

        Args:
            store: of the tasks that there are.
            examples: the content of a JSONL file for each new task, by its name.
            folder: an empty one.

        Returns:
            what became of each. Several are trained together; a task is missing if those beside it, or the process, are
            to blame that nothing is known of it. One alone is never missing.
        """
        write_start_bank(store, list(examples), folder / "bank")
        files = []
        for number, (task, content) in enumerate(examples.items()):
            file = folder / "new" / str(number) / f"{task}.jsonl"  # names may differ in their case alone
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
            files.append(file)
        after, report = folder / "after", folder / "report.json"
        alone = len(files) == 1
        options = ["--report", str(report), *([f"--name={next(iter(examples))}"] if alone else [])]
        output, code = self._run([str(folder / "bank"), *map(str, files), "--output", str(after), *options])
        found = _read_report(report)
        trained = SavedBank(after) if (after / CONFIG_FILE).is_file() else None
        outcomes = {}
        for task, file in zip(examples, files, strict=True):
            row = found.get(task)
            own = output if alone and row is None else _told(row)
            own = own.replace(str(file), "the examples").replace(str(folder), "").strip()
            if trained is not None and task in trained.index:
                header = CoreHeader(task, trained.info.base, store.shared, prompt=trained.info.prompt_of(task))
                outcomes[task] = Onboarded(own, core_bytes(trained.core(trained.index[task]), header), _numbers(row))
            elif alone or task in found:
                outcomes[task] = Onboarded(own or f"the onboarding ended with code {code}")
        return outcomes

    def _run(self, arguments: Sequence[str]) -> tuple[str, int]:
        """What the process prints, and the code that it ends with."""
        command = [sys.executable, "-m", "colora", "onboard", *arguments, *(["--base", self.base] if self.base else [])]
        # One thread, and a low priority: requests that wait for answers come first.
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )
        with suppress(psutil.Error):
            psutil.Process(self._process.pid).nice(10)
        try:
            output, _ = self._process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            output = f"not done after {MOST_SECONDS} seconds: give fewer or shorter examples"
        return output, self._process.returncode


def write_start_bank(store: CoreStore, new_tasks: Sequence[str], folder: Path) -> None:
    """Write a bank with the A and B of a large bank and the cores of a few of its tasks, evenly spread.

    Raises:
        ConfigError: there is no task besides `new_tasks`.
    """
    step = max(1, len(store) // START_TASKS)
    others = (name for name in islice(store, None, None, step) if name not in new_tasks)
    chosen = list(islice(others, START_TASKS)) or [name for name in store if name not in new_tasks]
    if not chosen:
        raise ConfigError("expected at least one task besides the new one, found none")
    cores = [store.read(name)[1] for name in chosen]
    r = store.saved.config.r
    stacks = {layer: torch.stack([resized_core(core[layer], r) for core in cores]) for layer in cores[0]}
    info = replace(store.saved.info, examples={}, seen={}, sources={}, prompts={}, source=None)
    write_part(store.saved, chosen, stacks, info, folder)


def _read_report(file: Path) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in json.loads(file.read_text("utf-8"))} if file.is_file() else {}


def _numbers(row: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a report's row, those that there are and that JSON has."""
    found = {} if row is None else {name: row.get(name) for name in NUMBERS}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _told(row: Mapping[str, Any] | None) -> str:
    """What a report says of one task: its owner must not read of those beside it, which may be others'."""
    if row is None:
        return "added"
    if row["outcome"] != "added":
        return str(row.get("why", row["outcome"]))
    numbers = f"{row['before']:.3f} nats per token without adapter, {row['at_start']:.3f} at the start"
    told = f"{row['examples']} examples: {numbers}, {row['after']:.3f} trained"
    told += "." if row["validation"] is None else f", {row['validation']:.3f} on its validation examples."
    if row["after"] > row["at_start"]:
        told += " Training made the examples less likely: send more or other examples."
    little = "" if row["enough"] else ": little, so that a bank trained with this task would serve it better"
    reached = f"{row['coverage']:.2%} of its gradient, relative to directions made for this task"
    return f"{told} The coverage is {reached}{little}."
