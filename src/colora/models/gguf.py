"""GGUF files: unpacked to fp32 once, into a cache of folders in the transformers format.

The cache is `$COLORA_CACHE`, by default `~/.cache/colora`. SmolLM2 takes half a minute and 540 MB the first time; from
then on it loads in a fraction of a second.
"""

import hashlib
import importlib.util
import shutil
import sys
import uuid
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GgufConfig

from colora.common.cache import cache_folder
from colora.common.files import open_up_weights
from colora.errors import BaseModelError
from colora.models.auto_class import auto_class
from colora.tasks.tokenizer import Tokenizer

__all__ = ["unpacked_gguf"]

_MEGABYTE = 1 << 20


def unpacked_gguf(path: Path) -> Path:
    """The folder with the fp32 weights of a GGUF file, made on the first call.

    Raises:
        BaseModelError: the package gguf is missing, the file cannot be read, or the cache cannot be written.
    """
    folder = cache_folder() / "unpacked" / f"{path.stem}-{_gguf_digest(path)}"
    if _is_complete(folder):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise BaseModelError(f"reading {path.name} needs the gguf package: pip install 'colora[gguf]'")
    print(f"Unpacking {path.name} into {folder.parent}: once, about half a minute ...", file=sys.stderr, flush=True)
    # Nobody waits for anybody: whoever comes at the same time unpacks too, the first to rename wins, and a folder
    # under its final name is always whole. A plain mkdir honours the umask, so a cache can be shared.
    partial = folder.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        _unpack(path, partial)
        open_up_weights(partial)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder)  # tidied up by something that removes old files one by one
        partial.rename(folder)
    except (OSError, ValueError) as error:
        if not _is_complete(folder):
            raise BaseModelError(
                f"cannot unpack {path} into {folder}: {error}\nAnother cache folder can be set with COLORA_CACHE."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _gguf_digest(path: Path) -> str:
    # The first megabyte holds the metadata, the last one weights of the last layer: enough to tell two files of
    # one size apart without reading gigabytes at every start.
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name} {size} ".encode())
    with path.open("rb") as file:
        digest.update(file.read(_MEGABYTE))
        file.seek(max(0, size - _MEGABYTE))
        digest.update(file.read(_MEGABYTE))
    return digest.hexdigest()[:16]


def _is_complete(folder: Path) -> bool:
    return all(any(folder.glob(name)) for name in ("config.json", "tokenizer.json", "*.safetensors"))


def _unpack(path: Path, target: Path) -> None:
    file = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    config = AutoConfig.from_pretrained(**file)
    tokenizer = AutoTokenizer.from_pretrained(**file)
    # Asked to dequantise, transformers leaves an ordinary model; one it deems quantised it refuses to save.
    model = auto_class(config, "auto").from_pretrained(
        **file, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    _split_digits(tokenizer, path)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def _split_digits(tokenizer: Tokenizer, path: Path) -> None:
    """Give a tokenizer of the SmolLM family its digit rule back.

    These models saw every digit split off before anything else, so that a blank line before "1." is one token.
    Reading the GGUF loses the rule, and text with numbers after white space then becomes other tokens.
    """
    from gguf import GGUFReader

    rule = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if rule is not None and rule.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
