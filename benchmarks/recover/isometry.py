"""How far the designs are from the isometry that theorems ask for, at sample sizes where recovery is exact or is not.

    python -m benchmarks.recover.isometry

K = 20, d = 20, r = 2, dense Gaussian designs: the lower bound on δ_2r over the tangent spaces at the truth and at one
random point, and whether alternating minimisation recovered, seed by seed.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch

from colora.common.files import write_json
from colora.common.provenance import environment
from colora.theory.factors import relative_error
from colora.theory.isometry import isometry_bound
from colora.theory.problems import Problem
from colora.theory.recover import recover
from colora.theory.settings import SolverSettings

RECORD = Path(__file__).parent / "records" / "isometry.json"
EXACT = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 14, 18, 24, 48, 96, 192])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(samples, seed) for samples in args.samples for seed in range(args.seeds)]
    setting = {"users": 20, "d": 20, "rank": 2, "design": "dense", "points": 2, "iterations": 200}
    write_json(args.output, {"setting": setting, "rows": rows, "environment": environment("cpu")})
    print(table_markdown(args.output))


def measured(samples: int, seed: int) -> dict[str, Any]:
    problem = Problem(20, samples, seed=seed)
    truth, users = problem.truth(), problem.observed()
    bound = isometry_bound(users, 2, at=truth.shared, points=1, seed=seed)
    error = relative_error(recover(users, 2, SolverSettings(solver="alternating")).factors, truth)
    return {
        "samples": samples, "seed": seed, "delta": round(bound.delta, 4), "largest": round(bound.largest, 4),
        "smallest": round(bound.smallest, 4), "error": float(f"{error:.2g}"),
    }  # fmt: skip


def table_markdown(path: Path = RECORD) -> str:
    """A line for each number of samples: medians over seeds, and how many were recovered."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = ["| samples of each | δ_2r is at least | recovered |", "|---|---|---|"]
    for samples in sorted({row["samples"] for row in rows}):
        some = [row for row in rows if row["samples"] == samples]
        exact = sum(row["error"] < EXACT for row in some)
        lines.append(f"| {samples} | {median(row['delta'] for row in some):.2f} | {exact} of {len(some)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
