"""Outputs of a saved bank, drawn in a batch."""

import pytest
import torch
from peft import get_peft_model

from benchmarks.architectures.zoo import ZOO
from colora.adapter.config import CoLoRAConfig
from colora.bank.generate import Request, generate_texts
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.errors import ConfigError
from colora.models.decoding.sampling import Sampling
from tests.helpers.run_files import save_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["Gemma 3", "Phi 3, longrope"])
def test_a_window_or_scale_that_is_longer_than_the_rows_is_no_obstacle(tmp_path, name):
    # the windows have 8 tokens, the scale changes at 16; the models have 256 positions
    base = save_base(tmp_path / "base", ZOO[name].make(dtype=torch.float32), chat=False)
    torch.manual_seed(1)
    config = CoLoRAConfig(r=2, lora_alpha=8, tasks=["red", "blue"], init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(ZOO[name].make(dtype=torch.float32), config)
    save_bank(model, tmp_path / "bank", BankInfo(base, chat_template=False, max_length=96))
    requests = [Request("red", "a"), Request("blue", "bc")]
    greedy = Sampling(temperature=0.0)
    found = generate_texts(tmp_path / "bank", requests, 4, sampling=greedy)
    assert found == generate_texts(tmp_path / "bank", requests, 4)
    with pytest.raises(ConfigError, match=r"choose a length of at most (8|16)"):
        generate_texts(tmp_path / "bank", requests, 40, sampling=greedy)
