"""One task's core as a file of its own: a safetensors file of r × r matrices, and the factors they belong to.

A core means something only with the A and B that it was trained against, so the file names these by a digest.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colora.adapter.model import CoLoRAModel, tensors_sha256
from colora.bank.load import NEEDED, find_bank, read_bank_info
from colora.bank.tensors import CORE, read_bank_config
from colora.common.files import write_bytes
from colora.errors import BankFileError, TaskIdError

__all__ = [
    "HEADER",
    "BankTensors",
    "CoreHeader",
    "core_bytes",
    "extract_core",
    "layer_name",
    "read_core",
    "shared_sha256",
]

HEADER = "colora_core"
FORMAT = 1


@dataclass(frozen=True)
class CoreHeader:
    """What a core file says of itself.

    Attributes:
        task: name of the task.
        base: name of the base model.
        shared: digest of the A and B that it was trained against.
        format: version of the file's form.
    """

    task: str
    base: str
    shared: str
    format: int = FORMAT


class BankTensors(Mapping[str, Tensor]):
    """The tensors of a saved bank, each read off the memory-mapped file when it is asked for.

    Raises:
        BankFileError: no bank there, or a damaged one.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = find_bank(path).resolve()
        self.config = read_bank_config(self.folder)
        self.info = read_bank_info(self.folder)
        try:
            self._file = safe_open(self.folder / NEEDED[1], "pt")
            self._keys = dict.fromkeys(self._file.keys())
            self.cores = [key for key in self._keys if key.endswith(CORE)]
            # Views of the mapped file: a page is read when a number on it is. Slices by name take longer.
            self._stacks = {layer_name(key): self._file.get_tensor(key) for key in self.cores}
        except (SafetensorError, OSError) as error:
            raise BankFileError(f"{self.folder / NEEDED[1]}: truncated or no safetensors file ({error})") from error
        shape = (len(self.config.tasks), self.config.r, self.config.r)
        faults = [key for key in self.cores if self._stacks[layer_name(key)].shape != shape]
        if faults or not self.cores:
            raise BankFileError(
                f"{self.folder / NEEDED[1]}: {faults[0] if faults else 'a core'}: expected shape {shape}"
            )

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return self._file.get_tensor(key)

    def __iter__(self) -> Any:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def core(self, index: int) -> dict[str, Tensor]:
        """A task's core, (r, r) for each adapted layer by its name in the base model; nothing else is read."""
        return {name: stack[index].clone() for name, stack in self._stacks.items()}

    def check_digest(self) -> None:
        """Raises BankFileError if these are not the tensors that the config was saved with."""
        own = [key for key in self._keys if f".{CoLoRAModel.prefix}" in key]
        if self.config.weights_sha256 and self.config.weights_sha256 != tensors_sha256(_Selection(self, own)):
            raise BankFileError(f"{self.folder}: the tensors are not those of adapter_config.json (weights_sha256)")


class _Selection(Mapping[str, Tensor]):
    """Some of a bank's tensors, each still read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], chosen: list[str]) -> None:
        self.tensors, self.chosen = tensors, chosen

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Any:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)


def layer_name(key: str) -> str:
    """The name in the base model of the layer that a core of a bank file belongs to."""
    return key.removeprefix("base_model.model.").removesuffix(CORE)


def shared_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of a bank's A and B."""
    shared = [key for key in tensors if ".colora_A" in key or ".colora_B" in key]
    return tensors_sha256(_Selection(tensors, shared))


def core_bytes(core: Mapping[str, Tensor], header: CoreHeader) -> bytes:
    """A core file."""
    tensors = {name: one.detach().cpu().clone().contiguous() for name, one in core.items()}
    # One entry: safetensors writes several in an order that changes, and the same core must be the same bytes.
    return safetensors.torch.save(tensors, {HEADER: json.dumps(asdict(header))})


def read_core(content: bytes, like: Mapping[str, tuple[int, ...]], shared: str) -> tuple[dict[str, Tensor], CoreHeader]:
    """A core and its header, checked against the bank it is for.

    Args:
        content: of the file.
        like: shape of the core in each adapted layer, by its name in the base model.
        shared: digest of the bank's A and B.

    Raises:
        BankFileError: it is no core file, of another base model, other A and B, other layers or shapes, or holds NaN
            or infinity; every fault is named.
    """
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        header = CoreHeader(**json.loads(metadata[HEADER]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankFileError(
            f"expected a core file, as `colora core` writes it, found something else ({error})"
        ) from error
    faults = []
    if header.format != FORMAT:
        faults.append(f"expected format {FORMAT}, found {header.format}")
    if header.shared != shared:
        faults.append(
            f"trained against other A and B (digest {str(header.shared)[:12]}, base model {header.base!r}): "
            f"expected those of this bank ({shared[:12]})"
        )
    faults += [f"{name}: no such adapted layer" for name in sorted(tensors.keys() - like.keys())[:3]]
    faults += [f"{name}: missing" for name in sorted(like.keys() - tensors.keys())[:3]]
    for name in sorted(like.keys() & tensors.keys()):
        found = tensors[name]
        if tuple(found.shape) != tuple(like[name]):
            faults.append(f"{name}: expected shape {tuple(like[name])}, found {tuple(found.shape)}")
        elif not found.is_floating_point() or not bool(torch.isfinite(found).all()):
            faults.append(f"{name}: expected finite numbers, found NaN, infinity or integers")
    if faults:
        more = [f"... and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise BankFileError("this core does not fit the bank: " + "; ".join([*faults[:5], *more]))
    return {name: one.float() for name, one in tensors.items()}, header


def extract_core(bank: str | Path, task: str, output: Path) -> CoreHeader:
    """Write one task's core of a saved bank to a file of its own; the base model is not needed.

    Raises:
        BankFileError: no bank there, or a damaged one.
        TaskIdError: the bank does not know the task.
        CheckpointError: the file cannot be written.
    """
    tensors = BankTensors(bank)
    tensors.check_digest()
    if task not in tensors.config.tasks:
        raise TaskIdError(f"unknown task {task!r}; {tensors.folder} has {len(tensors.config.tasks)} others")
    header = CoreHeader(task, tensors.info.base, shared_sha256(tensors))
    write_bytes(output, core_bytes(tensors.core(tensors.config.tasks.index(task)), header))
    return header
