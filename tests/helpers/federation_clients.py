"""Three small clients of a tiny model in float64, for the tests of the protocol."""

import torch

from colora.federated.local import LocalData
from colora.tasks.encode import EncodedTasks
from colora.training.config import AdapterSpec, FederationSpec

LR, CORE_LR, SEED = 0.01, 0.05, 3
FEDERATION = "0123456789abcdef" * 2
SIZES = {"ann": 5, "bob": 3, "cy": 4}
ADAPTER = AdapterSpec(r=2, lora_alpha=3.0, init_rotation=0.0)


def client_data(name, size):
    """Random examples of one client, as many as `size`; the sizes are the seeds."""
    generator = torch.Generator().manual_seed(size)
    items = []
    for _ in range(size):
        length, prompt = (int(torch.randint(low, high, (), generator=generator)) for low, high in [(5, 9), (2, 4)])
        ids = torch.randint(6, 200, (length,), generator=generator).tolist()
        items.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "task_ids": 0})
    return LocalData(name, EncodedTasks(items, [size], []))


DATA = {name: client_data(name, size) for name, size in SIZES.items()}


def spec_of(**changes):
    """The settings of a short alternating federation, with some changed."""
    settings = {"schedule": "alternating", "order": "core_first", "rounds": 2, "core_steps": 2, "local_steps": 3}
    return FederationSpec(**(settings | {"rows": 2, "finish_steps": 2} | changes))
