"""Small training runs on the tiny models: imported by the tests, or a process of its own that can be killed.

`python -m tests.helpers.train_tiny serve` runs one job per line of JSON on standard input, each in a fork (`Server`);
`torchrun -m tests.helpers.train_tiny ddp FOLDER` makes the data-parallel runs that tests/training/test_ddp.py looks at.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors.torch import save, save_file
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from colora import CoLoRAConfig
from colora.adapter.core_size import resized_core
from colora.adapter.stored.access import store_cores
from colora.tasks.encode import encode_tasks
from colora.tasks.mixing import TaskMixture
from colora.tasks.schema import Example, Task
from colora.training.config import RunConfig, TaskSpec, TrainingSpec
from colora.training.encode import EncodedRun
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.resolve import ResolvedRun
from colora.training.run_folder import task_manifest
from tests.helpers.import_graph import ROOT
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)  # sums in one order; and for models this small more threads only cost time

TOKENIZER = tiny_tokenizer()
NAMES = ("ab", "cde", "f")


def tiny_tasks(names=NAMES, train=6, val=3, unlike=()):
    """Tasks with outputs of different lengths, and validation rows that are training rows; those of the tasks in
    `unlike` are of other bytes."""
    tasks = []
    for name in names:
        rows = [Example(str(i), (name * (1 + i % 3) + str(i),)) for i in range(train)]
        held_out = [Example(str(i), ("\x01\x02\x03",)) for i in range(val)] if name in unlike else rows[:val]
        tasks.append(Task(name, {"train": tuple(rows), "val": tuple(held_out), "test": ()}, "", None))
    return tasks


def make_trainer(
    folder, *, steps=12, rows=6, accumulate=1, names=NAMES, unlike=(), val=3, dropout=0.1, init_weights=True,
    base=tiny_llama, lora=False, seed=3, policy="uniform", lr=1e-2, save_steps=4, log_steps=4, eval_steps=None,
    bf16=False, max_grad_norm=1.0, report_to=(), save_total_limit=None, mixture_steps=None, callbacks=(), room=None,
    cores_folder=None, ranks=None, model=None, rank=4, **training,
):  # fmt: skip
    """A trainer of `rows` rows a step, over all devices and accumulation, as small as can be.

    `room` keeps the cores in a store, of these `ranks` by task; `model` is one that another trainer has. `training` has
    further fields of a run file's section of that name: core_lr, schedule, patience, ...
    """
    tasks = tiny_tasks(names, val=val, unlike=unlike)
    given, model = model, base()
    train, held_out = (encode_tasks(tasks, TOKENIZER, s, 64, model.config.is_encoder_decoder) for s in ("train", "val"))
    torch.manual_seed(0)
    common = {"r": rank, "lora_dropout": dropout, "target_modules": "all-linear"}
    bank = CoLoRAConfig(**common, tasks=list(names), init_weights=init_weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        model = get_peft_model(model, LoraConfig(**common) if lora else bank)
    if given is not None:
        model = given
    elif room is not None:
        for name, own in (ranks or {}).items():
            corner = {key: resized_core(one[:own, :own], rank) for key, one in model.core(name).items()}
            model.set_core(name, corner)
        store_cores(model, room, cores_folder, ranks)
    devices = int(os.environ.get("WORLD_SIZE", 1))
    args = TrainingArguments(
        str(folder), max_steps=steps, gradient_accumulation_steps=accumulate, learning_rate=lr, save_steps=save_steps,
        per_device_train_batch_size=rows // accumulate // devices, logging_steps=log_steps,
        eval_strategy="steps" if eval_steps else "no", eval_steps=eval_steps, report_to=list(report_to), seed=1,
        save_total_limit=save_total_limit, use_cpu=True, lr_scheduler_type="cosine", bf16=bf16, weight_decay=0.01,
        ddp_backend="gloo" if devices > 1 else None, max_grad_norm=max_grad_norm, disable_tqdm=True,
    )  # fmt: skip
    mixture = TaskMixture(train.sizes, batch_size=rows, steps=mixture_steps or steps, seed=seed, policy=policy)
    spec = TrainingSpec(**{"core_lr": 2e-2, "eval_every": eval_steps or 1} | training)
    config = RunConfig(output=str(folder), tasks=[TaskSpec(name=name, path=name) for name in names], training=spec)
    run = ResolvedRun(config, tuple(tasks), task_manifest(tasks), bank, None)
    data = EncodedRun(train, held_out, None, mixture, TOKENIZER.pad_token_id)
    return CoLoRATrainer(model, args, run, data, routed=not lora, callbacks=list(callbacks))


def bank_tensors(trainer):
    """Copies of all trained tensors, by name."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def whole_bank(trainer):
    """The same, with the cores of all tasks one by one, also of a bank that has most of them in a store."""
    cores = {f"{task} {key}": one for task in trainer.task_names for key, one in trainer.model.core(task).items()}
    return roles(bank_tensors(trainer))[0] | cores


def roles(tensors):
    """The same tensors in two dicts: the shared factors, the cores."""
    cores = {name: value for name, value in tensors.items() if "colora_core" in name}
    return {name: value for name, value in tensors.items() if name not in cores}, cores


def equal(one, other):
    """Whether two dicts of tensors agree bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class EachStep(TrainerCallback):
    """Calls `before(step)` before and `after(step)` after every optimiser step, counted from 1."""

    def __init__(self, before=lambda step: None, after=lambda step: None):
        self.before, self.after = before, after

    def on_step_begin(self, args, state, control, **kwargs):
        self.before(state.global_step + 1)

    def on_step_end(self, args, state, control, **kwargs):
        self.after(state.global_step)


# ---- processes that are killed ----------------------------------------------------------------------------------


class Server:
    """A process that has imported everything and forks itself for every job, so that a job starts in no time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, folder, **job):
        """See `_job`. Returns its dict, with "exit": the exit code, or minus the number of the signal it died of."""
        self.process.stdin.write(json.dumps({"folder": str(folder), **job}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _serve():
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(folder)  # what is imported and built late is then there in every fork
    for line in sys.stdin:
        job = json.loads(line)
        folder, signals = Path(job["folder"]), job.pop("signals", [])
        folder.mkdir(exist_ok=True)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            code = 1
            try:
                os.write(write, json.dumps(_job(**job, report=write)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        answer = _watch(child, read, signals)
        _, status = os.waitpid(child, 0)
        os.close(read)
        answer["exit"] = os.waitstatus_to_exitcode(status)
        answer["stderr"] = (folder / "stderr.txt").read_text(errors="replace")
        print(json.dumps(answer), flush=True)


def _watch(child, read, signals):
    """Sends signals in order: each is [name, when], `when` being "step N", or a number of seconds from the start
    or the signal before."""
    signals, start, text = list(signals), time.monotonic(), b""
    os.set_blocking(read, False)
    while True:
        try:
            chunk = os.read(read, 65536)
            text += chunk
            if not chunk:
                break
        except BlockingIOError:
            time.sleep(0.001)
        while signals:
            name, when = signals[0]
            due = text.count(b".") >= int(when[5:]) if isinstance(when, str) else time.monotonic() - start >= when
            if not due:
                break
            os.kill(child, getattr(signal, name))
            start = time.monotonic()
            signals.pop(0)
    body = text[text.find(b"{") :] if b"{" in text else b"{}"
    return json.loads(body)


def _job(folder, report, pause=0.0, die_at_write=None, file_limit=None, count_writes=False, **settings):
    """Goes on from the last checkpoint in `folder`, or starts, and trains to the end.

    Args:
        report: a file descriptor that gets a "." when an optimiser step begins.
        pause: seconds to wait in each step.
        die_at_write: die by SIGKILL just before the n-th change to a file in `folder`.
        file_limit: no file of this process may be longer than this many bytes, from step 5 on.
    """
    writes = 0

    def count(event, args):
        nonlocal writes
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open")
        if changes and isinstance(args[0], str | os.PathLike) and str(folder) in str(args[0]):
            writes += 1
            if writes == die_at_write:
                os.kill(os.getpid(), signal.SIGKILL)

    if count_writes or die_at_write is not None:
        sys.addaudithook(count)

    def begin(step):
        os.write(report, b".")
        time.sleep(pause)
        if file_limit is not None and step == 5:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    resumed = get_last_checkpoint(folder)
    trainer = make_trainer(folder, callbacks=[EachStep(before=begin)], **settings)
    try:
        trainer.train(resume_from_checkpoint=resumed)
    except BaseException as error:
        return {"error": type(error).__name__, "message": str(error), "step": trainer.state.global_step}
    done = writes  # not those of what follows
    if trainer.stored is not None:
        (Path(folder) / "whole.safetensors").write_bytes(save(whole_bank(trainer)))
    return {"interrupted": trainer.interrupt.interrupted, "step": trainer.state.global_step, "writes": done}


# ---- two processes, one model -----------------------------------------------------------------------------------

DDP = {"steps": 6, "rows": 4, "dropout": 0.0, "save_steps": 3}


def _ddp(folder):
    def run(name, resume=None, whole=False, **settings):
        trainer = make_trainer(folder / name, **DDP, **settings)
        trainer.train(resume_from_checkpoint=resume)
        rank = trainer.args.process_index
        tensors = bank_tensors(trainer) if trainer.stored is None and not whole else whole_bank(trainer)
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
        record = {
            "step": trainer.state.global_step, "interrupted": trainer.interrupt.interrupted,
            "log": trainer.state.log_history, "world": trainer.args.world_size,
        }  # fmt: skip
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record))
        dist.barrier()

    def interrupt(step):
        if step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    run("whole", eval_steps=3)
    run("resumed", resume=str(folder / "whole" / "checkpoint-3"), eval_steps=3)
    run("stored", room=4, names=("ab", "cde", "f", "gh", "i", "jkl", "m"))
    run("on the device", names=("ab", "cde", "f", "gh", "i", "jkl", "m"), whole=True)
    run("interrupted", callbacks=[EachStep(before=interrupt)])
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve()
    else:
        _ddp(Path(sys.argv[2]))
