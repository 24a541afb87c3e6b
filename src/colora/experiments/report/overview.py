"""What a report is about: the facts of its records, the trials that failed, and what the methods are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from colora.experiments.methods.registry import METHODS
from colora.experiments.report.gather import Experiment
from colora.experiments.report.methods import method_order
from colora.experiments.report.tables import NOTHING, Table, table
from colora.experiments.trial import TrialRecord

__all__ = ["experiments_table", "facts", "failed_table", "methods_table"]


def facts(experiments: Sequence[Experiment]) -> list[tuple[str, str]]:
    """What was compared, with what, where and when: pairs of a name and its text."""
    records = [record for one in experiments for record in (*one.records, *one.failed)]
    trials = [record.trial for record in records]
    failed = sum(len(one.failed) for one in experiments)
    repeated = sum(one.repeated for one in experiments)
    dates = sorted(str(record.environment["date"])[:10] for record in records if record.environment.get("date"))
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
        ("Machines", _counted(map(_machine, records))),
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
    lines = [[one.name, *_failure(record)] for one in experiments for record in one.failed]
    headers = ["experiment", "method", "group", "regime", "examples a task", "tasks", "seed", "error"]
    return table("Failed trials", headers, lines, ["These trials are in no other table and in no figure."])


def _failure(record: TrialRecord) -> list[str]:
    trial = record.trial
    numbers = (trial.examples, len(trial.tasks), trial.seed)
    return [trial.method, trial.group, trial.regime, *map(str, numbers), str(record.error)]


def methods_table(experiments: Sequence[Experiment], costs: Mapping[str, str] | None = None) -> Table:
    """The methods in words, as far as the registry has them; `costs` are what a further task costs, by method."""
    names = sorted({record.trial.method for one in experiments for record in one.records}, key=method_order)
    lines = []
    for name in names:
        method = METHODS.get(name)
        texts = (method.title, method.sentence, method.reference) if method else ("", "", "")
        cost = [(costs or {}).get(name, "")] if costs else []
        lines.append([name, *(text or NOTHING for text in (*texts[:2], *cost, texts[2]))])
    headers = ["method", "title", "what it is", *(["a further task"] if costs else []), "source"]
    return table("Methods", headers, lines)


def _machine(record: TrialRecord) -> str:
    made = record.environment
    cores = [f"{made['cpu_count']} cores"] if made.get("cpu_count") else []
    known = [str(made[key]) for key in ("platform", "machine") if made.get(key)]
    return " · ".join([str(made.get("device") or "unknown device"), *known, *cores])


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values)
    return ", ".join(f"{value} ({number})" if len(counts) > 1 else value for value, number in sorted(counts.items()))
