"""How soon the command line answers, against the time that typer and rich themselves take to be imported.

    python -m benchmarks.cli.startup [--rounds 21] [--table]

Each round starts every command once, as a process of its own, in an order that changes; the ratios are within rounds.
To be run on a machine that is otherwise idle. The record goes to benchmarks/cli/records/startup.json.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from colora.common.files import write_json
from colora.common.provenance import environment

RECORD = Path(__file__).parent / "records" / "startup.json"
COLORA = str(Path(sys.executable).with_name("colora"))
REFERENCE = 'python -c "import typer, rich"'
COMMANDS: dict[str, list[str]] = {
    REFERENCE: [sys.executable, "-c", "import typer, rich"],
    'python -c "import colora"': [sys.executable, "-c", "import colora"],
    "colora --help": [COLORA, "--help"],
    "colora train --nope": [COLORA, "train", "--nope"],
    "colora train --help": [COLORA, "train", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    if not args.table:
        write_json(args.record, {"seconds": measure(args.rounds), "environment": environment("cpu")})
    print(table(json.loads(args.record.read_text(encoding="utf-8"))))


def measure(rounds: int) -> dict[str, list[float]]:
    """Wall time of each command in each round, in seconds; a first round that fills the caches is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    order = list(COMMANDS)
    for number in range(rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            began = time.perf_counter()
            subprocess.run(COMMANDS[name], capture_output=True, check=False)
            if number:
                seconds[name].append(round(time.perf_counter() - began, 4))
    return seconds


def table(record: dict[str, Any] | None = None) -> str:
    """Markdown: median seconds, and the median, least and greatest ratio to the reference; by default of the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if record is None else record
    lines = ["| command | seconds | times `import typer, rich` |", "| --- | --- | --- |"]
    for name, seconds in record["seconds"].items():
        ratios = [one / other for one, other in zip(seconds, record["seconds"][REFERENCE], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| `{name}` | {median(seconds):.3f} | {spread} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
