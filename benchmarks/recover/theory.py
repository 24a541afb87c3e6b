"""The tables of docs/theory.md and of the README, from the committed records of `colora recover`; and their figures.

python -m benchmarks.recover.theory             # print the tables
python -m benchmarks.recover.theory --figures   # write docs/figures/recovery-*.svg
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.recover.isometry import table_markdown as isometry_markdown
from benchmarks.recover.many_users import table_markdown as many_markdown
from colora.theory.experiments.config import FIGURES
from colora.theory.experiments.records import RecoveryRecord, read_recovery_records
from colora.theory.experiments.summary import Row, paired, rows

HERE = Path(__file__).parent
RECORDS = HERE / "records"
DOCS = HERE.parents[1] / "docs" / "figures"
REACHED = 1e-10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--figures", action="store_true", help="write the figures instead")
    if parser.parse_args().figures:
        from colora.theory.experiments.figures import draw_recovery

        for name in FIGURES:
            draw_recovery(read(name), name, DOCS / f"recovery-{name}.svg")
            print(f"written: {(DOCS / f'recovery-{name}.svg').relative_to(HERE.parents[1])}")
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")


def read(name: str) -> list[RecoveryRecord]:
    """The records of an experiment."""
    return read_recovery_records(RECORDS / f"{name}.jsonl")


def exact_markdown() -> str:
    """Alternating minimisation with K = 20 at the sizes around the least that always suffice, and local users."""
    lines = ["| users | samples of each | problems recovered, of 10 |", "|---|---|---|"]
    for row in rows(read("phase")):
        users, samples = row.values["users"], row.values["samples"]
        if row.method == "alternating" and (users, samples) in SHOWN:
            lines.append(f"| {users} | {samples} | {_count(row)} |")
    return "\n".join(lines)


SHOWN = [(20, 14), (20, 16), (20, 18), (20, 24), (1, 95), (1, 110), (1, 130), (1, 150)]


def freedom_markdown() -> str:
    """Problems recovered, of 20, over multiples of the degrees of freedom."""
    return _grid("freedom", "times_freedom", _count)


def convergence_markdown() -> str:
    """Iterations and seconds to a relative error of 1e-10, medians over seeds."""
    lines = ["| diversity of cores | method | iterations | seconds |", "|---|---|---|---|"]
    for row in rows(read("convergence")):
        reached = [
            next(((n, e[3]) for n, e in enumerate(one, 1) if e[6] < REACHED), None) for one in row.record.history
        ]
        known = [one for one in reached if one is not None]
        shown = (
            f"{median(n for n, _ in known):.0f} | {median(s for _, s in known):.3f}"
            if len(known) == len(reached)
            else f"not reached on {len(reached) - len(known)} of {len(reached)} seeds | –"
        )
        lines.append(f"| {row.values['diversity']:g} | {row.method} | {shown} |")
    return "\n".join(lines)


def noise_markdown() -> str:
    """Mean squared error over the Cramér–Rao bound, both summed over seeds, with a bootstrap interval over seeds."""
    lines = [
        "| noise σ | second-order | alternating | median relative error | alone, low rank |",
        "|---|---|---|---|---|",
    ]
    found = {(row.values["noise"], row.method): row for row in rows(read("noise"))}
    for noise in sorted({noise for noise, _ in found}):
        ratios = [_ratio(found[noise, method]) for method in ("second-order", "alternating")]
        error, alone = (found[noise, method].error for method in ("second-order", "local-low-rank"))
        lines.append(f"| {noise:g} | {' | '.join(ratios)} | {error:.2g} | {alone:.2g} |")
    return "\n".join(lines)


def similarity_markdown() -> str:
    """Median relative error over the angle, and from where on collaborating is worse than the better local fit."""
    lines = ["| samples | " + " | ".join(f"{angle:g}°" for angle in _angles()) + " | stops paying |"]
    lines.append("|---" * (len(_angles()) + 2) + "|")
    found = {(row.values["samples"], row.values["angle"], row.method): row.error for row in rows(read("similarity"))}
    for samples in sorted({samples for samples, _, _ in found}):
        ours = [found[samples, angle, "second-order"] for angle in _angles()]
        local = [
            min(found[samples, angle, method] for method in ("local-least-squares", "local-low-rank"))
            for angle in _angles()
        ]
        worse = [angle for angle, a, b in zip(_angles(), ours, local, strict=True) if a > b]
        stops = f"at {min(worse):g}°" if worse else "nowhere"
        lines.append(f"| {samples}, together | " + " | ".join(f"{one:.2g}" for one in ours) + f" | {stops} |")
        lines.append(f"| {samples}, alone | " + " | ".join(f"{one:.2g}" for one in local) + " | |")
    return "\n".join(lines)


def newcomer_markdown() -> str:
    """Median relative error of new users over their samples."""
    return _grid("newcomer", "newcomer", lambda row: f"{row.error:.2g}")


def digits_markdown() -> str:
    """Mean test error, and the paired difference from each other method with its interval over 20 seeds."""
    found = {(row.values["samples"], row.method): row for row in rows(read("digits"))}
    methods = list(dict.fromkeys(method for _, method in found))
    others = [method for method in methods if method != "colora"]
    heads = ["images", *(f"{method}, %" for method in methods), *(f"colora − {method}" for method in others)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for samples in sorted({samples for samples, _ in found}):
        entries = [f"{100 * found[samples, method].mean:.2f}" for method in methods]
        for method in others:
            mean, low, high = (100 * one for one in paired(found[samples, "colora"], found[samples, method]))
            entries.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {samples} | {' | '.join(entries)} |")
    return "\n".join(lines)


def digits_tuning_markdown() -> str:
    """The least test error of each method on the tuning seeds, and where."""
    lines = ["| method | best ridge | rank | test error on the tuning seeds, % |", "|---|---|---|---|"]
    best: dict[str, Row] = {}
    for row in rows(read("digits_tuning")):
        method = row.method.rsplit("-", 1)[0]
        if method not in best or row.mean < best[method].mean:
            best[method] = row
    for method, row in best.items():
        rank = "–" if method == "local" else row.values["rank"]
        lines.append(f"| {method} | {row.record.trial.settings.ridge:g} | {rank} | {100 * row.mean:.2f} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "exact": exact_markdown, "freedom": freedom_markdown, "convergence": convergence_markdown, "noise": noise_markdown,
    "similarity": similarity_markdown, "newcomer": newcomer_markdown, "digits-tuning": digits_tuning_markdown,
    "digits": digits_markdown, "many": many_markdown, "isometry": isometry_markdown,
}  # fmt: skip


def _grid(name: str, field: str, shown: Callable[[Row], str]) -> str:
    """A line for each problem, a column for each method."""
    found = rows(read(name))
    methods = list(dict.fromkeys(row.method for row in found))
    names = list(found[0].values)
    lines: dict[tuple[object, ...], dict[str, str]] = {}
    for row in found:
        lines.setdefault(tuple(row.values.values()), {})[row.method] = shown(row)
    head = " | ".join([*(one.replace("_", " ") for one in names), *methods])
    body = [
        "| " + " | ".join([*(f"{value:g}" for value in values), *(line[method] for method in methods)]) + " |"  # type: ignore[str-format]
        for values, line in lines.items()
    ]
    return "\n".join([f"| {head} |", "|---" * (len(names) + len(methods)) + "|", *body])


def _count(row: Row) -> str:
    return str(round(row.recovered * len(row.record.errors)))


def _ratio(row: Row) -> str:
    squares, bounds = np.square(row.record.errors), np.square(row.record.bounds)
    drawn = np.random.default_rng(0).integers(len(squares), size=(10_000, len(squares)))
    low, high = np.quantile(squares[drawn].sum(1) / bounds[drawn].sum(1), [0.025, 0.975])
    return f"{squares.sum() / bounds.sum():.3f} [{low:.3f}, {high:.3f}]"


def _angles() -> Sequence[float]:
    return sorted({row.values["angle"] for row in rows(read("similarity"))})


if __name__ == "__main__":
    main()
