"""Four Natural Instructions tasks from end to end, by the command line: train, kill -9, resume, measure, use, export.

    python -m benchmarks.training.natural_instructions [--data FOLDER] [--output runs/natural-instructions]

The task files are those of the Natural Instructions collection; they are not part of this project. `--data` names the
folder that holds them. The record goes to benchmarks/training/records/natural_instructions.json.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from colora.common.files import write_json
from colora.common.provenance import environment
from colora.evaluation.records import read_records

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "colora"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="Folder of the task files, if not where the YAML file says.")
    parser.add_argument("--output", type=Path, default=Path("runs/natural-instructions"))
    parser.add_argument("--record", type=Path, default=HERE / "records" / "natural_instructions.json")
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    run = [str(HERE / "natural_instructions.yaml"), f"output={args.output}"]
    if args.data is not None:
        run += [f"tasks.{number}.path={path.resolve()}" for number, path in enumerate(task_files(args.data))]

    print("colora check"), colora("check", *run)
    print("colora train, to be killed", flush=True)
    killed_at, first = train_and_kill(run, args.output)
    print(f"killed with SIGKILL after {killed_at}; colora train again", flush=True)
    start = time.perf_counter()
    colora("train", *run)
    second = time.perf_counter() - start
    state = json.loads((last_checkpoint(args.output) / "trainer_state.json").read_text(encoding="utf-8"))
    print("colora evaluate"), colora("evaluate", str(args.output), "--split", "val")
    answers = {
        task: colora("generate", str(args.output), "--task", task, "--instruction", instruction, prompt).strip()
        for task, instruction, prompt in (
            ("scan-command-to-action", "Write the actions for the command.", "jump left twice"),
            ("odd-man-out", "Which word does not belong to the others?", "apple, pear, hammer, plum"),
        )
    }
    print(answers)
    colora("export", str(args.output), str(args.output / "loras"))
    exported = {folder.name: size(folder) for folder in sorted((args.output / "loras").iterdir())}
    print(colora("tasks", str(args.output)))
    write_json(
        args.record,
        {
            "killed_after": killed_at,
            "seconds_until_killed": round(first, 1),
            "seconds_after_resuming": round(second, 1),
            "steps": state["global_step"],
            "validation_loss": [
                {"step": row["step"], "eval_loss": round(row["eval_loss"], 4)}
                for row in state["log_history"]
                if "eval_loss" in row
            ],
            "records": [vars(record) for record in read_records(args.output / "records.jsonl")],
            "generated": answers,
            "exported_bytes": exported,
            "environment": environment(),
        },
    )


def task_files(data: Path) -> list[Path]:
    return [next(data.glob(f"task{number}_*.json")) for number in (128, 129, 141, 142)]


def train_and_kill(run: list[str], output: Path) -> tuple[str, float]:
    """Start training and kill it, without a chance to clean up, soon after its third checkpoint."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, "train", *run])
    try:
        while not (output / "checkpoints" / "checkpoint-30").is_dir():
            if process.poll() is not None:
                raise SystemExit(f"training ended by itself with exit code {process.returncode}")
            time.sleep(0.2)
        time.sleep(3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return last_checkpoint(output).name, time.perf_counter() - start


def last_checkpoint(output: Path) -> Path:
    return max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def colora(*arguments: str) -> str:
    """Run a command, show what it prints, and return it; stop if it fails."""
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "COLUMNS": "160"}
    )
    if arguments[0] in ("check", "train", "evaluate"):
        print(done.stdout, flush=True)
    return done.stdout


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
