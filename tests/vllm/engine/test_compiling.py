"""What vLLM finds compiled code by."""

import pytest

from tests.helpers.engines import bank_for_either

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from vllm.config.lora import LoRAConfig
from vllm.platforms.cpu import CpuPlatform

from colora.bank.tensors import SavedBank
from colora.vllm.compiling import compile_with_bank


@pytest.fixture
def hash_with(monkeypatch):
    """A function that gives the hash that vLLM has for a configuration with a bank."""
    hashes, usual = LoRAConfig.compute_hash, CpuPlatform.check_and_update_config

    def found(bank):
        # The monkey's patches are what puts vLLM back as it was.
        monkeypatch.setattr(LoRAConfig, "compute_hash", hashes)
        monkeypatch.setattr(CpuPlatform, "check_and_update_config", usual)
        compile_with_bank(SavedBank(bank))
        return LoRAConfig(max_lora_rank=8, max_loras=4).compute_hash()

    return found


def test_banks_of_other_shapes_have_other_code(hash_with, tmp_path):
    one = hash_with(bank_for_either(tmp_path))
    assert hash_with(bank_for_either(tmp_path, ["a", "b"], seed=4, name="of-one-shape")) == one
    assert hash_with(bank_for_either(tmp_path, r=4, name="of-another-rank")) != one
