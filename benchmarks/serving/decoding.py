"""A decoding step with weights stored row by row, as they are loaded, and column by column, side by side.

    python -m benchmarks.serving.decoding [--rows 1 4 16 64] [--steps 20] [--threads 2]

One model in each layout, with sixteen tasks of rank 16 on all linear layers; steps of the two alternate. To be run on
a machine that is otherwise idle. The record goes to benchmarks/serving/records/decoding.json.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import DEFAULT_BASE, load_base
from colora.models.decoding.batch import Batch, Row
from colora.models.decoding.layout import lay_out_by_columns
from colora.models.decoding.sampling import Sampling

RECORD = Path(__file__).parent / "records" / "decoding.json"
TASKS, PROMPT = 16, "The ledger lay in the window of the harbour office, and nobody"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if not args.table:
        threads = configure_threads(args.threads)
        models = {"by rows": model(False), "by columns": model(True)}
        found = {str(rows): measure(models, rows, args.steps) for rows in args.rows}
        write_json(RECORD, {"milliseconds": found, "threads": threads, "environment": environment()})
    print(table())


def model(columns: bool) -> tuple[Any, Any]:
    """A model with a bank, and its tokenizer."""
    base, tokenizer = load_base(DEFAULT_BASE)
    if columns:
        lay_out_by_columns(base)
    torch.manual_seed(0)
    names = [f"user-{number}" for number in range(TASKS)]
    config = CoLoRAConfig(r=16, lora_alpha=1, target_modules="all-linear", tasks=names, init_weights=False)
    return get_peft_model(base, config), tokenizer


def measure(models: dict[str, tuple[Any, Any]], rows: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each step."""
    batches = {}
    for name, (peft_model, tokenizer) in models.items():
        batches[name] = batch = Batch(peft_model, tokenizer, rows, positions=512)
        prompt = tokenizer(PROMPT)["input_ids"]
        batch.join([Row(prompt, row % TASKS, Sampling(max_tokens=400, temperature=0)) for row in range(rows)])
        batch.step()
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(steps):
        for name, batch in batches.items():
            began = time.perf_counter()
            batch.step()
            found[name].append(round(1000 * (time.perf_counter() - began), 2))
    return found


def table() -> str:
    """Markdown: medians, and the median of the ratios of neighbouring steps."""
    found = json.loads(RECORD.read_text("utf-8"))["milliseconds"]
    lines = ["| rows | by rows, ms a step | by columns, ms a step | ratio |", "|---:|---:|---:|---:|"]
    for rows, times in found.items():
        ratio = median(one / other for one, other in zip(times["by rows"], times["by columns"], strict=True))
        lines.append(f"| {rows} | {median(times['by rows']):.0f} | {median(times['by columns']):.0f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
