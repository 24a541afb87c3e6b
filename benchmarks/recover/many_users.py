"""What many users cost: time and memory of a fit over K, up to 100 000 users whose samples never are in memory
together.

    python -m benchmarks.recover.many_users [--users 100 1000 10000 100000]

d = 64, r = 4, 48 rank-one samples of each user and no noise, solved by the second-order solver from the spectral
start. The samples are drawn anew at every pass, in blocks of 256 users. Each K runs in a process of its own, whose
greatest resident memory the system tells, what Python and torch take before anything begins included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from colora.common.files import write_json
from colora.common.provenance import environment

RECORD = Path(__file__).parent / "records" / "many_users.json"
SAMPLES, SIDE, RANK = 48, 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--solver", default="second-order")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(fit(args.one, args.solver, args.threads)))
        return
    rows = []
    for users in args.users:
        command = [sys.executable, "-m", "benchmarks.recover.many_users", "--one", str(users), "--solver", args.solver]
        printed = subprocess.run([*command, "--threads", str(args.threads)], check=True, capture_output=True, text=True)
        rows.append(json.loads(printed.stdout))
        print(rows[-1], flush=True)
    setting = {"d": SIDE, "rank": RANK, "samples": SAMPLES, "design": "rank-one", "solver": args.solver, "seed": 0}
    made = environment("cpu") | {"threads": args.threads}
    write_json(args.output, {"setting": setting, "rows": rows, "environment": made})
    print(table_markdown(args.output))


def fit(users: int, solver: str, threads: int) -> dict[str, Any]:
    """One K, in this process."""
    import torch

    from colora.theory.factors import relative_error
    from colora.theory.problems import Problem
    from colora.theory.recover import recover
    from colora.theory.settings import SolverSettings

    torch.set_num_threads(threads)
    before = peak()
    problem = Problem(users, SAMPLES, d_out=SIDE, d_in=SIDE, rank=RANK, design="rank-one")
    observed = problem.observed(stream=True)
    began = time.perf_counter()
    for _ in observed:
        pass
    drawing = time.perf_counter() - began
    began = time.perf_counter()
    found = recover(observed, RANK, SolverSettings(solver=solver, annealing=(), restarts=0))
    seconds = time.perf_counter() - began
    return {
        "users": users,
        "seconds": round(seconds, 2),
        "iterations": found.iterations,
        "seconds_to_draw": round(drawing, 2),
        "error": float(f"{relative_error(found.factors, problem.truth(), observed):.2g}"),
        "megabytes": round(peak() / 1e6),
        "megabytes_before": round(before / 1e6),
    }


def peak() -> int:
    """Greatest resident memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def table_markdown(path: Path = RECORD) -> str:
    """A line for each K, and the exponent of time in K."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    heads = ("users K", "seconds", "iterations", "seconds an iteration", "relative error", "MB")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {row['users']} | {row['seconds']:.1f} | {row['iterations']} | {row['seconds'] / row['iterations']:.2f} | "
        f"{row['error']:.1g} | {row['megabytes']} |"
        for row in rows
    ]
    return "\n".join([*lines, "", f"Seconds an iteration grow as K to the power of {exponent(path):.2f}."])


def exponent(path: Path = RECORD) -> float:
    """Of the seconds an iteration as a power of K, by least squares on logarithms; 1 is linear growth."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    logs = np.log([(row["users"], row["seconds"] / row["iterations"]) for row in rows])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


if __name__ == "__main__":
    main()
