"""Changing the tasks of a saved bank, file to file: a task that is a mixture of others, and forgetting tasks.

All tasks share A and B, so W_k − W0 is linear in the core: a weighted sum of cores is, exactly, the same weighted sum
of the weights' updates.
"""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from colora.adapter.config import check_task_name
from colora.adapter.core_size import resized_core
from colora.bank.card import CARD_FILE, words_around
from colora.bank.growing import GrowingBank
from colora.bank.hub import check_changeable
from colora.bank.layout import INFO_FILE, BankInfo
from colora.bank.rows.change import remove_tasks
from colora.bank.tensors import SavedBank, write_bank
from colora.errors import CheckpointError, ConfigError
from colora.tasks.prompting.templates import CHAT, PromptTemplate, template_of

__all__ = ["Forgotten", "forget_tasks", "merge_tasks"]

# Beside a bank in the folder of its run: what holds cores of its tasks, and what may name them.
HOLD_CORES = ("checkpoints", "checkpoint")
HOLD_NAMES = ("run.yaml", "tasks.json", "records.jsonl", "rounds.jsonl")


@dataclass(frozen=True)
class Forgotten:
    """What `forget_tasks` did.

    Attributes:
        bank: the folder of the bank.
        tasks: that are left in it.
        purged: folders beside it that were removed.
        cores_left: folders beside it that still hold the cores.
        names_left: files beside it that still hold a name of theirs: results, paths, digests of the examples.
    """

    bank: Path
    tasks: Sequence[str]
    purged: list[Path] = field(default_factory=list)
    cores_left: list[Path] = field(default_factory=list)
    names_left: list[Path] = field(default_factory=list)


def merge_tasks(
    bank_folder: str | Path,
    name: str,
    weights: Mapping[str, float],
    output: str | Path | None = None,
    prompt: str | None = None,
) -> Path:
    """Add a task whose update is a weighted sum of those of others: W_new − W0 = Σ w_k (W_k − W0).

    Args:
        bank_folder: of a bank, or of its run.
        name: of the new task.
        weights: by task. They may be negative and need not add to one.
        output: folder of the new bank, must not hold anything; by default the bank itself is replaced.
        prompt: of the new task, a template, its name, or "chat"; by default that of the others, if they have the same.

    Returns:
        The folder that was written.

    Raises:
        BankFileError: no bank there, or a damaged one.
        ConfigError, TaskIdError: a name that is taken or cannot be one, an unknown task, a weight that is no number, an
            output that is there already, tasks whose prompts differ and no prompt for the new one.
        CheckpointError: the bank cannot be written.
    """
    saved = SavedBank(bank_folder)
    saved.check()
    if fault := check_task_name(name):
        raise ConfigError(fault)
    if name in saved.index:
        raise ConfigError(f"{name!r} is already a task of {saved.folder}; choose another name, or forget it first")
    if not weights:
        raise ConfigError("expected the weight of at least one task, found none")
    for task, weight in weights.items():
        if not math.isfinite(weight):
            raise ConfigError(f"weight of {task!r}: expected a finite number, found {weight}")
    places = saved.indices(list(weights))
    target = saved.folder if output is None else Path(output)
    check_changeable(target)
    if output is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already; choose another output, or leave --output out to change the bank")
    info = saved.info if saved.rows is not None or (saved.folder / INFO_FILE).is_file() else None
    template = _merged_template(saved, info, list(weights), prompt)
    factors = torch.tensor(list(weights.values()), dtype=torch.float64)
    rank = max(saved.core_rank(place) for place in places)  # of smaller ones the rest counts as zero
    new = {
        layer: resized_core(torch.einsum("k,kij->ij", factors, cores.double()).to(cores.dtype), rank)
        for layer, cores in saved.cores(places).items()
    }
    if info is not None:
        # Forgetting one of them must not leave it behind in a sum. A bank without bank.json has no place to say so.
        info.sources[name] = {"merged": dict(weights)}
        info.set_template(name, template)
    growing = GrowingBank(saved, info, target)
    growing.add(name, new)
    growing.write()
    return target


def forget_tasks(bank_folder: str | Path, tasks: Sequence[str], purge: bool = False) -> Forgotten:
    """Remove tasks from a bank: it is then, byte for byte, one that holds only the others' cores.

    Of a bank in rows, the files that held a core of theirs are written anew, and the others stay as they are.
    Directions of A and B that were added for tasks that go, and that no other core has, go with them.

    What cannot be taken back: A and B were trained with the examples of these tasks too, and other places may hold
    copies (exported LoRAs, the banks of runs that started from this one, backups). The checkpoints of the run hold the
    cores until it is purged of them.

    Args:
        bank_folder: of a bank, or of its run.
        tasks: to be forgotten.
        purge: whether the run's checkpoints go too.

    Raises:
        BankFileError: no bank there, or a damaged one.
        TaskIdError: an unknown task.
        ConfigError: no task would be left, or one that is left was merged from one to be forgotten. In both cases
            nothing is changed.
        CheckpointError: the bank cannot be written, or a checkpoint not removed.
    """
    saved = SavedBank(bank_folder)
    check_changeable(saved.folder)
    saved.check()
    if not tasks:
        raise ConfigError("expected the name of at least one task, found none")
    saved.indices(tasks)
    gone = set(tasks)
    if len(gone) == len(saved.index):
        raise ConfigError(f"no task would be left in {saved.folder}: remove the folder instead")
    if held := [f"{name}: merged from {', '.join(parts)}" for name, parts in _mixtures(saved.info, gone).items()]:
        raise ConfigError(
            "these tasks contain parts of the tasks to forget; forget them too. Nothing was changed:", held
        )
    if saved.rows is not None:
        info = saved.info
        info.sources = {name: source for name, source in info.sources.items() if name not in gone}
        info.prompts = {name: prompt for name, prompt in info.prompts.items() if name not in gone}
        remove_tasks(saved, tasks, info)
        return _beside(saved.folder, gone, purge)
    bank = saved.load()
    keep = [place for place, name in enumerate(bank.tasks) if name not in gone]
    for key, cores in bank.cores.items():
        bank.tensors[key] = cores[keep].contiguous()
    bank.config["tasks"] = [bank.tasks[place] for place in keep]
    if bank.info is not None:
        for table in (bank.info.examples, bank.info.seen, bank.info.sources, bank.info.prompts):
            for name in gone & table.keys():
                del table[name]
    write_bank(bank, bank.folder)
    return _beside(bank.folder, gone, purge)


def _merged_template(
    bank: SavedBank, info: BankInfo | None, tasks: Sequence[str], prompt: str | None
) -> PromptTemplate | None:
    """The template of a sum of these tasks."""
    if prompt is not None:
        if info is None:
            raise ConfigError(f"{bank.folder} has no {INFO_FILE} to keep a prompt in; leave the prompt out")
        return template_of(prompt)
    found = {} if info is None else {name: info.template(name) for name in tasks}
    if len(set(found.values())) > 1:
        raise ConfigError(
            "expected tasks with the same prompt, or the prompt of the new task (prompt=..., --prompt); found:",
            [f"{name}: {CHAT if template is None else repr(template.text)}" for name, template in found.items()],
        )
    return next(iter(found.values()), None)


def _mixtures(info: BankInfo, gone: set[str]) -> dict[str, list[str]]:
    """Tasks that would be left and are sums with a part that is to go, with these parts; sums of sums as well."""
    recipes = {
        name: set(source["merged"])
        for name, source in info.sources.items()
        if isinstance(source, dict) and isinstance(source.get("merged"), dict)
    }
    held: dict[str, list[str]] = {}
    while more := {
        name: sorted(parts & (gone | held.keys()))
        for name, parts in recipes.items()
        if name not in gone | held.keys() and parts & (gone | held.keys())
    }:
        held |= more
    return held


def _beside(bank: Path, gone: set[str], purge: bool) -> Forgotten:
    run = bank.parent
    result = Forgotten(bank, SavedBank(bank).tasks)
    if _named(words_around(bank), gone):  # in what a user wrote; our part of the card is made anew
        result.names_left.append(bank / CARD_FILE)
    if bank.name != "bank" or not (run / "run.yaml").is_file():
        return result  # not the bank of a run: what lies beside it is not its own
    for folder in filter(Path.is_dir, (run / name for name in HOLD_CORES)):
        if purge:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise CheckpointError(
                    f"{folder}: could not be removed ({error}); the bank itself was changed. Remove this folder "
                    "yourself"
                ) from error
            result.purged.append(folder)
        else:
            result.cores_left.append(folder)
    for file in filter(Path.is_file, (run / name for name in HOLD_NAMES)):
        if _named(file.read_text(encoding="utf-8", errors="replace"), gone):
            result.names_left.append(file)
    return result


def _named(text: str, gone: set[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in gone)
