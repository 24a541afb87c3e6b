"""Six LoRAs that were trained apart as one bank: what a rank keeps of them, and what training on together adds.

    python -m benchmarks.importing.import_demo [--seeds 0] [--output runs/demo]
    python -m benchmarks.importing.import_demo --table

The LoRAs are the demo's, one a language ("alone"); they are trained first if they are not there. They are imported at
several ranks and measured; the bank of rank 16 is then trained on for 30 steps with half the demo's rates. What has
been measured is not measured again. The records go to benchmarks/importing/records/import_demo.jsonl.
"""

import argparse
from pathlib import Path
from statistics import fmean

from colora.adapter.model import bank_tuner
from colora.bank.importing.bank import import_loras
from colora.bank.load import load_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads
from colora.evaluation.evaluate import evaluate
from colora.evaluation.metrics import METRICS
from colora.evaluation.records import Record, append_records, read_records
from colora.evaluation.settings import EvaluationSettings
from colora.experiments.demo import measure_alone, write_tasks
from colora.tasks.families.calendar import date_tasks
from colora.tasks.prompting.prompts import use_plain_prompts
from colora.training.config import EvaluationSpec, RunConfig, TaskSpec, TrainingSpec
from colora.training.run import train

HERE = Path(__file__).parent
RECORD = HERE / "records" / "import_demo.jsonl"
STEPS, RANKS, REFINED, FURTHER = 90, (8, 16, 32, 48), 16, 30
DIGITS = {name: metric.digits for name, metric in METRICS.items()} | {"relative_error": 2, "times_smaller": 1}
RATES = {"lr": 1e-3, "core_lr": 3e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--table", action="store_true", help="print the table of the records, and run nothing")
    args = parser.parse_args()
    configure_threads(args.threads)
    for seed in [] if args.table else args.seeds:
        run(args.output, seed, args.threads)
    print(table())


def run(output: Path, seed: int, threads: int | None) -> None:
    folders = write_tasks(output / "tasks" / f"seed-{seed}", seed)
    alone = output / f"alone-{STEPS}-steps-seed-{seed}"
    if not all((alone / name / "bank" / "adapter_config.json").is_file() for name in folders):
        measure_alone(output, folders, seed, STEPS, log=print)
    for rank in RANKS:
        bank = output / f"imported-{rank}-seed-{seed}"
        if known(f"rank {rank}", seed):
            continue
        if not bank.is_dir():
            loras = [alone / name / "bank" for name in folders]
            report = import_loras(loras, bank, rank, base="smollm2", names=list(folders), progress=True)
            keep(f"rank {rank}", seed, [(one.name, "relative_error", one.error) for one in report.tasks])
            keep(f"rank {rank}", seed, [("all", "times_smaller", report.ratio)])
        keep(f"rank {rank}", seed, measured(bank, seed))
    if not known(f"rank {REFINED}, trained on", seed):
        config = RunConfig(
            base="smollm2", chat_template=False, output=str(output / f"refined-seed-{seed}"), seed=seed,
            start_from=str(output / f"imported-{REFINED}-seed-{seed}"),
            tasks=[TaskSpec(name=name, path=str(folder.resolve()), val=0) for name, folder in folders.items()],
            training=TrainingSpec(steps=FURTHER, rows=12, max_length=64, save_every=FURTHER, keep=1, threads=threads,
                                  **RATES),
            evaluation=EvaluationSpec(max_new_tokens=32),
        )  # fmt: skip
        keep(f"rank {REFINED}, trained on", seed, measured(train(config, log=print).bank, seed))


def known(method: str, seed: int) -> bool:
    found = read_records(RECORD) if RECORD.is_file() else []
    return any((one.method, one.seed, one.metric) == (method, seed, "rougeL") for one in found)


def keep(method: str, seed: int, values: list[tuple[str, str, float]]) -> None:
    append_records(
        RECORD, [Record("import", method, task, "test", metric, value, 24, seed) for task, metric, value in values]
    )
    write_json(RECORD.with_suffix(".environment.json"), environment())


def measured(bank: Path, seed: int) -> list[tuple[str, str, float]]:
    model, tokenizer, _ = load_bank(bank)
    use_plain_prompts(tokenizer)
    index = {name: place for place, name in enumerate(bank_tuner(model).tasks)}
    settings = EvaluationSettings(max_length=64, max_new_tokens=32, batch_rows=48, seed=seed)
    found = evaluate(model, tokenizer, date_tasks(seed=seed), settings, index, progress=False)
    return [(one.task, one.metric, one.value) for one in found.records]


def table() -> str:
    """Markdown: a row a rank, mean over tasks and seeds; the LoRAs themselves are those of `benchmarks.demo.demo`."""
    records = read_records(RECORD)
    seeds = {one.seed for one in records}
    alone = [
        one
        for one in read_records(HERE.parent / "demo" / "records" / "demo.jsonl")
        if one.method == "alone" and one.seed in seeds
    ]
    head = ["bank", *(metric.title for metric in METRICS.values()), "relative error, mean", "times smaller"]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|"]
    rows = {"the six LoRAs": alone}
    for method in [*(f"rank {rank}" for rank in RANKS), f"rank {REFINED}, trained on"]:
        rows[method] = [one for one in records if one.method == method]
    for title, own in rows.items():
        cells = []
        for metric, digits in DIGITS.items():
            values = [one.value for one in own if one.metric == metric]
            cells.append(f"{fmean(values):.{digits}f}" if values else "–")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
