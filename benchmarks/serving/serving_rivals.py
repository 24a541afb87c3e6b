"""The servers that `colora serve` is compared with; they have the same interface.

    python -m benchmarks.serving.serving_rivals merged BANK      # one task merged into the base, in the same batches
    python -m benchmarks.serving.serving_rivals mixed LORA...    # stock PEFT, adapter_names: all adapters in one batch
    python -m benchmarks.serving.serving_rivals switching LORA...    # stock PEFT, set_adapter: one adapter at a time

PEFT has no server, so it gets a simple one: the requests that wait when a batch ends are the next batch, up to sixteen.
Its weights have the same layout in memory, so that this makes no difference.
They print where they listen as `colora serve` does, and end with SIGTERM.
"""

import argparse
import signal
import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import PeftModel

from colora.common.device import training_device
from colora.common.threads import configure_threads
from colora.models.base import load_base
from colora.models.decoding.layout import lay_out_by_columns
from colora.serving.access import Access
from colora.serving.app import make_app
from colora.serving.service import Options, Service

ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kind", choices=["merged", "mixed", "switching"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--base", default="smollm2")
    args = parser.parse_args()
    app = merged(args.folders[0]) if args.kind == "merged" else peft(args.base, args.folders, args.kind == "mixed")
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    print(f"{len(args.folders)} tasks at http://127.0.0.1:{listening.getsockname()[1]}/v1", flush=True)
    server.run(sockets=[listening])


def merged(bank: Path) -> FastAPI:
    """The first task merged into the base's weights: against this the cost of adapters is measured."""
    service = Service(Options(bank, rows=ROWS, resident=ROWS))
    engine, store = service.scheduler.engine, service.store
    task = next(iter(store))
    slot = engine.resident.hold(task, 0, lambda: store.read(task)[1])
    tuner = engine.batch.peft_model.base_model
    tuner.set_task(tuner.tasks[slot])
    engine.batch.peft_model.merge_adapter()
    return make_app(service, Access())


class Waiting:
    """Requests for a thread that answers them in batches."""

    def __init__(self, base: str, folders: list[Path], mixed: bool) -> None:
        configure_threads()
        device = training_device("auto")
        model, self.tokenizer = load_base(base, torch.bfloat16 if device else torch.float32, device)
        lay_out_by_columns(model)
        self.tokenizer.padding_side = "left"
        self.model = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=folders[0].name)
        for folder in folders[1:]:
            self.model.load_adapter(str(folder), folder.name)
        self.model.eval()
        self.mixed = mixed
        self.queue: deque[tuple[dict[str, Any], Future[tuple[str, int]]]] = deque()
        self.change = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    def ask(self, body: dict[str, Any]) -> tuple[str, int]:
        """The output and its number of tokens."""
        future: Future[tuple[str, int]] = Future()
        with self.change:
            self.queue.append((body, future))
            self.change.notify()
        return future.result()

    def run(self) -> None:
        while True:
            with self.change:
                while not self.queue:
                    self.change.wait()
            time.sleep(0.005)  # so that requests of the same moment are in the same batch
            with self.change:
                wanted = None if self.mixed else self.queue[0][0]["model"]
                batch = [entry for entry in self.queue if wanted in (None, entry[0]["model"])][:ROWS]
                for entry in batch:
                    self.queue.remove(entry)
            for (_, future), result in zip(batch, self.answers([body for body, _ in batch]), strict=True):
                future.set_result(result)

    @torch.inference_mode()
    def answers(self, bodies: list[dict[str, Any]]) -> list[tuple[str, int]]:
        names = [body["model"] for body in bodies]
        prompts = [body["prompt"] for body in bodies]
        encoded = self.tokenizer(prompts, padding=True, return_tensors="pt").to(self.model.device)
        options: dict[str, Any] = {"adapter_names": names} if self.mixed else {}
        if not self.mixed:
            self.model.set_adapter(names[0])
        most = max(body["max_tokens"] for body in bodies)
        out = self.model.generate(
            **encoded,
            **options,
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            repetition_penalty=1.0,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
        )
        outputs = []
        for body, row in zip(bodies, out[:, encoded["input_ids"].shape[1] :].tolist(), strict=True):
            tokens = row[: body["max_tokens"]]
            end = next((n for n, token in enumerate(tokens, start=1) if token == self.tokenizer.eos_token_id), None)
            text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            outputs.append((text.strip(), len(tokens[:end])))
        return outputs


def peft(base: str, folders: list[Path], mixed: bool) -> FastAPI:
    """Stock PEFT behind the same interface."""
    waiting, app = Waiting(base, folders, mixed), FastAPI()

    @app.post("/v1/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        text, tokens = waiting.ask(body)
        return {"choices": [{"text": text}], "usage": {"completion_tokens": tokens}}

    return app


if __name__ == "__main__":
    main()
