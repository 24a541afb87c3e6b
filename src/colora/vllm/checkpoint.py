"""Whether the base that vLLM has loaded is the one that the bank was trained on.

vLLM joins, divides and repacks the weights that it has loaded, so they are compared as they are on disk.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colora.adapter.identity import REFUSE_ABOVE, sketch_distance
from colora.bank.tensors import SavedBank
from colora.errors import BaseMismatchError

__all__ = ["check_checkpoint"]

logger = logging.getLogger(__name__)


def check_checkpoint(bank: SavedBank, model: str, revision: str | None = None) -> None:
    """Refuse another base than the bank's.

    Args:
        bank: with the identity of its base.
        model: a folder, or an id on the hub of a model that this machine has by now.
        revision: of the model on the hub.

    Raises:
        BaseMismatchError: the weights are other ones. Where they cannot be compared, that is logged.
    """
    sketch = (bank.config.base_identity or {}).get("sketch", {})
    try:
        distance = sketch_distance(sketch, dict(_weights(_folder(model, revision), sketch)))
    except (OSError, SafetensorError, ValueError) as error:
        logger.warning("the weights of %s cannot be compared with those of the bank's base: %s", model, error)
        return
    if distance is None:
        logger.warning("the weights of %s cannot be compared with those of the bank's base", model)
    elif distance > REFUSE_ABOVE:
        raise BaseMismatchError(
            f"this bank was trained on another base model, {bank.info.base}; found {model}: relative distance "
            f"{distance:.2f} on sampled weights, expected under {REFUSE_ABOVE}"
        )


def _folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _weights(folder: Path, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The weights of these layers that the folder has."""
    wanted = {f"{name}.weight": name for name in names}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in wanted.keys() & set(file.keys()):
                yield wanted[key], file.get_tensor(key)
