"""Records of trials made up in code, whose means are known: what the report's tests read."""

from typing import Any

from colora.experiments.trial import TaskScores, Trial, TrialRecord

TASKS = ("red", "blue", "green")


def scores(rouge: list[float], nll: float = 1.0, tokens: int = 4) -> TaskScores:
    """One task's scores: these ROUGE-L, exact match where they are 100, and `nll` nats for each token."""
    exact = [100.0 if value == 100 else 0.0 for value in rouge]
    return TaskScores(nll=[nll * tokens] * len(rouge), tokens=[tokens] * len(rouge), rougeL=rouge, exact_match=exact)


def record(method: str = "colora", quality: float = 50.0, seed: int = 0, **changes: Any) -> TrialRecord:
    """A record in which every task has the mean ROUGE-L `quality` and a token NLL of 2 − quality / 100.

    Its six examples lie −10, −6, −2, 2, 6 and 10 about the mean. `changes` are fields of the trial, or of the record.
    """
    tasks = changes.get("tasks", TASKS)
    settings: dict[str, Any] = {
        "method": method, "group": "dates", "tasks": tasks, "regime": "implicit", "examples": 16, "seed": seed,
        "base": "tiny", "steps": 60, "lr": 2e-3,
    }  # fmt: skip
    settings |= {name: value for name, value in changes.items() if name in Trial.model_fields}
    rouge = [quality + apart for apart in (-10, -6, -2, 2, 6, 10)]
    given: dict[str, Any] = {
        "scores": {task: scores(rouge, 2 - quality / 100) for task in tasks},
        "trainable": 1000, "shared_numbers": 900, "task_numbers": 100, "seconds": {"train": 30.0, "evaluate": 5.0},
        "code": "c0de",
        "environment": {"date": "2026-03-04T05:06:07+00:00", "device": "cpu", "git_revision": "abc123", "cpu_count": 2,
                        "platform": "Linux-6", "machine": "x86_64"},
    }  # fmt: skip
    given |= {name: value for name, value in changes.items() if name in TrialRecord.model_fields}
    if given.get("error"):
        given["scores"] = {}
    return TrialRecord(trial=Trial(**settings), **given)


def rich_records() -> list[TrialRecord]:
    """An experiment in which every section of the report has something to show."""
    made = []
    for regime in ("implicit", "explicit"):
        for seed in (0, 1, 2):
            for examples in (8, 16, 32):
                for method, gain in {"base": -30.0, "local": 0.0, "pooled": 2.0, "colora": 10.0}.items():
                    quality = 40 + gain + (10 * (examples // 16) if method != "base" else 0) + seed
                    if (method, regime, examples) == ("pooled", "explicit", 32):
                        quality = 95.0 + seed  # a place where collaboration does not help
                    given: dict[str, Any] = {"regime": regime, "examples": examples}
                    if method == "colora":
                        given["similarity"] = [[1.0 if i == j else 0.2 * (i + j) for j in range(3)] for i in range(3)]
                    made.append(record(method, quality, seed, **given))
            for rank in (2, 4):
                made.append(record("colora", 45.0 + rank + seed, seed, regime=regime, rank=rank, group="rank"))
            for core_lr in (0.02, 0.06):
                made.append(record("colora", 45.0 + seed, seed, regime=regime, core_lr=core_lr, group="rates"))
            for tasks in (("red", "blue"), TASKS):
                for method in ("local", "colora"):
                    quality = 50.0 + seed + (3 * len(tasks) if method == "colora" else 0)
                    made.append(record(method, quality, seed, regime=regime, tasks=tasks, group="few"))
            for method, moved in {"fedit": 4_000_000, "fed-colora": 1_000_000}.items():
                given = {"rounds": 12, "bytes_up": moved, "bytes_down": 2 * moved, "group": "clients"}
                made.append(record(method, 55.0 + seed, seed, regime=regime, **given))
    made.append(record("mtl-lora", seed=9, error="RuntimeError: the loss became NaN"))
    return made
