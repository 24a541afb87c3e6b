"""What coverage says of a new task: the demo's own tasks, other dates, and tasks of other kinds, on the demo's bank.

    python -m benchmarks.transfer.coverage [--bank demo/together-90-steps-seed-0] [--threads 2]

The bank is that of `make demo`. The record goes to benchmarks/transfer/records/coverage.json: for each task the share
of its gradient in the shared subspace, and that share over what its own best subspaces of the same rank would hold.
"""

import argparse
from pathlib import Path

import torch

from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.load import load_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.tasks.encode import encode_tasks
from colora.tasks.families.calendar import DEMO_LOCALES
from colora.tasks.families.make import make_tasks
from colora.training.task_gradients import task_gradients
from colora.transfer.onboarding.coverage import coverage

RECORD = Path(__file__).parent / "records" / "coverage.json"
KINDS = {
    "in the bank": [f"date-{locale}" for locale in DEMO_LOCALES],
    "dates, Romance": ["date-gl", "date-oc", "date-ast"],
    "dates, others": ["date-de", "date-hr", "date-fi"],
    "numbers": ["number-es", "number-de"],
    "other kinds": ["scan-126", "odd-man-out-142", "tweet-stance_abortion"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bank", type=Path, default=Path("demo/together-90-steps-seed-0"))
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    configure_threads(args.threads)
    names = [name for kind in KINDS.values() for name in kind]
    tasks = make_tasks(names, examples=16, val=0, test=0, seed=11, regime="implicit")
    model, tokenizer, _ = load_bank(args.bank)
    tuner = bank_tuner(model)
    tuner.add_tasks(["new task"])
    tuner.set_core("new task", {name: torch.zeros_like(core) for name, core in tuner.core("new task").items()})
    index = tuner.tasks.index("new task")
    data = encode_tasks(tasks, tokenizer, "train", 128)
    gradients = task_gradients(model, data, names, tokenizer.pad_token_id, task_index=[index] * len(names))
    bank = tuner.active_adapters[0]
    factors = {
        name: (layer.colora_A[bank].detach(), layer.colora_B[bank].detach())
        for name, layer in bank_layers(model, bank).items()
    }
    found = {name: coverage(gradients, number, factors) for number, name in enumerate(names)}
    shares = {name: {"shared": round(one.shared, 5), "relative": round(one.relative, 5)} for name, one in found.items()}
    record: dict[str, object] = {kind: {name: shares[name] for name in members} for kind, members in KINDS.items()}
    write_json(RECORD, record | {"environment": environment()})
    for kind, members in KINDS.items():
        print(f"{kind}: " + ", ".join(f"{name} {found[name].relative:.2%}" for name in members))


if __name__ == "__main__":
    main()
