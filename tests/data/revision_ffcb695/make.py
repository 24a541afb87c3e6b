"""Write the files of this folder with the sources of revision ffcb695, on whose modules this script depends.

    PYTHONPATH=CHECKOUT/src:CHECKOUT:CHECKOUT/tests python make.py FOLDER

CHECKOUT is a checkout of that revision. Its imports are therefore left as they are when modules move.
"""

import json
import os
import random
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

import colora.simulate
from colora.bank import load_bank
from colora.base import configure_threads, load_base
from colora.baselines.bench import Bench
from colora.compare.experiment import load_experiment
from colora.compare.run import run_experiment
from colora.config import load_config, load_federation
from colora.corefiles import extract_core
from colora.export import export_lora
from colora.federated.privacy import PrivateMean
from colora.federated.server import serve
from colora.federated.storage import load_client, load_server
from colora.recovery.experiment import load_recovery
from colora.recovery.run import run_recovery
from colora.run import train
from colora.serving.store import CoreStore
from colora.simulate import simulate
from colora.specs import FederationSpec
from colora.training.checkpoint import load_random_state
from colora.training.trainer import CoLoRATrainer
from run_files import cli, save_base, write_task
from test_federated_server import LocalGrid
from tiny import tiny_llama

PLACE = "@DATA@"
PROMPT = [1, 80, 95, 100, 101, 110, 77]  # token ids that logits are kept for
KEPT = 40  # logits of the first so many tokens
NETWORK = (
    "federation.compression=int8", "federation.server=adam", "federation.server_lr=0.01",
    "federation.factor_moments=fresh",
)  # fmt: skip
CLIENTS = {10: "red", 11: "blue"}

STEPS, STOP = 30, 24  # of the finished run; of the one that ends half-way
TRAINING = {"rows": 4, "max_length": 96, "save_every": 2, "log_every": 2, "threads": 1, "lr": 0.02, "device": "cpu"}
ADAPTER = {"r": 2, "lora_alpha": 4}
SMALL = {"adapter": ADAPTER | {"target_modules": ["q_proj", "down_proj"]}}
COMMON: dict[str, Any] = {
    "adapter": ADAPTER,
    "training": TRAINING | {"steps": 2},
    "evaluation": {"metrics": ["rougeL", "exact_match", "nll"], "max_new_tokens": 4},
}
RUNS: dict[str, dict[str, Any]] = {
    "finished": {
        "tasks": ["red", "blue"], "training": TRAINING | {"steps": STEPS, "save_every": STOP, "log_every": 6},
    },
    "groups": SMALL | {
        "tasks": ["red", "blue", "rot"], "grouping": "auto", "training": TRAINING | {"steps": 2, "rows": 6},
    },
    "modules": {
        "tasks": ["red", "blue"], "training": TRAINING | {"steps": 2},
        "adapter": SMALL["adapter"] | {"modules_to_save": ["norm"]},
    },
    "simulated": SMALL | {
        "tasks": ["red", "blue"],
        "federation": {"rounds": 3, "rows": 2, "finish_steps": 1, "factor_moments": "kept", "server": "momentum",
                       "server_lr": 0.5},
    },
}  # fmt: skip
COMPARE = {
    "name": "compared", "base": "base", "groups": {"mine": ["date-es", "date-pt"]}, "examples": 4, "rank": 2,
    "methods": {"base": None, "colora": {"core_lr": 0.05}, "fedit": None}, "steps": 2, "local_steps": 1, "test": 2,
    "generate": 1, "max_length": 160, "max_new_tokens": 4, "lr": 0.01,
}  # fmt: skip
RECOVER = {
    "name": "recovered",
    "problem": {"users": 3, "samples": [9, 20], "d_out": 4, "d_in": 4, "rank": 1, "noise": 0.1},
    "methods": {
        "alternating": {"solver": "alternating", "max_iter": 3, "restarts": 0, "annealing": []},
        "local-least-squares": {"baseline": "local-least-squares"},
    },
    "seeds": 2,
    "history": True,
}


def main(target: Path) -> None:
    configure_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        os.chdir(work)  # the comparison names its base by a relative path
        write_inputs(work)
        expected: dict[str, Any] = {"prompt": PROMPT}
        make_runs(work)
        make_banks(work)
        make_unfinished(work)
        make_federations(work, expected)
        make_studies(work, expected)
        make_keys(work, expected)
        measure(work, expected)
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in expected.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (work / "expected" / "values.json").write_text(text, encoding="utf-8")
        tidy(work)
        for path in sorted(work.iterdir()):
            shutil.rmtree(target / path.name, ignore_errors=True)
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            else:
                shutil.copyfile(path, target / path.name)
        os.chdir(target)
    make_cores(target)


def write_inputs(work: Path) -> None:
    model = tiny_llama(hidden=16, layers=2, positions=256)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(5 if one.dim() == 2 else 1)  # so that an adapter of a few steps shows in the logits
    save_base(work / "base", model)
    (work / "tasks").mkdir()
    (work / "expected").mkdir()
    for task in ("red", "blue", "rot"):
        write_task(work / "tasks", task)
    for name, changes in RUNS.items():
        value = {"base": str(work / "base"), "output": str(work / name), **COMMON, **changes}
        value["tasks"] = [{"path": f"tasks/{task}.jsonl"} for task in value["tasks"]]
        (work / f"{name}.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    for study in (COMPARE, RECOVER):
        (work / f"{study['name']}.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def run(*arguments: object) -> str:
    done = cli(*arguments)
    if done.exit_code:
        raise SystemExit(f"{arguments}: {done.stderr or done.exception}")
    return done.stdout


def make_runs(work: Path) -> None:
    for name in ("finished", "groups", "modules"):
        run("train", work / f"{name}.yaml")


def make_banks(work: Path) -> None:
    """A bank with a newcomer, more rank and a mixture; a plain LoRA of one task."""
    options = ["--output", work / "extended", "--extend", 1, "--steps", 2]
    run("onboard", work / "finished", work / "tasks" / "rot.jsonl", *options)
    run("merge", work / "extended", "half", "red=0.75", "blue=0.5")
    export_lora(load_bank(work / "finished")[0], "blue", work / "lora")


class CrashError(Exception):
    """Ends a run half-way, as a power cut does."""


def make_unfinished(work: Path) -> None:
    real, calls = CoLoRATrainer.compute_loss, []

    def crashing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == STOP + 1:
            raise CrashError
        return real(self, *args, **kwargs)

    CoLoRATrainer.compute_loss = crashing
    try:
        train(load_config(work / "finished.yaml", [f"output={work / 'unfinished'}"]))
    except CrashError:
        pass
    finally:
        CoLoRATrainer.compute_loss = real


class CrashingGrid(LocalGrid):
    """Ends a federation once its clients have been asked `rounds` times."""

    rounds = 99

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        if self.rounds == 0:
            raise CrashError
        self.rounds -= 1
        return super().send_and_receive(messages, timeout=timeout)


def make_federations(work: Path, expected: dict[str, Any]) -> None:
    # In one process: whole, then one that ends after the second of three rounds.
    simulate(load_config(work / "simulated.yaml", [f"output={work / 'whole'}"]))
    shutil.copy(work / "whole" / "bank" / "adapter_model.safetensors", work / "expected" / "simulated.safetensors")
    expected["rounds"] = [json.loads(line) for line in (work / "whole" / "rounds.jsonl").read_text().splitlines()]
    shutil.rmtree(work / "whole")
    colora.simulate.SAVE_SECONDS, save = -1.0, colora.simulate._save

    def crashing(folder: Path, state: Any, clients: Any) -> None:
        save(folder, state, clients)
        if state.round == 2:
            raise CrashError

    colora.simulate._save = crashing
    try:
        simulate(load_config(work / "simulated.yaml"))
    except CrashError:
        pass
    finally:
        colora.simulate._save = save

    # With a server and clients that have a disk each.
    network = work / "network"
    network.mkdir()
    for name in CLIENTS.values():
        shutil.copy(work / "tasks" / f"{name}.jsonl", network)
    config = load_federation(work / "simulated.yaml", NETWORK)
    grid = CrashingGrid(config, network)
    grid.nodes, grid.rounds = CLIENTS, 2
    with suppress(CrashError):
        serve(grid, config, network / "server", print)
    state = load_server(network / "server")
    assert state is not None
    assert state.round == 2
    expected["network"] = {
        "federation": state.federation,
        "shared": norms(state.shared),
        "moments": norms(state.moments),
    }
    for name in CLIENTS.values():
        own = load_client(network / "state" / name / state.federation, 2)
        assert own is not None
        expected["network"][name] = {
            "round": own.round, "position": own.position, "steps": own.steps, "cores": norms(own.cores),
            "shared": norms(own.shared), "moments": norms(own.moments), "residual": norms(own.residual),
        }  # fmt: skip
    again = work / "again"
    shutil.copytree(network, again)
    grid = CrashingGrid(config, again)
    grid.nodes = CLIENTS
    serve(grid, config, again / "server", print)
    last = load_server(again / "server")
    assert last is not None
    save_file(last.shared, work / "expected" / "network_shared.safetensors")
    for name in CLIENTS.values():
        bank = again / "state" / name / state.federation / "bank" / "adapter_model.safetensors"
        cores = {key: value for key, value in load_file(bank).items() if "colora_core" in key}
        save_file(cores, work / "expected" / f"network_{name}.safetensors")
    shutil.rmtree(again)

    private = PrivateMean(FederationSpec(clip=1.0, weights="uniform"), work / "privacy.json")
    for _ in range(3):
        private([{"A/x": torch.ones(2, 2)}] * 2)
    expected["epsilon"] = private.epsilon


def norms(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(f"{float(one.double().norm()):.8g}") for name, one in sorted(tensors.items())}


def make_studies(work: Path, expected: dict[str, Any]) -> None:
    real = Bench.run

    def failing(self: Any, cell: Any, *args: Any) -> Any:
        if cell.method == "fedit":
            raise RuntimeError("out of memory")
        return real(self, cell, *args)

    Bench.run = failing
    run_experiment(load_experiment(work / "compared.yaml"), work / "compared")
    Bench.run = real
    summary = run_recovery(load_recovery(work / "recovered.yaml"), work / "recovered")
    expected["recovery"] = [record.cell.key for record in summary.records]


def make_keys(work: Path, expected: dict[str, Any]) -> None:
    keys = work / "keys.json"
    added = ("add", keys)
    expected["keys"] = {
        "acme": run("keys", *added, "acme", "--tasks", "red", "--tasks", "guest-*", "--rate", 600).strip(),
        "root": run("keys", *added, "root", "--tasks", "*", "--admin").strip(),
    }


def measure(work: Path, expected: dict[str, Any]) -> None:
    """What models compute: logits after the prompt, some text, and what generators draw next."""
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        base = load_base(str(work / "base"))[0](input_ids=ids).logits[0, -1]
        expected["logits"] = {"base": {"": rounded(base)}}
        groups = [f"groups/groups/{one.name}" for one in sorted((work / "groups" / "groups").iterdir())]
        for name in ("finished", "modules", "extended", *groups):
            model = load_bank(work / name)[0]
            found = {task: model(input_ids=ids, task_ids=[task]).logits[0, -1] for task in model.base_model.tasks}
            apart = [float((one - base).abs().max()) for one in found.values()]
            assert min(apart) > 0.01, (name, apart)
            expected["logits"][name] = {task: rounded(one) for task, one in found.items()}
    expected["text"] = {
        task: run("generate", work / "finished", "red 3", "--task", task, "--max-new-tokens", 6)
        for task in ("red", "blue")
    }
    load_random_state(work / "unfinished" / "checkpoints" / f"checkpoint-{STOP}", 0)
    expected["drawn"] = {"python": random.random(), "numpy": np.random.random(), "torch": float(torch.rand(()))}


def rounded(logits: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in logits[:KEPT].tolist()]


def tidy(work: Path) -> None:
    """Remove what is not read again, and put a placeholder where this machine's folder is named."""
    for folder in [path for path in work.rglob("checkpoints") if path.parent.name != "unfinished"]:
        shutil.rmtree(folder)
    for path in [*work.rglob("README.md"), *work.rglob("lock")]:
        path.unlink()
    for path in [one for one in work.rglob("*") if one.is_file()]:
        path.chmod(0o644)
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            assert str(work).encode() not in content, path
        else:
            path.write_bytes(content.replace(str(work).encode(), PLACE.encode()))


def make_cores(target: Path) -> None:
    """Core files name the base model, so they are made of a bank that names the placeholder."""
    for folder in ("cores", "serving"):
        shutil.rmtree(target / folder, ignore_errors=True)
    extract_core(target / "finished", "red", target / "cores" / "red.safetensors")
    store = CoreStore(target / "finished", target / "serving")
    store.put("guest-1", (target / "cores" / "red.safetensors").read_bytes())
    store.remove("blue")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
