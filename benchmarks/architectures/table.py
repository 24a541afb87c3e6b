"""What a bank does on many architectures: mixed batches, training, export, continuous batching.

    python -m benchmarks.architectures.table [--only NAME ...] [--table]

Each is compared with plain code. The models are those of `benchmarks.architectures.zoo`, in float64 where their own
code can be run so. The record goes to benchmarks/architectures/records/table.json; with --only its other lines stay.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers.utils import logging

from benchmarks.architectures.zoo import VOCAB, ZOO, Architecture
from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.bank.export import export_lora
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.errors import ConfigError
from colora.models.decoding.batch import Batch, Row, run_rows
from colora.models.decoding.sampling import Sampling
from tests.helpers.tiny import tiny_tokenizer

RECORD = Path(__file__).parent / "records" / "table.json"
TASKS = ["legal", "billing", "sales"]
STEPS, RATE = 12, 1e-2
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the spread of the logits; some norms are in float32 always


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="+", choices=list(ZOO), default=list(ZOO), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        torch.set_num_threads(1)
        found = read()["architectures"] if RECORD.is_file() else {}
        for name in args.only:
            found[name] = measure(ZOO[name])
            print(name, found[name], flush=True)
        found = {name: found[name] for name in ZOO if name in found}
        write_json(RECORD, {"architectures": found, "environment": environment("cpu")})
    print(table())


# ---- one architecture ------------------------------------------------------------------------------------------------


def measure(one: Architecture) -> dict[str, Any]:
    """The four columns; an error where one ends in one."""
    columns: dict[str, Callable[[Architecture], Any]] = {"mixed": mixed, "training": training, "export": exported}
    if one.kind == "causal":
        columns["batching"] = batching
    found: dict[str, Any] = {"dtype": str(one.dtype).removeprefix("torch."), "kind": one.kind}
    for name, measured in columns.items():
        try:
            found[name] = measured(one)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return found


def bank(one: Architecture, start: bool | str = False) -> PeftModel:
    """A bank of three tasks of rank 2 on all linear layers; random cores and factors, or as training begins."""
    model = one.make()
    kind = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(one.kind)
    experts = list(one.experts) or None
    config = CoLoRAConfig(r=2, lora_alpha=4, tasks=TASKS, init_weights=start, task_type=kind, target_parameters=experts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model, config, autocast_adapter_dtype=False).to(one.dtype).eval()


def batch_of(one: Architecture, rows: int = 3) -> dict[str, Tensor]:
    """What the model reads, a few rows, and the labels to learn."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(6, VOCAB, (rows, 8), generator=draw)
    if one.kind == "causal":
        return {"input_ids": ids, "labels": ids}
    if one.kind == "seq2seq":
        return {"input_ids": ids, "labels": ids.flip(1)}
    if one.kind == "tokens":
        return {"input_ids": ids, "labels": torch.arange(rows) % 3}
    if one.kind == "images":
        images = torch.randn(rows, 3, 8, 8, generator=draw, dtype=one.dtype)
        return {"pixel_values": images, "labels": torch.arange(rows) % 3}
    if one.kind == "speech":
        return {"input_features": torch.randn(rows, 8, 100, generator=draw, dtype=one.dtype), "labels": ids}
    ids[:, 1:5] = 5  # where the image is
    images = torch.randn(rows, 3, 8, 8, generator=draw, dtype=one.dtype)
    return {"input_ids": ids, "pixel_values": images, "labels": ids.masked_fill(ids == 5, -100)}


def mixed(one: Architecture) -> dict[str, float]:
    """Logits of a batch of three tasks against those of each row alone; and how far apart the tasks are."""
    model, inputs = bank(one), batch_of(one)
    together = model(**inputs, task_ids=[0, 1, 2]).logits.detach()
    alone = torch.cat([model(**row(inputs, task), task_ids=[task]).logits.detach() for task in range(3)])
    other = model(**inputs, task_ids=[1, 2, 0]).logits.detach()
    return {"difference": distance(together, alone), "between_tasks": distance(other, alone)}


def training(one: Architecture) -> dict[str, Any]:
    """Loss before and after a few steps on a mixed batch, and how many layers' cores got a gradient in the last."""
    model, inputs = bank(one, True).train(), batch_of(one)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser, losses = torch.optim.Adam(weights, RATE), []
    torch.manual_seed(0)  # dropout of the base
    for _ in range(STEPS + 1):
        loss = model(**inputs, task_ids=[0, 1, 2]).loss
        losses.append(float(loss))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layers = bank_layers(model, model.active_adapters[0])
    cores = [layer.colora_core[model.active_adapters[0]].grad for layer in layers.values()]
    reached = sum(core is not None and bool(core.any()) for core in cores)
    return {"before": losses[0], "after": losses[-1], "layers": len(cores), "reached": reached}


def exported(one: Architecture) -> float:
    """Logits of each task's plain LoRA, loaded by PEFT, against the bank's."""
    model, inputs, worst = bank(one), batch_of(one), 0.0
    for task, name in enumerate(TASKS):
        expected = model(**inputs, task_ids=[task] * 3).logits.detach()
        with tempfile.TemporaryDirectory() as folder:
            export_lora(model, name, Path(folder) / "lora")
            lora = PeftModel.from_pretrained(one.make(), str(Path(folder) / "lora"), autocast_adapter_dtype=False)
        worst = max(worst, distance(lora.to(one.dtype).eval()(**inputs).logits.detach(), expected))
    return worst


def batching(one: Architecture) -> dict[str, Any]:
    """Greedy answers of rows that share a batch against those of `generate`, or why there is no batch."""
    model = bank(one)
    try:
        batch = Batch(model, tiny_tokenizer(), 3, 64)
    except ConfigError as error:
        return {"refused": str(error).partition(". An answer would")[0]}
    batch.ends = set()
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(6, VOCAB, (length,), generator=draw).tolist() for length in (3, 29, 9, 5, 17, 40)]
    rows = [Row(prompt, number % 3, Sampling(12)) for number, prompt in enumerate(prompts)]
    run_rows(batch, rows)
    wrong = sum(row.tokens != greedy(model, row) for row in rows)
    return {"mask": batch.passes.mask, "rows": len(rows), "wrong": wrong}


@torch.inference_mode()
def greedy(model: PeftModel, row: Row) -> list[int]:
    """What `generate` gives for a row alone."""
    found: Tensor = model.generate(
        input_ids=torch.tensor([row.prompt]), task_ids=[row.task], max_new_tokens=row.sampling.max_tokens,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = found[0, len(row.prompt) :].tolist()
    return tokens


def row(inputs: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: value[number : number + 1] for name, value in inputs.items()}


def distance(found: Tensor, expected: Tensor) -> float:
    """Greatest difference of two tensors of logits, as a part of their spread."""
    return float((found - expected).abs().max() / expected.std())


# ---- the table -------------------------------------------------------------------------------------------------------


def read() -> dict[str, Any]:
    """The record."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def table() -> str:
    """Markdown: a line for each architecture of the record."""
    lines = [
        "| architecture | mixed batch equals alone | training: loss, cores reached | export equals bank | batching |",
        "|---|---|---|---|---|",
    ]
    for name, found in read()["architectures"].items():
        exact = "" if found["dtype"] == "float64" else f" ({found['dtype']})"
        limit = CLOSE[getattr(torch, found["dtype"])]
        cells = [_close(found["mixed"], limit), _learned(found["training"]), _close(found["export"], limit)]
        lines.append(f"| {name}{exact} | {' | '.join(cells)} | {_batched(found.get('batching'))} |")
    return "\n".join(lines)


def _close(value: Any, limit: float) -> str:
    if isinstance(value, dict) and "error" in value:
        return f"error: {value['error']}"
    difference = value["difference"] if isinstance(value, dict) else value
    same_tasks = isinstance(value, dict) and value["between_tasks"] < 100 * limit
    verdict = "yes" if difference < limit and not same_tasks else "**no**"
    return f"{verdict}, {difference:.0e}" if difference else f"{verdict}, 0"


def _learned(value: dict[str, Any]) -> str:
    if "error" in value:
        return f"error: {value['error']}"
    falls = "" if value["after"] < value["before"] else "**rises:** "
    return f"{falls}{value['before']:.2f} to {value['after']:.2f}, {value['reached']} of {value['layers']}"


def _batched(value: dict[str, Any] | None) -> str:
    if value is None:
        return "not tried: batches are for decoder-only models of text"
    if "error" in value:
        return f"error: {value['error']}"
    if "refused" in value:
        return f"refused: {value['refused'].partition('continuous batches: ')[2] or value['refused']}"
    return "yes" if not value["wrong"] else f"**{value['wrong']} of {value['rows']} differ**"


if __name__ == "__main__":
    main()
