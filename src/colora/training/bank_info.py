"""What is written down beside a run's bank: how it came to be."""

from itertools import islice

import numpy as np

from colora.bank.layout import BankInfo
from colora.tasks.schema import task_template
from colora.training.encode import EncodedRun
from colora.training.prompts import common_template
from colora.training.resolve import ResolvedRun

__all__ = ["bank_info"]


def bank_info(run: ResolvedRun, encoded: EncodedRun, steps: int) -> BankInfo:
    """How the bank of a run came to be.

    Args:
        run: the run.
        encoded: its examples.
        steps: that were trained.
    """
    config, names = run.config, run.names
    seen = np.zeros(len(names), dtype=np.int64)
    for batch in islice(encoded.mixture.tasks(), steps):
        np.add.at(seen, batch, 1)
    common = common_template(run.prompt, run.tasks, None if run.start is None else run.start.info)
    sizes = encoded.train.sizes
    info = BankInfo(
        base=config.base,
        chat_template=config.chat_template,
        max_length=config.training.max_length,
        examples={name: int(size) for name, size in zip(names, sizes, strict=True)},
        seen={name: int(rows) for name, rows in zip(names, seen, strict=True)},
        prompt=None if common is None else common.text,
    )
    if run.column is None:
        info.sources = {name: {"split_seed": entry["split_seed"]} for name, entry in run.manifest.items()}
        for task in run.tasks:
            info.set_template(task.name, task_template(task))
    else:
        seeds = ({"split_seed": run.column.seed if drawn else None} for drawn in run.column.drawn)
        info.sources = dict(zip(names, seeds, strict=True))
    return info
