"""The other way: a plain LoRA for each task that is asked for, written when it is, by vLLM's public interface alone.

FOLDER/DIGEST/adapter_config.json, adapter_model.safetensors
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from colora.common.files import staged_folder, write_json
from colora.serving.store import CoreStore

__all__ = ["LoRAFolders"]


class LoRAFolders:
    """Folders of plain LoRAs.

    Args:
        store: returns the tasks as they are now.
        folder: for the folders; kept from one start to the next it saves writing them again.
    """

    def __init__(self, store: Callable[[], CoreStore], folder: Path) -> None:
        self.store, self.folder = store, folder

    def path(self, task: str) -> Path:
        """The folder of a task as it is now, written if it is not there.

        Raises:
            TaskIdError: there is no such task; BankFileError: it is damaged.
            CheckpointError: the folder cannot be written.
        """
        store = self.store()
        _, cores = store.read(task)
        # Named by what it holds: another core, or other A and B, have another folder, which no cache knows.
        digest = hashlib.sha256(f"{store.shared} {task}".encode())
        for name in sorted(cores):
            digest.update(cores[name].contiguous().numpy().tobytes())
        folder = self.folder / digest.hexdigest()[:32]
        if not folder.is_dir():
            with staged_folder(folder) as staging:
                save_file(_tensors(store, cores), staging / "adapter_model.safetensors", metadata={"format": "pt"})
                rank = len(next(iter(cores.values())))
                write_json(staging / "adapter_config.json", _config(store, rank))
        return folder


def _tensors(store: CoreStore, cores: dict[str, Tensor]) -> dict[str, Tensor]:
    """A and B Λ, formed in float64 and rounded once."""
    found = {}
    for name, layer in store.saved.layers.items():
        core = cores[name]  # a smaller one mixes the leading directions alone
        found[f"base_model.model.{name}.lora_A.weight"] = layer.A[: len(core)].contiguous()
        product = layer.B[:, : len(core)].double() @ core.double()
        found[f"base_model.model.{name}.lora_B.weight"] = product.to(layer.B.dtype).contiguous()
    return found


def _config(store: CoreStore, rank: int) -> dict[str, object]:
    config = store.saved.config
    return {
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "r": rank,
        "lora_alpha": config.scaling * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in store.saved.layers}),
        "bias": "none",
    }
