"""What a report is about: the facts of its records, the trials that failed, and what the methods are."""

from collections import Counter
from collections.abc import Sequence

from colora.experiments.report.gather import Experiment
from colora.experiments.report.methods import METHODS, method_order
from colora.experiments.report.tables import NOTHING, Table, table

__all__ = ["experiments_table", "facts", "failed_table", "methods_table"]


def facts(experiments: Sequence[Experiment]) -> list[tuple[str, str]]:
    """What was compared, with what, where and when: pairs of a name and its text."""
    records = [record for one in experiments for record in (*one.records, *one.failed)]
    trials = [record.trial for record in records]
    failed = sum(len(one.failed) for one in experiments)
    repeated = sum(one.repeated for one in experiments)
    dates = sorted(str(record.environment["date"])[:10] for record in records if record.environment.get("date"))
    machines = [
        " · ".join(
            [str(record.environment.get("device") or "unknown device"),
             *(str(record.environment[key]) for key in ("platform", "machine") if record.environment.get(key)),
             *([f"{record.environment['cpu_count']} cores"] if record.environment.get("cpu_count") else [])]
        )
        for record in records
    ]  # fmt: skip
    found = [
        ("Methods", ", ".join(sorted({trial.method for trial in trials}, key=method_order))),
        ("Groups of tasks", ", ".join(dict.fromkeys(trial.group for trial in trials))),
        ("Regimes", ", ".join(sorted({trial.regime for trial in trials}, reverse=True))),
        ("Trials", f"{len(records)}" + (f", of which {failed} failed" if failed else "")),
        ("Seeds", ", ".join(map(str, sorted({trial.seed for trial in trials})))),
        ("Base models", _counted(f"{trial.base} ({trial.dtype})" for trial in trials)),
        ("Measured on", _counted(trial.split for trial in trials)),
        ("Code digests", _counted(record.code or "unknown" for record in records)),
        ("Git revisions", _counted(str(record.environment.get("git_revision") or "unknown") for record in records)),
        ("Machines", _counted(machines)),
        ("Dates", NOTHING if not dates else dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
    ]
    if repeated:
        found.append(("Records left out", f"{repeated}: a later record of the same trial is there"))
    return found


def experiments_table(experiments: Sequence[Experiment]) -> Table:
    """A row for each experiment: how many trials it has, and of which code."""
    lines = []
    for one in experiments:
        regimes = Counter(record.trial.regime for record in one.records)
        codes = ", ".join(f"{code} ({number})" for code, number in one.codes.items())
        mixed = " MIXED" if len(one.codes) > 1 else ""
        lines.append(
            [one.name, str(regimes["implicit"]), str(regimes["explicit"]), str(len(one.failed)), codes + mixed]
        )
    return table("Experiments", ["experiment", "trials, implicit", "trials, explicit", "failed", "code digests"], lines)


def failed_table(experiments: Sequence[Experiment]) -> Table:
    """A row for each trial that failed, with its error."""
    lines = [
        [one.name, record.trial.method, record.trial.group, record.trial.regime, str(record.trial.examples),
         str(len(record.trial.tasks)), str(record.trial.seed), str(record.error)]
        for one in experiments for record in one.failed
    ]  # fmt: skip
    headers = ["experiment", "method", "group", "regime", "examples a task", "tasks", "seed", "error"]
    return table("Failed trials", headers, lines, ["These trials are in no other table and in no figure."])


def methods_table(experiments: Sequence[Experiment]) -> Table:
    """The methods in words, as far as they are known."""
    names = sorted({record.trial.method for one in experiments for record in one.records}, key=method_order)
    return table("Methods", ["method", "what it is"], [[name, METHODS.get(name, NOTHING)] for name in names])


def _counted(values: object) -> str:
    counts = Counter(values)  # type: ignore[call-overload]
    return ", ".join(
        f"{value} ({number})" if len(counts) > 1 else str(value) for value, number in sorted(counts.items())
    )
