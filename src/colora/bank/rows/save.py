"""A bank whose cores are in a store, written in rows: file after file, in the memory of one of them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from colora.adapter.lookup import only_bank
from colora.adapter.stored.cores import StoredCores
from colora.adapter.task_names import TaskNames
from colora.bank.layout import CONFIG_FILE, TENSORS_FILE, BankInfo
from colora.bank.rows.folder import write_beside_rows
from colora.bank.rows.index import COLUMNS, CORES_FOLDER, UNKNOWN, TaskIndex
from colora.bank.rows.write import RowWriter
from colora.common.json_text import parse_json
from colora.errors import BankFileError

__all__ = ["columns_of", "numbers_of", "save_stored"]


def save_stored(model: PeftModel, stored: StoredCores, folder: Path, info: BankInfo) -> None:
    """Write a bank in rows into a folder that is there.

    Args:
        model: with one active bank.
        stored: its cores.
        folder: to write into; empty.
        info: of the bank, with some or all of its tasks.

    Raises:
        OSError, SafetensorError: a file cannot be written.
        BankFileError: a core that was never trained cannot be read where it is kept.
    """
    _, router, adapter_name = only_bank(model)
    names = router.tasks[adapter_name]
    with _without_cores(model):
        # save_embedding_layers=False: otherwise PEFT asks the hub whether the vocabulary was resized
        model.save_pretrained(str(folder), save_embedding_layers=False)
        state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    (folder / TENSORS_FILE).unlink()  # with cores of a few tasks, whatever they are
    tensors = {key: value.detach().cpu().clone() for key, value in state.items() if not key.endswith("colora_core")}
    (folder / CORES_FOLDER).mkdir()
    layers = list(stored.stacks)
    writer = RowWriter(folder / CORES_FOLDER, sorted(layers), next(iter(stored.stacks.values())).dtype)
    columns = _written(stored, writer)
    columns |= {name: numbers_of(names, table) for name, table in (("examples", info.examples), ("seen", info.seen))}
    index = TaskIndex(names, columns, writer.close())
    fields = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    write_beside_rows(folder, fields, tensors, _with_common_source(info, names), index)


def columns_of(rows: Iterable[Tensor], writer: RowWriter) -> dict[str, np.ndarray]:
    """Write cores, (n, layers, k, k) at a time; where they lie, as columns of an index.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    placed = [writer.add(some).columns for some in rows]
    return {name: np.concatenate([one[name] for one in placed]) for name in placed[0]}


def _written(stored: StoredCores, writer: RowWriter) -> dict[str, np.ndarray]:
    """Write all cores; where they lie, as columns of an index."""
    places: list[np.ndarray] = []
    columns = columns_of(_rows(stored, places), writer)
    order = np.argsort(np.concatenate(places))  # tasks of one rank were written together
    return {name: column[order] for name, column in columns.items()}


def _rows(stored: StoredCores, places: list[np.ndarray]) -> Iterator[Tensor]:
    """The cores of some tasks at a time; which they are is added to `places`."""
    layers, first = list(stored.stacks), next(iter(stored.stacks.values()))
    order = [layers.index(name) for name in sorted(layers)]
    for tasks, form, rows in stored.core_rows():
        cores = rows[:, : form.numbers].view(len(tasks), len(layers), form.rank, form.rank)
        if not torch.isfinite(cores).all():
            bad = tasks[int((~torch.isfinite(cores)).flatten(1).any(1).nonzero()[0])]
            raise BankFileError(f"the core of task {int(bad)} holds NaN or infinity")
        places.append(tasks)
        yield cores[:, order].to(first.dtype)


@contextmanager
def _without_cores(model: PeftModel) -> Iterator[None]:
    """Let PEFT save the bank as one of a single task, so that neither all cores nor all names are put together."""
    _, router, adapter_name = only_bank(model)
    config = model.peft_config[adapter_name]
    stored, names, tasks = router.stored.pop(adapter_name), router.tasks[adapter_name], config.tasks
    digest, router.tasks[adapter_name] = config.weights_sha256, TaskNames(["default"])
    try:
        yield
    finally:
        router.stored[adapter_name], router.tasks[adapter_name] = stored, names
        config.tasks, config.weights_sha256 = tasks, digest


def numbers_of(names: TaskNames, table: object) -> np.ndarray:
    """A column of the index from a mapping by name, such as `BankInfo.examples`."""
    assert hasattr(table, "get")
    return np.fromiter((table.get(name, UNKNOWN) for name in names), dtype=COLUMNS["seen"], count=len(names))


def _with_common_source(info: BankInfo, names: TaskNames) -> BankInfo:
    """What is known of the tasks, with the commonest source said once."""
    if not info.sources:
        return info
    texts = Counter(json.dumps(info.source_of(name), sort_keys=True) for name in names)
    common = json.loads(texts.most_common(1)[0][0])
    sources = {name: found for name in names if (found := info.source_of(name)) != common}
    return BankInfo(**{**vars(info), "source": common, "sources": sources})
