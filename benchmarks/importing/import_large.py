"""What an import needs in memory: 32 LoRAs of rank 8 on layers of width 4096, as one bank.

    python -m benchmarks.importing.import_large [--output benchmarks/importing/records/import_large.json]

The base is a random model of that width with few layers; stock PEFT writes the LoRAs. Their factors are drawn so that
all tasks share a space of `--common` dimensions, with some of their own added (`--own`, relative in norm). Each import
runs in a process of its own, whose peak of private memory is measured above what it has once the base model is loaded;
with more layers it grows by what the bank grows, and not by what layers of all LoRAs take.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from colora.bank.importing import bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.common.threads import configure_threads

WEIGHTS = "adapter_model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--loras", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--common", type=int, default=16)
    parser.add_argument("--own", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/importing/records/import_large.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    configure_threads(args.threads)
    if args.measure is not None:
        print(json.dumps(measured(args.measure)))
        return
    rows = []
    for layers in args.layers:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), layers, args)
            command = [sys.executable, "-m", "benchmarks.importing.import_large", "--threads", str(args.threads)]
            done = subprocess.run([*command, "--measure", name], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            rows.append({"layers": layers} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    square = args.width**2 * 8
    write_json(
        args.output,
        {
            "setting": {
                "width": args.width, "loras": args.loras, "rank": args.rank, "common": args.common, "own": args.own,
                "modules": ["q_proj", "o_proj"], "threads": args.threads,
            },
            "dense_bytes_of_one_update": square,
            "dense_bytes_of_all_updates_of_one_layer": square * args.loras,
            "imports": rows,
            "environment": environment("cpu"),
        },
    )  # fmt: skip


def make(folder: Path, layers: int, args: argparse.Namespace) -> None:
    """A base model, and LoRAs of it whose factors share a space."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=args.width, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    lora = LoraConfig(r=args.rank, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    first = folder / "loras" / "task-0"
    get_peft_model(model, lora).save_pretrained(str(first), save_embedding_layers=False)
    shapes = {key: value.shape for key, value in load_file(first / WEIGHTS).items()}
    common = {key: torch.randn(args.width, args.common) for key in shapes}
    for number in range(args.loras):
        target = first if number == 0 else shutil.copytree(first, folder / "loras" / f"task-{number}")
        tensors = {}
        for key, shape in shapes.items():
            shared = common[key] @ torch.randn(args.common, args.rank) / math.sqrt(args.common)
            factor = (shared + args.own * torch.randn(args.width, args.rank)) / 100
            tensors[key] = (factor if "lora_B" in key else factor.T).contiguous()
            assert tensors[key].shape == shape
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="</s>")


def measured(folder: Path) -> dict[str, Any]:
    """Import, and tell how far private memory rose after the base model had been loaded."""
    logging.disable_progress_bar()
    watch = Watch()
    real = bank.load_base

    def load(*args: Any, **kwargs: Any) -> Any:
        loaded = real(*args, **kwargs)
        watch.start()
        return loaded

    bank.load_base = load
    start = time.perf_counter()
    report = bank.import_loras(sorted((folder / "loras").iterdir()), folder / "bank", base=str(folder / "base"))
    seconds, above = time.perf_counter() - start, watch.stop()
    errors = [task.error for task in report.tasks]
    return {
        "seconds": round(seconds, 1),
        "bytes_above_base": above,
        "bank_rank": report.rank,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "ratio": round(report.ratio, 2),
        "relative_error": {"mean": sum(errors) / len(errors), "max": max(errors)},
    }


class Watch:
    """The largest private memory of this process since `start`, above what it was then; looked at every 2 ms.

    Private: without pages of mapped files, such as the base model's, which the system drops when it needs the room.
    """

    def start(self) -> None:
        self.process = psutil.Process()
        self.first = self.most = self._private()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _private(self) -> int:
        now = self.process.memory_info()
        return int(now.rss - getattr(now, "shared", 0))

    def _look(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, self._private())

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.most - self.first


if __name__ == "__main__":
    main()
