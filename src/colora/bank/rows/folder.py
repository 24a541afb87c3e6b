"""A bank in rows as a folder: what is written beside the files of rows, and the digest that holds it together."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from colora.adapter.config import FORMAT_VERSION, ROWS_VERSION
from colora.adapter.digest import tensors_sha256
from colora.adapter.model import CoLoRAModel
from colora.bank.card import write_card
from colora.bank.layout import CONFIG_FILE, INFO_FILE, TENSORS_FILE, BankInfo
from colora.bank.rows.index import CORES_FOLDER, TaskIndex
from colora.common.files import write_json
from colora.errors import BankFileError

__all__ = ["CORES_FIELD", "check_index", "fields_without_rows", "root_sha256", "write_beside_rows"]

CORES_FIELD = "cores"
"""In the config: how many tasks the index has, and its digest."""
IN_THE_INDEX = ("examples", "seen")


def root_sha256(tensors: Mapping[str, Tensor], index_sha256: str) -> str:
    """Digest of the bank's own tensors and of its index, which has the digests of all rows."""
    own: dict[str, Tensor] = {key: value for key, value in tensors.items() if f".{CoLoRAModel.prefix}" in key}
    own[CORES_FIELD] = torch.tensor(list(bytes.fromhex(index_sha256)), dtype=torch.uint8)
    return tensors_sha256(own)


def write_beside_rows(
    folder: Path,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    info: BankInfo | None,
    index: TaskIndex,
    outdated: Collection[str] | None = None,
) -> None:
    """Write all of a bank but its files of rows, which are in the folder already; last the config, which needs all.

    Args:
        folder: to write into.
        fields: of `adapter_config.json`; those that say where the cores are, are set.
        tensors: A and B, and modules that were trained whole, by the names of the file; which may be there already.
        info: `bank.json`; its numbers by task are in the index.
        index: of the tasks.
        outdated: tasks of which the model card's earlier figures do not hold any more; None: none of them holds.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    index.write(folder / CORES_FOLDER)
    if not (folder / TENSORS_FILE).exists():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / TENSORS_FILE, {"format": "pt"})
    if info is not None:
        write_json(folder / INFO_FILE, {k: v for k, v in info.as_json().items() if k not in IN_THE_INDEX})
    config = {key: value for key, value in fields.items() if key != "tasks"} | {
        "format_version": ROWS_VERSION,
        CORES_FIELD: {"tasks": len(index), "index_sha256": index.sha256},
        "weights_sha256": root_sha256(tensors, index.sha256),
    }
    # as PEFT writes it
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    write_card(folder, outdated=outdated)


def fields_without_rows(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config as they would be if the cores were among the tensors; without tasks."""
    left = {key: value for key, value in fields.items() if key not in (CORES_FIELD, "tasks")}
    return left | {"format_version": FORMAT_VERSION}


def check_index(config: Path, fields: Mapping[str, Any], index: TaskIndex) -> None:
    """See that the index is the one that the config was saved with.

    Raises:
        BankFileError: it is that of another bank, or changed; or the config does not say.
    """
    told = fields.get(CORES_FIELD)
    if not isinstance(told, dict) or not isinstance(told.get("index_sha256"), str):
        raise BankFileError(f"{config}: damaged: expected the digest of the index of cores ({CORES_FIELD})")
    if told["index_sha256"] != index.sha256:
        raise BankFileError(
            f"{config.parent / CORES_FOLDER}: not the cores that {config.name} was saved with (digest index_sha256): "
            f"it has {len(index)} tasks, expected {told.get('tasks')}; the folder is of another bank, or was changed: "
            "restore the whole bank from a copy"
        )
