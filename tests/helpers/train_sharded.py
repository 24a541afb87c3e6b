"""Small training runs on a base that two processes share: `torchrun -m tests.helpers.train_sharded FOLDER`.

FOLDER/base is the base. tests/training/test_sharded.py looks at what is left in FOLDER.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from colora.models.sharding import load_sharded, local_bytes
from colora.training.loop import sharded
from tests.helpers import train_tiny
from tests.helpers.train_tiny import DDP, bank_tensors, make_trainer, whole_bank

MANY = ("ab", "cde", "f", "gh", "i", "jkl", "m")
EVAL = {"eval_steps": 3}
HARD = {"accumulate": 2, "schedule": "alternating", "turn": 2, "max_grad_norm": 0.0}


def _main(folder: Path) -> None:
    train_tiny.CoLoRATrainer = sharded.ShardedTrainer

    def run(name, resume=None, **settings):
        held = []

        def base():
            model, _ = load_sharded(str(folder / "base"))
            held.extend([local_bytes(model), sum(one.nbytes for one in model.parameters())])
            return model

        trainer = make_trainer(folder / name, **DDP, base=base, **settings)
        if settings.get("accumulate"):
            trainer.args.gradient_checkpointing = True
        norms = []
        clip = trainer._clip_grad_norm
        trainer._clip_grad_norm = lambda model: norms.append(float(clip(model))) or torch.tensor(norms[-1])
        trainer.train(resume_from_checkpoint=resume)
        rank = trainer.args.process_index
        save_file(bank_tensors(trainer) if trainer.stored is None else whole_bank(trainer), folder / f"{name}-{rank}")
        record = {"log": trainer.state.log_history, "held": held, "norms": norms, "world": trainer.args.world_size}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record))
        dist.barrier()

    run("whole", **EVAL)
    run("resumed", resume=str(folder / "whole" / "checkpoint-3"), **EVAL)
    run("stored", room=4, names=MANY)
    run("hard", **HARD)
    _lonely_gradients(folder)
    dist.destroy_process_group()


def _lonely_gradients(folder: Path) -> None:
    """Gradients that one process has alone, as those of an expert that only its rows went to, or that none has."""
    rank = dist.get_rank()
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.full((2,), 8.0)
    sharded.average_gradients(parameters)
    found = [None if one.grad is None else one.grad.tolist() for one in parameters]
    (folder / f"lonely-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
