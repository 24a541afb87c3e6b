"""Whole small runs on disk: a tiny base model, task files and a run file; and the command line inside this process."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from colora.cli.main import app
from colora.training.config import RunConfig
from colora.training.config_file import load_config
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

__all__ = ["bank_tensors", "cli", "config_of", "content", "refusal", "run_file", "save_base", "write_task"]

WORDS = {"red": "rot", "blue": "blau", "green": "grün"}
EXACT = {"precision": "fp32", "base_dtype": "fp32"}  # also where there is an accelerator, whose default is bf16
COMMON: dict[str, Any] = {
    "adapter": {"r": 4, "lora_alpha": 4},
    "training": EXACT | {"steps": 4, "rows": 4, "max_length": 96, "save_every": 2, "log_every": 2, "threads": 1},
    "evaluation": {"metrics": ["nll"], "max_new_tokens": 4},
}


def save_base(folder: Path, model: Any = None, chat: bool = True) -> str:
    """Write a tiny model with its tokenizer, and return the folder's name."""
    (tiny_llama() if model is None else model).save_pretrained(folder)
    tiny_tokenizer(chat).save_pretrained(folder)
    return str(folder)


def write_task(folder: Path, name: str, count: int = 10, **extra: Any) -> str:
    """Write `name`.jsonl with `count` examples, and return the file's name."""
    rows = [
        {"input": f"{name} {number}", "output": WORDS.get(name, name) * (1 + number % 3)} for number in range(count)
    ]
    text = "".join(json.dumps(row | extra, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return f"{name}.jsonl"


def run_file(folder: Path, base: str, tasks: Any = ("red", "blue"), **changes: Any) -> Path:
    """Write a run file, and the files of those tasks that are given by name; `changes` go into its sections."""
    value: dict[str, Any] = {"base": base, "output": str(folder / "out")}
    value["tasks"] = [{"path": write_task(folder, task)} if isinstance(task, str) else task for task in tasks]
    value |= {name: dict(section) for name, section in COMMON.items()}
    for name, change in changes.items():
        value[name] = value.get(name, {}) | change if isinstance(change, dict) else change
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def config_of(folder: Path, base: str, *args: Any, **changes: Any) -> RunConfig:
    """The config of such a run file."""
    return load_config(run_file(folder, base, *args, **changes))


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def bank_tensors(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's bank."""
    return load_file(run / "bank" / "adapter_model.safetensors")


def cli(*arguments: object) -> Result:
    """What `colora ARGUMENTS` did, with what it wrote to stdout and stderr apart."""
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"OMP_NUM_THREADS": "1"})


def refusal(*arguments: object) -> str:
    """What `colora ARGUMENTS` said on refusing: on stderr alone, with exit code 2 and without a traceback."""
    result = cli(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    return result.stderr
