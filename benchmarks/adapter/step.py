"""What a training step and a mixed forward pass cost: frozen base, PEFT LoRA, and a bank of 8 and of 1024 tasks.

    python -m benchmarks.adapter.step [--rounds 9] [--output benchmarks/adapter/records/step.json]

All contestants share one base model in one process and take turns, round after round, so that a drift of the
machine's speed hits all alike; what counts are the ratios within a round, of which the median is reported. "Frozen
base" is the forward and backward pass with only the input embedding's output requiring gradients: the work that no
adapter can avoid.
"""

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from colora import CoLoRAConfig
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.models.base import load_base
from colora.training.loop.optimizer import TaskAdamW, parameter_groups

ROWS, LENGTH, RANK, MIXED = 8, 48, 8, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/adapter/records/step.json"))
    args = parser.parse_args()
    threads = configure_threads(args.threads)
    torch.manual_seed(0)
    steps, forwards = contestants(args.base)
    report = {
        "setting": {
            "base": args.base, "rows": ROWS, "length": LENGTH, "rank": RANK, "threads": threads, "rounds": args.rounds,
            "target_modules": "all-linear", "tasks_in_a_batch": MIXED, "dtype": "float32",
        },
        "training_step": race(steps, args.rounds, args.warmup, reference="peft_lora"),
        "mixed_forward": race(forwards, args.rounds, args.warmup, reference="peft_adapter_names"),
        "environment": environment(),
    }  # fmt: skip
    write_json(args.output, report)
    print(json.dumps({key: report[key] for key in ("training_step", "mixed_forward")}, indent=2))
    print(summary_markdown(report))


def summary_markdown(report: dict[str, Any]) -> str:
    """A row a contestant: the median ratio to the frozen base, and to PEFT's own."""
    names = {
        "peft_lora": "PEFT LoRA, one adapter",
        "peft_adapter_names": "PEFT LoRA, 8 adapters by `adapter_names`",
        "bank_8": "bank of 8 tasks",
        "bank_1024": "bank of 1024 tasks",
    }
    lines = [
        "| 8 mixed rows | training step / frozen base | / PEFT LoRA | mixed forward / frozen base | / PEFT mixed |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        cells = []
        for kind, reference in (("training_step", "peft_lora"), ("mixed_forward", "peft_adapter_names")):
            row = report[kind].get(key)
            cells += [f"{row[f'to_{to}']['median']:.2f}" if row else "–" for to in ("frozen_base", reference)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def contestants(base: str) -> tuple[dict[str, Callable[[], None]], dict[str, Callable[[], None]]]:
    """For each name a function that does one training step, and one that does one mixed forward pass."""
    vocabulary = load_base(base)[0].config.vocab_size
    ids = torch.randint(10, vocabulary, (ROWS, LENGTH))
    frozen = fresh(base)
    lora = get_peft_model(fresh(base), lora_config())
    banks = {count: get_peft_model(fresh(base), bank_config(count)) for count in (8, 1024)}
    named = get_peft_model(fresh(base), lora_config(), adapter_name="task-0")
    for task in range(1, MIXED):
        named.add_adapter(f"task-{task}", lora_config())

    batches = {count: spread(count) for count in banks}
    steps = {"frozen_base": frozen_step(frozen, ids), "peft_lora": training_step(lora, ids)}
    forwards = {"frozen_base": forward(frozen, ids)}
    for count, bank in banks.items():
        steps[f"bank_{count}"] = training_step(bank, ids, task_ids=batches[count])
        forwards[f"bank_{count}"] = forward(bank, ids, task_ids=batches[count])
    names = [f"task-{row % MIXED}" for row in range(ROWS)]
    forwards["peft_adapter_names"] = forward(named, ids, adapter_names=names)
    return steps, forwards


_base: dict[str, Any] = {}


def fresh(base: str) -> Any:
    """A model of its own whose frozen weights are those of all others: the same memory, so the same caches."""
    if base not in _base:
        _base[base] = load_base(base)[0]
    model = _base[base]
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=dict(shared))


def lora_config() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")


def bank_config(count: int) -> CoLoRAConfig:
    return CoLoRAConfig(r=RANK, lora_alpha=RANK, tasks=[f"task-{task}" for task in range(count)], task_type="CAUSAL_LM")


def spread(count: int) -> torch.Tensor:
    """One task for each row, spread over the whole bank."""
    return torch.arange(ROWS) * (count // ROWS)


def frozen_step(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    embedding = model.get_input_embeddings()

    def step() -> None:
        model.train()
        inputs = embedding(ids).detach().requires_grad_()
        model(inputs_embeds=inputs, labels=ids).loss.backward()

    return step


def training_step(model: Any, ids: torch.Tensor, **routing: Any) -> Callable[[], None]:
    """Forward, backward, clip, optimiser step, gradients dropped: one step as a trainer does it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if routing:
        optimizer: torch.optim.Optimizer = TaskAdamW(parameter_groups(model, lr=1e-4, core_lr=1e-4))
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        model.train()
        model(input_ids=ids, labels=ids, **routing).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward(model: Any, ids: torch.Tensor, **routing: Any) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(input_ids=ids, **routing)

    return run


def race(runners: dict[str, Callable[[], None]], rounds: int, warmup: int, reference: str) -> dict[str, Any]:
    """Median seconds of each, and the median and range over rounds of its ratios to the base and to `reference`."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    gc.collect()
    for number in range(warmup + rounds):
        for name in list(runners)[:: 1 if number % 2 else -1]:  # there and back, so that none is always first
            start = time.perf_counter()
            runners[name]()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {number + 1} of {warmup + rounds}", flush=True)

    def ratios(name: str, to: str) -> dict[str, float]:
        values = [one / other for one, other in zip(seconds[name], seconds[to], strict=True)]
        summary = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        return {key: round(value, 4) for key, value in summary.items()}

    return {
        name: {
            "median_seconds": round(statistics.median(seconds[name]), 4),
            "to_frozen_base": ratios(name, "frozen_base"),
            f"to_{reference}": ratios(name, reference),
        }
        for name in runners
    }


if __name__ == "__main__":
    main()
