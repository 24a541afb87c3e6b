"""One task's core as a file of its own: a safetensors file of r × r matrices, and the factors they belong to.

A core means something only with the A and B that it was trained against, so the file names these by a digest.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colora.bank.tensors import SavedBank
from colora.common.files import write_bytes
from colora.common.text import shortened
from colora.errors import BankFileError, TaskIdError
from colora.tasks.prompting.templates import parse_template

__all__ = ["HEADER", "CoreHeader", "core_bytes", "extract_core", "read_core", "read_core_header"]

HEADER = "colora_core"
FORMAT = 1
LARGEST = 1e6
"""No core that was trained comes near. Larger numbers overflow in a model, and what it keeps of them spoils others."""


@dataclass(frozen=True)
class CoreHeader:
    """What a core file says of itself.

    Attributes:
        task: name of the task.
        base: name of the base model.
        shared: digest of the A and B that it was trained against.
        format: version of the file's form.
        tenant: of a server: who brought it; None outside of servers.
        prompt: the template of the task's prompts; None as in `BankInfo`.
    """

    task: str
    base: str
    shared: str
    format: int = FORMAT
    tenant: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None:
            parse_template(self.prompt)


def core_bytes(core: Mapping[str, Tensor], header: CoreHeader) -> bytes:
    """A core file."""
    tensors = {name: one.detach().cpu().clone().contiguous() for name, one in core.items()}
    # One entry: safetensors writes several in an order that changes, and the same core must be the same bytes.
    return safetensors.torch.save(tensors, {HEADER: json.dumps(_fields(header))})


def _fields(header: CoreHeader) -> dict[str, object]:
    """As they are written: without tenant and prompt the file is that of earlier versions."""
    return {
        name: value for name, value in asdict(header).items() if name not in ("tenant", "prompt") or value is not None
    }


def read_core(
    content: bytes, like: Mapping[str, tuple[int, ...]], shared: str, least: int | None = None
) -> tuple[dict[str, Tensor], CoreHeader]:
    """A core and its header, checked against the bank it is for.

    Args:
        content: of the file.
        like: shape of the core in each adapted layer, by its name in the base model.
        shared: digest of the bank's A and B.
        least: the smallest rank that a core may have, the same in all layers: it is the leading corner of one as `like`
            says, and counts as zero beyond. None: it must be as large.

    Raises:
        BankFileError: it is no core file, of another base model, other A and B, other layers or shapes, or holds NaN,
            infinity or a number beyond `LARGEST`; every fault is named.
    """
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        header = CoreHeader(**json.loads(metadata[HEADER]))
        if not all(isinstance(text, str) for text in (header.task, header.base, header.shared)):
            raise TypeError("its header has something else where task, base and shared should be texts")
    # RuntimeError: torch at shapes that no memory holds. RecursionError: JSON that is nested without end.
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BankFileError(
            f"expected a core file, as `colora core` writes it, found something else ({str(error)[:200]})"
        ) from error
    faults = []
    if header.format != FORMAT:
        faults.append(f"expected format {FORMAT}, found {header.format}")
    if header.shared != shared:
        faults.append(
            f"trained against other A and B (digest {header.shared[:12]}, base model {header.base[:100]!r}): "
            f"expected those of this bank ({shared[:12]})"
        )
    faults += [f"{name[:100]!r}: no such adapted layer" for name in sorted(tensors.keys() - like.keys())]
    faults += [f"{name}: missing" for name in sorted(like.keys() - tensors.keys())]
    faults += _sizes(tensors, like, least)
    for name in sorted(like.keys() & tensors.keys()):
        found = tensors[name]
        if least is None and tuple(found.shape) != tuple(like[name]):
            faults.append(f"{name}: expected shape {tuple(like[name])}, found {tuple(found.shape)}")
        elif not found.is_floating_point() or not bool(torch.isfinite(found.float()).all()):  # as it is kept
            faults.append(f"{name}: expected finite numbers, found NaN, infinity or integers")
        elif (largest := float(found.float().abs().max())) > LARGEST:
            faults.append(f"{name}: expected numbers up to {LARGEST:g}, found {largest:g}")
    if faults:
        raise BankFileError("this core does not fit the bank: " + "; ".join(shortened(faults, 5)))
    return {name: one.float() for name, one in tensors.items()}, header


def _sizes(tensors: Mapping[str, Tensor], like: Mapping[str, tuple[int, ...]], least: int | None) -> list[str]:
    """What is wrong with the sizes of a core that may be smaller."""
    found = {tuple(one.shape) for one in tensors.values()}
    most = min(shape[-1] for shape in like.values())
    if least is None or found in [{(rank, rank)} for rank in range(least, most + 1)]:
        return []
    told = ", ".join(map(str, sorted(found)[:5]))
    return [f"expected matrices of one size from {least} × {least} to {most} × {most}, found {told}"]


def read_core_header(path: Path) -> CoreHeader:
    """What a core file says of itself; its tensors are not read.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: it is no core file.
    """
    with safe_open(path, "pt") as file:
        return CoreHeader(**json.loads((file.metadata() or {})[HEADER]))


def extract_core(bank: str | Path, task: str, output: Path) -> CoreHeader:
    """Write one task's core of a saved bank to a file of its own; the base model is not needed.

    Raises:
        BankFileError: no bank there, or a damaged one.
        TaskIdError: the bank does not know the task.
        CheckpointError: the file cannot be written.
    """
    saved = SavedBank(bank)
    if task not in saved.index:
        raise TaskIdError(f"unknown task {task!r}; {saved.folder} has {len(saved.tasks)} others")
    saved.check([saved.index[task]])
    header = CoreHeader(task, saved.info.base, saved.shared_sha256, prompt=saved.info.prompt_of(task))
    write_bytes(output, core_bytes(saved.core(saved.index[task]), header))
    return header
