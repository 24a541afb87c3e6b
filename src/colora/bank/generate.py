"""Outputs of a saved bank for prompts of many tasks at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from colora.bank.load import ROOM, load_bank
from colora.bank.tensors import SavedBank
from colora.common.json_text import JsonFault, parse_json
from colora.common.text import listed, shortened
from colora.common.threads import configure_threads
from colora.errors import ConfigError, TaskIdError
from colora.models.decoding.batch import Batch, Row, run_rows
from colora.models.decoding.layout import lay_out_by_columns
from colora.models.decoding.sampling import Sampling
from colora.models.generate import fit_prompts, generate_outputs
from colora.tasks.schema import Example

__all__ = ["Request", "generate_texts", "read_requests"]


@dataclass(frozen=True)
class Request:
    """One prompt. `task` may be None only for a bank of one task."""

    task: str | None
    input: str
    instruction: str | None = None


def read_requests(path: Path) -> list[Request]:
    """Requests from JSONL lines {"task", "input", "instruction"?}. Raises ConfigError listing every faulty line."""
    requests, faults = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also splits at U+2028, within strings
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except JsonFault as error:
            column = f" at column {error.column}" if error.column else ""
            faults.append(f"{path}:{number}: expected a JSON object, found {error}{column}")
            continue
        keys = ("task", "input", "instruction")
        if not isinstance(value, dict) or not all(isinstance(value.get(key, ""), str) for key in keys):
            faults.append(f"{path}:{number}: expected an object of strings, found {line[:60]}")
        elif missing := [key for key in ("task", "input") if key not in value]:
            faults.append(f"{path}:{number}: {' and '.join(missing)} missing")
        else:
            requests.append(Request(value["task"], value["input"], value.get("instruction")))
    if not requests and not faults:
        faults.append(f"{path}: expected at least one line, found none")
    if faults:
        raise ConfigError("the prompts cannot be used:", shortened(faults, 20))
    return requests


def generate_texts(
    bank: Path,
    requests: Sequence[Request],
    max_new_tokens: int = 64,
    base: str | None = None,
    sampling: Sampling | None = None,
) -> list[str]:
    """The outputs, in the order of the requests; prompts of all tasks are mixed in the batches.

    Args:
        sampling: how each is drawn, as a server draws it: alone or in a batch, one seed gives one output. By default
            the likeliest token is taken.

    Raises:
        ConfigError: a sampling that the model cannot do, see `Batch`; an instruction for a task whose prompt has no
            place for one.
        TaskIdError: a task that the bank does not know, or none given where it knows several.
        BankFileError: no bank there.
    """
    configure_threads()
    saved = SavedBank(bank)
    if any(request.task is None for request in requests) and len(saved.tasks) > 1:
        raise TaskIdError(f"which task? Name one with --task; this bank knows {listed(saved.tasks, 20)}")
    wanted = [saved.tasks[0] if request.task is None else request.task for request in requests]
    only = None if saved.rows is None or len(set(wanted)) > ROOM else list(dict.fromkeys(wanted))
    device = torch.accelerator.current_accelerator(check_available=True)
    model, tokenizer, info = load_bank(saved, base, device=device, tasks=only)
    lay_out_by_columns(model)
    router = model.base_model.router
    ids = router.resolve(wanted, model.active_adapters, next(model.parameters()).device)[model.active_adapters[0]]
    rows = [
        (task, Example(one.input, (), one.instruction, template=info.template(task)))
        for task, one in zip(wanted, requests, strict=True)
    ]
    prompts = fit_prompts(rows, model, tokenizer, info.max_length, max_new_tokens)
    if sampling is None:
        return generate_outputs(model, tokenizer, prompts, ids, max_new_tokens)
    drawn = replace(sampling, max_tokens=max_new_tokens)
    # No longer than needed: a model may have windows, or scales, that matter to longer rows alone.
    batch = Batch(model, tokenizer, positions=max(map(len, prompts), default=1) + max_new_tokens)
    return run_rows(batch, [Row(one, int(own), drawn) for one, own in zip(prompts, ids, strict=True)])
