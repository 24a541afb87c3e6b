"""Whether a bank inside vLLM answers as `colora generate` does: in mixed batches, after changes, and under load.

    .venv-vllm/bin/python -m benchmarks.serving.same_answers [--minutes 10] [--output runs/same_answers]
    python -m benchmarks.serving.same_answers --table            # the table of the record, and nothing is run

A bank of 60 tasks with random factors and cores on SmolLM2 (rank 8, all linear layers), served by `colora serve
--engine vllm --resident 6`: ten times as many tasks as slots. Greedy answers of 24 tokens.

batch      64 requests at once, for six tasks and for the base
load       minutes of sixteen clients that ask for all tasks alike, so that nearly every request evicts a core
upload     the cores of some tasks replaced by those of others, and a new task; the 64 requests again
reload     a newer bank, with other factors and cores, in the place of this one; the 64 requests again

In float32 each answer has to be that of `colora generate` (of transformers' `generate` for the base), letter by
letter. In bfloat16, where the first of these is done, an answer may differ where two tokens are level but for rounding:
each token of such an answer is compared with what the float32 model finds likeliest there, and so are the answers that
transformers gives in bfloat16, as a measure of what rounding alone does. The record goes to
benchmarks/serving/records/same_answers.json. It measures no speed, and may run beside other work.
"""

import argparse
import json
import random
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.serving.engines import Contestant, started
from benchmarks.serving.serving import RECORDS
from colora.adapter.config import CoLoRAConfig
from colora.bank.core_file import extract_core
from colora.bank.generate import Request, generate_texts
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank, save_bank
from colora.common.files import write_json
from colora.common.provenance import environment
from colora.models.base import DEFAULT_BASE, base_location, load_base

RECORD = RECORDS / "same_answers.json"
TASKS, SLOTS, RANK, TOKENS, CLIENTS = 60, 6, 8, 24, 16
SIX = tuple(f"user-{number}" for number in range(6))
BASE = "the base"
SUBJECTS = ("parcel", "invoice", "refund", "password", "subscription", "warranty", "delivery", "contract")
OPENINGS = ("The {} came late because", "Tell me about the {}.", "Our policy on the {} says that", "{}: what is next?")
Asked = tuple[str, str]  # a task's name, or `BASE`, and a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10, help="of load")
    parser.add_argument("--output", type=Path, default=Path("runs/same_answers"))
    parser.add_argument("--table", action="store_true", help="print the table of the record, and run nothing")
    args = parser.parse_args()
    if args.table:
        print(table())
        return
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    made = [random_bank(args.output / f"made-{seed}", seed) for seed in (1, 2)]
    record = {"float32": exact(args.output, made, 60 * args.minutes), "bfloat16": rounded(args.output, made[0])}
    setting = {"base": DEFAULT_BASE, "rank": RANK, "tasks": TASKS, "slots": SLOTS, "tokens": TOKENS}
    write_json(RECORD, {"setting": setting} | record | {"environment": environment()})
    print(table())
    if any(part.get("wrong") for part in (*record["float32"].values(), record["bfloat16"])):
        raise SystemExit("some answers were wrong")


# ---- what is asked, and what is expected -----------------------------------------------------------------------------


def random_bank(folder: Path, seed: int) -> Path:
    """A bank whose tasks answer differently, and not too far from text."""
    model, _ = load_base(DEFAULT_BASE)
    torch.manual_seed(seed)
    tasks = [f"user-{number}" for number in range(TASKS)]
    config = CoLoRAConfig(r=RANK, lora_alpha=RANK / 4, target_modules="all-linear", tasks=tasks, init_weights=False)
    save_bank(get_peft_model(model, config), folder, BankInfo(DEFAULT_BASE, chat_template=False))
    return folder


def texts(number: int, seed: int) -> list[str]:
    """Short prompts."""
    draw = random.Random(seed)
    return [draw.choice(OPENINGS).format(draw.choice(SUBJECTS)) for _ in range(number)]


def mixed(number: int = 64) -> list[Asked]:
    """Requests for six tasks and the base."""
    tasks = (*SIX, BASE)
    some = [opening.format(subject) for opening in OPENINGS for subject in SUBJECTS]
    return [(tasks[index % len(tasks)], some[index % len(some)]) for index in range(number)]


def expected(bank: Path, asked: Sequence[Asked]) -> list[str]:
    """What `colora generate` gives, and `generate` of transformers for the base."""
    own = [one for one in asked if one[0] != BASE]
    found = dict(zip(own, generate_texts(bank, [Request(*one) for one in own], TOKENS), strict=True))
    model, tokenizer = load_base(DEFAULT_BASE)
    for one in set(asked) - found.keys():
        ids = tokenizer(one[1], return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        found[one] = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return [found[one] for one in asked]


def answer(client: httpx.Client, one: Asked, **fields: Any) -> dict[str, Any]:
    """The choice that the server gives: in a chat for a task; the base has no prompt of training."""
    task, text = one
    body: dict[str, Any] = {"model": task, "max_tokens": TOKENS, "temperature": 0} | fields
    if task == BASE:
        response = client.post("/completions", json=body | {"model": DEFAULT_BASE, "prompt": text})
    else:
        response = client.post("/chat/completions", json=body | {"messages": [{"role": "user", "content": text}]})
    whole = response.raise_for_status().json()
    choice: dict[str, Any] = {"prompt_token_ids": whole.get("prompt_token_ids")} | whole["choices"][0]
    choice["text"] = (choice["text"] if task == BASE else choice["message"]["content"]).strip()
    return choice


def at_once(client: httpx.Client, asked: Sequence[Asked], **fields: Any) -> list[dict[str, Any]]:
    """All of them, together."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda one: answer(client, one, **fields), asked))


def compared(asked: Sequence[Asked], found: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """How many are asked, how many of their answers tell a task from others, and those that are wrong."""
    wrong = [(*one, got, want) for one, got, want in zip(asked, found, wanted, strict=True) if got != want]
    return {"asked": len(asked), "different_answers": len(set(wanted)), "wrong": wrong}


# ---- float32 ---------------------------------------------------------------------------------------------------------


def server(bank: Path, state: Path, dtype: str) -> Contestant:
    """The server that is tested."""
    own = ("--state", str(state), "--resident", str(SLOTS), "--dtype", dtype, "--max-length", "512", "--rows", "64")
    command = ("colora", "serve", str(bank), "--engine", "vllm", "--port", "PORT", *own)
    return Contestant(f"same answers, {dtype}", command, ())


def exact(folder: Path, made: Sequence[Path], seconds: float) -> dict[str, dict[str, Any]]:
    """All of it, letter by letter."""
    bank = folder / "bank"
    shutil.copytree(made[0], bank)
    asked = mixed()
    wanted, newer = (dict(zip(asked, expected(one, asked), strict=True)) for one in made)
    known = {f"user-{number}": set(texts(3, seed=number)) for number in range(TASKS)}
    loads = [(task, text) for task, some in known.items() for text in sorted(some)]
    load_wanted = dict(zip(loads, expected(bank, loads), strict=True))
    found: dict[str, dict[str, Any]] = {}
    with (
        started(folder, server(bank, folder / "state", "float32")) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):

        def check(name: str, wanted: dict[Asked, str]) -> None:
            got = [one["text"] for one in at_once(client, list(wanted))]
            found[name] = compared(list(wanted), got, list(wanted.values()))
            print(name, found[name]["asked"], "asked,", len(found[name]["wrong"]), "wrong", flush=True)

        check("batch", wanted)
        found["load"] = load(client, load_wanted, seconds)
        check("after the load", wanted)
        moved = upload(client, bank, folder)
        check("upload", changed(moved, asked, bank))
        bank.rename(folder / "old")
        shutil.copytree(made[1], bank)
        client.post("/reload").raise_for_status()
        check("reload", newer)
    return found


def upload(client: httpx.Client, bank: Path, folder: Path) -> dict[str, str]:
    """Replace the cores of some tasks and add one; whose core each name has now."""
    moved = {"user-0": "user-41", "user-3": "user-42", "user-5": "user-0", "newcomer": "user-43"}
    for name, whose in moved.items():
        extract_core(bank, whose, folder / "core.safetensors")
        content = (folder / "core.safetensors").read_bytes()
        client.put(f"/tasks/{name}/core", content=content).raise_for_status()
    return moved


def changed(moved: dict[str, str], asked: Sequence[Asked], bank: Path) -> dict[Asked, str]:
    """What is expected after that."""
    again = [*asked, *(("newcomer", text) for text in texts(4, seed=9))]
    wanted = expected(bank, [(moved.get(task, task), text) for task, text in again])
    return dict(zip(again, wanted, strict=True))


def load(client: httpx.Client, wanted: dict[Asked, str], seconds: float) -> dict[str, Any]:
    """Clients that ask for all tasks alike, until the time is up."""
    end, lock, asked, wrong = time.monotonic() + seconds, threading.Lock(), list(wanted), []
    count = 0

    def ask_on(seed: int) -> None:
        nonlocal count
        draw = random.Random(seed)
        while time.monotonic() < end:
            one = draw.choice(asked)
            got = answer(client, one)["text"]
            with lock:
                count += 1
                if got != wanted[one]:
                    wrong.append((*one, got, wanted[one]))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask_on, range(CLIENTS)))
    print("load", count, "asked,", len(wrong), "wrong", flush=True)
    return {
        "asked": count,
        "tasks": TASKS,
        "different_answers": len(set(wanted.values())),
        "minutes": round(seconds / 60, 1),
        "wrong": wrong,
    }


# ---- bfloat16 --------------------------------------------------------------------------------------------------------


def rounded(folder: Path, bank: Path) -> dict[str, Any]:
    """The batch in bfloat16; of answers that differ, how far the tokens that were chosen are from the likeliest."""
    asked = mixed()
    wanted = expected(bank, asked)
    with (
        started(folder, server(bank, folder / "state-16", "bfloat16")) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        found = at_once(client, asked, return_token_ids=True)
    model, _, _ = load_bank(bank)

    def told(choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        differing = [index for index, one in enumerate(choices) if one["text"] != wanted[index]]
        lost = sorted(most_lost(model, asked[index], choices[index]) for index in differing)
        return {"asked": len(asked), "different": len(differing), "lost_nats": lost}

    return told(found) | {"transformers": told(control(bank, asked, found))}


@torch.inference_mode()
def control(bank: Path, asked: Sequence[Asked], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What transformers gives in bfloat16 for the same prompts, one by one: how much its own rounding changes."""
    model, tokenizer, _ = load_bank(bank, dtype=torch.bfloat16)
    answers = []
    for (task, _), choice in zip(asked, found, strict=True):
        prompt = torch.tensor([choice["prompt_token_ids"]])
        greedy: dict[str, Any] = {"input_ids": prompt, "max_new_tokens": TOKENS, "do_sample": False}
        with model.disable_adapter() if task == BASE else nullcontext():
            output = model.generate(**greedy, **({} if task == BASE else {"task_ids": [task]}))
        tokens = output[0, prompt.shape[1] :].tolist()
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        answers.append(choice | {"token_ids": tokens, "text": text})
    return answers


@torch.inference_mode()
def most_lost(model: Any, one: Asked, choice: dict[str, Any]) -> float:
    """The most by which a token of an answer is less likely than the likeliest one, in float32."""
    prompt = choice["prompt_token_ids"]
    ids = torch.tensor([[*prompt, *choice["token_ids"]]])
    if one[0] == BASE:
        logits = AutoModelForCausalLM.from_pretrained(base_location(DEFAULT_BASE))(input_ids=ids).logits
    else:
        logits = model(input_ids=ids, task_ids=[one[0]]).logits
    likely = logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return round(float((likely.max(-1).values - likely.gather(-1, ids[0, len(prompt) :, None])[:, 0]).max()), 4)


# ---- table -----------------------------------------------------------------------------------------------------------


def table() -> str:
    """Markdown of what has been recorded."""
    record = json.loads(RECORD.read_text("utf-8"))
    lines = ["| asked | precision | answers | as they should be |", "|---|---|---:|---|"]
    for name, part in record["float32"].items():
        minutes = f", {part['minutes']:.0f} minutes for {part['tasks']} tasks" if "minutes" in part else ""
        right = part["asked"] - len(part["wrong"])
        lines.append(f"| {name}{minutes} | float32 | {part['asked']} | {right} |")
    part = record["bfloat16"]
    for name, one in (("batch", part), ("batch, by transformers, one by one", part["transformers"])):
        right, lost = one["asked"] - one["different"], max(one["lost_nats"], default=0.0)
        told = f"{right}; tokens of the others at most {lost:.2f} nats less likely than the likeliest"
        lines.append(f"| {name} | bfloat16 | {one['asked']} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
