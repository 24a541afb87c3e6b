"""Does similarity predict transfer? Cosines of ten real tasks against the gains of training in pairs.

    python -m benchmarks.transfer.transfer [--share 1/2] [--threads 1]    # 10 alone, 45 in pairs, one of all
    python -m benchmarks.transfer.transfer --table

Every training has 40 steps with four rows of each of its tasks, so that a task sees the same rows in all of them; the
base is in bf16. How much j helps i is log(nats of i alone / nats of i with j) on test examples. A finished training is
never run again; several processes may share the work by --share. The records go to
benchmarks/transfer/records/transfer.jsonl, the cosines to transfer_gradients.json (before training) and
transfer_cores.json (of the bank of all tasks).
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from scipy.stats import spearmanr
from transformers import get_cosine_schedule_with_warmup, set_seed

from colora.adapter.model import bank_tuner
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.files import write_json
from colora.common.locks import waiting_lock
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.evaluation.records import Record, append_records, read_records
from colora.models.base import DEFAULT_BASE, load_base
from colora.models.likelihood import label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks, encode_tasks
from colora.tasks.families.make import make_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.schema import Task
from colora.tasks.tokenizer import Tokenizer
from colora.training.adapter_config import bank_config
from colora.training.config import AdapterSpec
from colora.training.loop.loss import row_weights
from colora.training.loop.optimizer import TaskAdamW, parameter_groups
from colora.training.task_gradients import task_gradients
from colora.transfer.clusters import cluster_tree
from colora.transfer.onboarding.start import mean_nll
from colora.transfer.similarity import Similarity, bank_similarity, gradient_similarity

RECORDS = Path(__file__).parent / "records"
RECORD = RECORDS / "transfer.jsonl"
FAMILIES = {
    "dates": ("date-es", "date-pt", "date-it", "date-ca"),
    "odd one out": ("odd-man-out-141", "odd-man-out-142", "odd-man-out-143"),
    "stances": ("tweet-stance_abortion", "tweet-stance_atheism", "tweet-stance_climate"),
}
TASKS = [name for names in FAMILIES.values() for name in names]
EXAMPLES, TEST, SEED = 16, 24, 0
STEPS, ROWS, WARMUP, LR, CORE_LR = 40, 4, 5, 2e-3, 6e-2
MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--share", default="1/1", help="of the trainings: 1/2 and 2/2 for two processes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    if not args.table:
        run(args)
    print(table())


def run(args: argparse.Namespace) -> None:
    configure_threads(args.threads)
    part, parts = (int(number) for number in args.share.split("/"))
    tasks = {
        task.name: task for task in make_tasks(TASKS, examples=EXAMPLES, val=0, test=TEST, seed=SEED, regime="implicit")
    }
    _, tokenizer = load_base(DEFAULT_BASE, chat_template=False)
    if part == 1 and not (RECORDS / "transfer_gradients.json").is_file():
        model = bank_of(load_base(DEFAULT_BASE)[0], TASKS)
        data = encode_tasks(list(tasks.values()), tokenizer, "train", MAX_LENGTH)
        gradients = task_gradients(model, data, TASKS, tokenizer.pad_token_id)
        write_json(RECORDS / "transfer_gradients.json", gradient_similarity(gradients).as_json())
    base, _ = load_base(DEFAULT_BASE, torch.bfloat16)  # twice as fast; adapters stay in float32
    task_sets = [(name,) for name in TASKS] + list(combinations(TASKS, 2)) + [tuple(TASKS)]
    for number, names in enumerate(task_sets):
        measured = {one.method for one in read_records(RECORD)} if RECORD.is_file() else set()
        method = " + ".join(names) if len(names) < len(TASKS) else "all"
        if number % parts != part - 1 or method in measured:
            continue
        model, values = trained([tasks[name] for name in names], base, tokenizer)
        found = [
            Record("transfer", method, name, "test", "token_nll", value, TEST, SEED) for name, value in values.items()
        ]
        if method == "all":
            save_bank(model, args.output / "bank", BankInfo(DEFAULT_BASE, False, MAX_LENGTH))
            write_json(RECORDS / "transfer_cores.json", bank_similarity(args.output / "bank").as_json())
        with waiting_lock(RECORD.with_suffix(".lock")):
            append_records(RECORD, found)
            write_json(RECORD.with_suffix(".environment.json"), environment())
        print(method, {name: round(value, 3) for name, value in values.items()}, flush=True)
        base = bank_tuner(model).unload()


def bank_of(base: Any, names: list[str]) -> PeftModel:
    set_seed(SEED)
    return get_peft_model(base, bank_config(AdapterSpec(), names, base))


def trained(tasks: list[Task], base: Any, tokenizer: Tokenizer) -> tuple[PeftModel, dict[str, float]]:
    """A bank of these tasks, and each one's nats per token on its test examples."""
    names = [task.name for task in tasks]
    model = bank_of(base, names)
    data = encode_tasks(tasks, tokenizer, "train", MAX_LENGTH)
    collate = TaskCollator(tokenizer.pad_token_id)
    optimizer = TaskAdamW(parameter_groups(model, LR, CORE_LR), betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    order = iter(TaskMixture(data.sizes, batch_size=ROWS * len(tasks), steps=STEPS, seed=SEED))
    model.train()
    for _ in range(STEPS):
        batch = collate([data[next(order)] for _ in range(ROWS * len(tasks))])
        labels, ids = batch.pop("labels"), batch["task_ids"]
        tokens = label_tokens(labels, False)
        total = torch.zeros(2, len(tasks)).index_add_(1, ids, torch.stack([tokens.float(), torch.ones(len(ids))]))
        weights = row_weights(ids, tokens, total[0], total[1], torch.ones(len(tasks), dtype=torch.bool))
        (row_nll(model, batch, labels) * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    held_out = encode_tasks(tasks, tokenizer, "test", MAX_LENGTH)
    return model, {name: mean_nll(model, batches(held_out, collate, place), place) for place, name in enumerate(names)}


def batches(data: EncodedTasks, collate: TaskCollator, place: int) -> list[dict[str, torch.Tensor]]:
    items = [data[data.offsets[place] + row] for row in range(data.sizes[place])]
    return [collate(items[at : at + 12]) for at in range(0, len(items), 12)]


def gains() -> np.ndarray:
    """[i, j]: log(nats of i alone / nats of i with j) on test examples; NaN where not measured, and on the diagonal."""
    nats = {(one.method, one.task): one.value for one in read_records(RECORD)}
    found = np.full((len(TASKS), len(TASKS)), np.nan)
    for i, j in combinations(range(len(TASKS)), 2):
        for own, other in ((i, j), (j, i)):
            alone, pair = (TASKS[own], TASKS[own]), (f"{TASKS[i]} + {TASKS[j]}", TASKS[own])
            if alone in nats and pair in nats:
                found[own, other] = np.log(nats[alone] / nats[pair])
    return found


def cosines(kind: str) -> Similarity:
    """The recorded cosines, as if of one layer in which every task's update has length one."""
    value = json.loads((RECORDS / f"transfer_{kind}.json").read_text())
    return Similarity(value["tasks"], value["kind"], {"all": torch.tensor(value["cosine"], dtype=torch.float64)}, {})


def table() -> str:
    """Markdown: what the cosines say of the families and of the measured gains."""
    gain = gains()
    several = ~np.eye(len(TASKS), dtype=bool)
    measured = ~np.isnan(gain) & ~np.isnan(gain.T)
    family = {name: label for label, names in FAMILIES.items() for name in names}
    within = np.array([[family[one] == family[two] for two in TASKS] for one in TASKS]) & several
    pairs = np.triu(measured)
    mean = (gain + gain.T) / 2
    head = ("by", "families found", "cosine within", "across", "rank correlation with gains of pairs", "of a task's")
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|"]
    for kind, title, centred in (
        ("gradients", "gradients, before training", False),
        ("cores", "cores, after training", False),
        ("cores", "cores, beyond their mean", True),
    ):
        if not (RECORDS / f"transfer_{kind}.json").is_file():
            continue
        own = cosines(kind).centred() if centred else cosines(kind)
        matrix = own.overall().numpy()
        groups = {tuple(one) for one in cluster_tree(own).groups(count=len(FAMILIES))}
        right = len(groups & set(FAMILIES.values()))
        rows = [
            spearmanr(matrix[i][known], gain[i][known]).statistic for i, known in enumerate(measured) if known.sum() > 3
        ]
        found = spearmanr(matrix[pairs], mean[pairs])
        cells = (
            title, f"{right} of {len(FAMILIES)}", f"{matrix[within].mean():.2f}",
            f"{matrix[several & ~within].mean():.2f}", f"{found.statistic:.2f} (p = {found.pvalue:.1g})",
            f"{np.mean(rows):.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{int(pairs.sum())} of {len(TASKS) * (len(TASKS) - 1) // 2} pairs measured."]
    for where, who in ((within, "the same family"), (several & ~within, "another family")):
        known = where & measured
        nats = 100 * (np.exp(-np.median(gain[known])) - 1)
        helped = f"{int((gain[known] > 0).sum())} of {int(known.sum())} helped"
        lines.append(f"With a task of {who}: {nats:+.0f} % nats per token at the median, {helped}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
