"""Plain LoRAs that are written when a task is asked for: of the rank of the task's core."""

import json

import pytest
import torch
from safetensors.torch import load_file

from colora.algebra import compose
from colora.bank.tensors import SavedBank
from colora.serving.store import CoreStore
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import onboard
from colora.vllm.folders import LoRAFolders
from tests.helpers.run_files import write_task
from tests.helpers.servers import make_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_a_lora_has_the_rank_and_the_update_of_its_task(tmp_path):
    bank = make_bank(tmp_path)
    onboard(bank, tmp_path / write_task(tmp_path, "new", 5), settings=Settings(2, 2, extend=2))
    saved, store = SavedBank(bank), CoreStore(bank)
    folders = LoRAFolders(lambda: store, tmp_path / "loras")
    for task, rank in (("legal", 3), ("new", 5)):
        folder = folders.path(task)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == rank
        tensors, core = load_file(folder / "adapter_model.safetensors"), saved.core(saved.index[task])
        for name, layer in saved.layers.items():
            A, B = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            assert A.shape[0] == B.shape[1] == rank
            expected = compose(layer.A[:rank], layer.B[:, :rank], core[name], saved.config.scaling)
            assert torch.allclose(config["lora_alpha"] / rank * B @ A, expected, atol=1e-5)
