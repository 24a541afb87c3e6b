"""From plain LoRAs to one bank: K adapters on one base, trained apart, as shared factors and a core for each.

`algebra.joint_diagonalisation` finds the factors, layer by layer: memory is what one layer of all K LoRAs takes in
float64, and the bank that comes out. The base model is loaded once at the end of the checks, since a bank records which
model it belongs to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from colora.adapter.config import ADAPTER_NAME, CoLoRAConfig
from colora.adapter.layer import CoLoRALinear
from colora.adapter.model import bank_layers
from colora.bank.importing.compress import share_layer
from colora.bank.importing.fit import bank_rank, common_base, layer_sizes, target_names
from colora.bank.importing.read import WEIGHTS, Lora, read_loras
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.progress import progress_bar
from colora.errors import ConfigError
from colora.models.base import load_base
from colora.tasks.prompting.templates import CHAT, template_of

__all__ = ["ImportReport", "ImportedTask", "import_loras"]


@dataclass(frozen=True)
class ImportedTask:
    """What became of one LoRA.

    Attributes:
        name, rank: of the task; the largest rank of its LoRA's layers.
        error: ‖W_k − W_k'‖ / ‖W_k − W0‖ over all layers together, in Frobenius norms; W_k is the LoRA's weight and
            W_k' the bank's.
        worst_layer, worst_error: the same of the layer where it is largest.
    """

    name: str
    rank: int
    error: float
    worst_layer: str
    worst_error: float


@dataclass(frozen=True)
class ImportReport:
    """What an import came to; errors are those of sharing, storing the bank in float32 adds about 1e-7.

    Attributes:
        bank: its folder.
        base: the base model's name.
        rank: r of the bank.
        tasks: in the order of the bank.
        bytes_before, bytes_after: sizes of the files of tensors, of all LoRAs and of the bank.
    """

    bank: Path
    base: str
    rank: int
    tasks: list[ImportedTask]
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """How many times smaller the bank is."""
        return self.bytes_before / self.bytes_after


def import_loras(
    folders: Sequence[str | Path],
    output: str | Path,
    rank: int | None = None,
    base: str | None = None,
    names: Sequence[str] | None = None,
    prompt: str = CHAT,
    *,
    log: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> ImportReport:
    """Turn plain LoRAs on one base model into a bank.

    Ranks, scales and adapted layers may differ; a layer that a LoRA lacks has an update of zero there. The factors
    minimise the sum over tasks of the squared relative errors, so that a small update counts as much as a large one.
    The bank has scale 1 and float32 tensors (float64 if a LoRA has); its factors are balanced so that training can go
    on, see `colora.bank.importing.compress`. One LoRA alone works, but then nothing is shared.

    Args:
        folders: of the LoRAs, as PEFT saves them.
        output: folder of the bank; must not hold anything.
        rank: r of the bank; by default twice the largest rank of the LoRAs, but not more than the layers allow, nor
            than is needed to hold all of them exactly.
        base: the base model, if not what the LoRAs say.
        names: of the tasks; by default the folders' names.
        prompt: that the LoRAs were trained with, of which they say nothing; as `BankInfo.prompt`.

    Raises:
        ConfigError: listing what is wrong with the folders, layers, rank, output or prompt. Nothing is written.
        BaseModelError: the base cannot be loaded.
        CheckpointError: the bank cannot be written.
    """
    template_of(prompt)  # raises before anything is read
    output = _free_folder(Path(output).resolve())
    loras = read_loras([Path(folder) for folder in folders], names)
    source = _base_name(loras, base, log)
    model, _ = load_base(source, dtype="auto")
    sizes = layer_sizes(loras, model)
    r = bank_rank(loras, sizes, rank)
    missing = sum(any(layer not in lora.shapes for lora in loras) for layer in sizes)
    if missing:
        log(f"{missing} of {len(sizes)} layers are not adapted by every LoRA; the update of the others is zero there")
    if len(loras) == 1:
        log("one LoRA alone: the bank holds it, but nothing is shared")

    config = CoLoRAConfig(
        r=r,
        lora_alpha=r,
        tasks=[lora.name for lora in loras],
        target_modules=target_names(model, set(sizes)),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    bank: Any = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    layers = bank_layers(bank, ADAPTER_NAME)
    assert layers.keys() == sizes.keys()
    lost, energy = _share_layers(loras, layers, sizes, r, progress)
    save_bank(bank, output, BankInfo(base=model.name_or_path, prompt=prompt))
    rows = _task_rows(loras, list(layers), lost, energy)
    before, after = sum(lora.bytes for lora in loras), (output / WEIGHTS).stat().st_size
    return ImportReport(output, model.name_or_path, r, rows, bytes_before=before, bytes_after=after)


def _base_name(loras: Sequence[Lora], base: str | None, log: Callable[[str], None]) -> str:
    """The base model's name: the one that was asked for, or that the LoRAs agree on."""
    source = base or common_base(loras)
    for lora in loras:
        if base and lora.base != base:
            log(f"{lora.folder} names the base {lora.base}; taken to be the same as {base}")
    if source != "smollm2" and Path(source).expanduser().exists():
        return str(Path(source).expanduser().resolve())  # the bank will be used from other folders
    return source


def _free_folder(output: Path) -> Path:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is there already; choose another output, or remove it")
    return output


def _share_layers(
    loras: Sequence[Lora],
    layers: Mapping[str, CoLoRALinear],
    sizes: Mapping[str, tuple[int, int]],
    r: int,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Write shared factors and cores into every layer; what that lost of each LoRA, and its size: (K, layers) each."""
    dtype = torch.float64 if any(lora.dtype == torch.float64 for lora in loras) else torch.float32
    lost, energy = (torch.zeros(len(loras), len(layers), dtype=torch.float64) for _ in range(2))
    norms = [_norm(lora) or 1.0 for lora in loras]
    with progress_bar(shown=progress) as bar:
        counter = bar.add_task("sharing layers", total=len(layers))
        for index, (name, layer) in enumerate(layers.items()):
            pairs = [lora.factors(name) if name in lora.shapes else _nothing(*sizes[name]) for lora in loras]
            shared = share_layer([B for B, _ in pairs], [A for _, A in pairs], r, norms)
            _fill(layer, shared.A, shared.B, shared.cores, dtype)
            lost[:, index], energy[:, index] = shared.lost, shared.energy
            bar.advance(counter)
    return lost, energy


def _norm(lora: Lora) -> float:
    """‖W − W0‖ over all layers."""
    squares = 0.0
    for layer in lora.shapes:
        B, A = lora.factors(layer)
        squares += float(((B.T @ B) * (A @ A.T)).sum())
    return max(squares, 0.0) ** 0.5


def _nothing(d_out: int, d_in: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(d_out, 0, dtype=torch.float64), torch.zeros(0, d_in, dtype=torch.float64)


@torch.no_grad()
def _fill(layer: CoLoRALinear, A: Tensor, B: Tensor, cores: Tensor, dtype: torch.dtype) -> None:
    # As new storage: the base's precision, in which the bank was made, need not be the bank's.
    for parameter, value in ((layer.colora_A, A), (layer.colora_B, B), (layer.colora_core, cores)):
        parameter[ADAPTER_NAME].data = value.to(dtype).contiguous()


def _task_rows(loras: Sequence[Lora], layers: list[str], lost: Tensor, energy: Tensor) -> list[ImportedTask]:
    by_layer = torch.where(energy > 0, lost / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0).sqrt()
    whole = (lost.sum(1) / energy.sum(1).clamp(min=torch.finfo(energy.dtype).tiny)).sqrt()
    return [
        ImportedTask(lora.name, lora.rank, float(error), layers[int(own.argmax())], float(own.max()))
        for lora, error, own in zip(loras, whole, by_layer, strict=True)
    ]
