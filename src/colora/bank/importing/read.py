"""Plain LoRA folders, as stock PEFT writes them: what is in them, checked before any tensor is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colora.adapter.config import check_task_name
from colora.bank.importing.config import CONFIG, layer_rank, layer_scale, lora_config
from colora.common.text import shortened
from colora.errors import ColoraError, ConfigError

__all__ = ["WEIGHTS", "Lora", "read_loras"]

WEIGHTS = "adapter_model.safetensors"
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Lora:
    """One plain LoRA on disk.

    Attributes:
        folder, name: where it is, and what its task is to be called.
        base, revision: the base model it names, and that model's revision.
        shapes: d_out, r and d_in of every adapted layer, by its name in the base model.
        scales: the factor of B A in each.
        dtype: the widest of its tensors.
        bytes: size of its file of tensors.
    """

    folder: Path
    name: str
    base: str | None
    revision: str | None
    shapes: dict[str, tuple[int, int, int]]
    scales: dict[str, float]
    dtype: torch.dtype
    bytes: int

    @property
    def rank(self) -> int:
        """The largest of its layers' ranks."""
        return max(r for _, r, _ in self.shapes.values())

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """B (d_out, r) with the scale in it, and A (r, d_in), in float64; of rank 0 where this layer is not adapted.

        The file is opened for this layer alone, so that no more of it stays in memory.

        Raises:
            ConfigError: if the tensors cannot be read, or hold NaN or infinity.
        """
        try:
            with safe_open(self.folder / WEIGHTS, "pt") as file:
                A, B = (file.get_tensor(f"base_model.model.{layer}.lora_{one}.weight").double() for one in "AB")
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self.folder / WEIGHTS}: cannot be read: {error}") from error
        for one, tensor in (("A", A), ("B", B)):
            if not torch.isfinite(tensor).all():
                raise ConfigError(
                    f"{self.folder / WEIGHTS}: lora_{one} of layer {layer} holds NaN or infinity; nothing was written"
                )
        return B * self.scales[layer], A


def read_loras(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Lora]:
    """Look at every folder's config and at the shapes of its tensors.

    Args:
        folders: at least one.
        names: of the tasks, in the same order; by default the folders' names.

    Raises:
        ConfigError: listing what is wrong with each folder, with its place.
    """
    if not folders:
        raise ConfigError("expected at least one folder of a LoRA, found none")
    if names is not None and len(names) != len(folders):
        raise ConfigError(f"expected a name for each of {len(folders)} LoRAs, found {len(names)}")
    chosen = list(names) if names is not None else [folder.resolve().name for folder in folders]
    loras, faults, first = [], [], dict[str, Path]()
    for folder, name in zip(folders, chosen, strict=True):
        if fault := check_task_name(name):
            faults.append(f"{folder}: {fault}; name it with --name")
        elif name in first:
            faults.append(f"{folder}: {first[name]} has the name {name!r} too; name each with --name")
        first.setdefault(name, folder)
        try:
            loras.append(_read(folder, name))
        except ColoraError as error:
            faults += [f"{folder}: {line}" for line in getattr(error, "faults", None) or [str(error)]]
    if faults:
        raise ConfigError("these LoRAs cannot be imported; nothing was written:", faults)
    return loras


def _read(folder: Path, name: str) -> Lora:
    if not folder.is_dir():
        raise ConfigError("no such folder" if not folder.exists() else "expected a folder, found a file")
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{CONFIG} is missing; expected a LoRA as PEFT saves it")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        raise ConfigError(
            f"{WEIGHTS} is missing"
            + (
                "; adapter_model.bin is a pickle, which may run code: load it with PEFT where you trust it, and save "
                "it again"
                if pickled
                else ""
            )
        )
    config = lora_config(folder / CONFIG)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys = list(file.keys())
            slices = {key: file.get_slice(key) for key in keys}
            found = {key: (tuple(one.get_shape()), one.get_dtype()) for key, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{WEIGHTS} is truncated or no safetensors file ({error})") from error
    shapes, faults = _shapes(found, config)
    if faults:
        raise ConfigError("", shortened(faults, 5))
    dtype = torch.float32
    for _, kind in found.values():
        dtype = torch.promote_types(dtype, DTYPES[kind])
    return Lora(
        folder,
        name,
        config.get("base_model_name_or_path"),
        config.get("revision"),
        shapes,
        {layer: layer_scale(config, layer, r) for layer, (_, r, _) in shapes.items()},
        dtype,
        (folder / WEIGHTS).stat().st_size,
    )


def _shapes(
    found: dict[str, tuple[tuple[int, ...], str]], config: dict[str, Any]
) -> tuple[dict[str, tuple[int, int, int]], list[str]]:
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    faults = []
    for key, (shape, kind) in sorted(found.items()):
        match = TENSOR.fullmatch(key)
        if match is None:
            faults.append(f"{WEIGHTS}: expected lora_A and lora_B of linear layers alone, found {key}")
        elif len(shape) != 2 or 0 in shape or kind not in DTYPES:
            faults.append(f"{WEIGHTS}: {key}: expected a matrix of floating-point numbers, found {kind} {list(shape)}")
        else:
            pairs.setdefault(match[1], {})[match[2]] = shape
    shapes = {}
    for layer, pair in pairs.items():
        rank = layer_rank(config, layer)
        if len(pair) < 2:
            faults.append(f"{WEIGHTS}: layer {layer}: lora_{'B' if 'A' in pair else 'A'} is missing")
        elif not pair["A"][0] == pair["B"][1] == rank:
            faults.append(
                f"{WEIGHTS}: layer {layer}: expected rank {rank}, as {CONFIG} says, found lora_A {list(pair['A'])} and "
                f"lora_B {list(pair['B'])}"
            )
        else:
            shapes[layer] = (pair["B"][0], pair["A"][0], pair["A"][1])
    if not shapes and not faults:
        faults.append(f"{WEIGHTS}: expected lora_A and lora_B of at least one layer, found no tensors")
    return shapes, faults
