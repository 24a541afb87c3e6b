"""What to write instead of what a run file cannot have: our names for those of other tools, the shape of tasks."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

__all__ = ["OTHER_NAMES", "hint_of"]

OTHER_NAMES: dict[str, str] = {
    "alpha": "adapter.lora_alpha",
    "base_model": "base",
    "batch_size": "training.rows",
    "bf16": "training.precision",
    "cutoff_len": "training.max_length",
    "data": "tasks",
    "datasets": "tasks",
    "dropout": "adapter.lora_dropout",
    "early_stopping_patience": "training.patience",
    "epochs": "training.steps",
    "eval_steps": "training.eval_every",
    "fp16": "training.precision",
    "gradient_accumulation_steps": "training.accumulation",
    "learning_rate": "training.lr",
    "logging_steps": "training.log_every",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_target_modules": "adapter.target_modules",
    "lr_scheduler_type": "training.scheduler",
    "max_seq_len": "training.max_length",
    "max_seq_length": "training.max_length",
    "max_steps": "training.steps",
    "micro_batch_size": "training.rows",
    "model": "base",
    "model_name": "base",
    "model_name_or_path": "base",
    "num_epochs": "training.steps",
    "num_steps": "training.steps",
    "num_train_epochs": "training.steps",
    "output_dir": "output",
    "per_device_eval_batch_size": "evaluation.rows",
    "per_device_train_batch_size": "training.rows",
    "rank": "adapter.r",
    "save_steps": "training.save_every",
    "target_layers": "adapter.target_modules",
    "train_batch_size": "training.rows",
    "train_steps": "training.steps",
}
"""Names of other tools, such as PEFT's and transformers', to the fields that say the same here."""
_EPOCHS = "; one epoch has (examples of all tasks) / rows steps"


def hint_of(error: Mapping[str, Any], fields: Sequence[str]) -> str:
    """What to add to one of pydantic's errors about a run file: "; did you mean 'lr'?", or nothing.

    Args:
        error: of `ValidationError.errors`.
        fields: the dotted keys of all fields and sections, such as "training.lr", and "tasks.N.path" of each task.
    """
    place, found = [str(part) for part in error["loc"]], error.get("input")
    if error["type"] == "extra_forbidden":
        return _other_name(place, fields)
    if error["type"] == "model_type" and place[0] in ("tasks", "shared_with") and isinstance(found, str):
        return f"; write `- path: {found}`"
    if error["type"] == "list_type" and place in (["tasks"], ["shared_with"]):
        path = found.get("path") if isinstance(found, Mapping) else found
        path = path if isinstance(path, str) else "data/red.jsonl"
        return f"; below `{place[0]}:`, write a line for each task, such as `  - path: {path}`"
    return ""


def _other_name(place: Sequence[str], fields: Sequence[str]) -> str:
    section, name = _section(place[:-1]), place[-1]
    last = {field: field.rsplit(".", 1)[-1] for field in fields}
    key = name.lower().replace("-", "_")
    if key not in OTHER_NAMES and key not in last.values():
        found = get_close_matches(key, sorted({*last.values(), *OTHER_NAMES}), n=1)
        if not found:
            return ""
        (key,) = found
    meant = [OTHER_NAMES[key]] if key in OTHER_NAMES else [field for field in fields if last[field] == key]
    here = [field for field in meant if field.rpartition(".")[0] == section]
    told = [last[field] for field in here] or meant[:3]
    return f"; did you mean {' or '.join(map(repr, told))}?{_EPOCHS if 'epoch' in key else ''}"


def _section(place: Sequence[str]) -> str:
    """As in a dotted key: "tasks.N" for the place tasks.0."""
    return ".".join("N" if part.isdigit() else part for part in place)
