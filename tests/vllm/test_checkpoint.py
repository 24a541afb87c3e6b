"""The base that vLLM has loaded is compared with the bank's by its files."""

import pytest
import safetensors.torch

from colora.bank.tensors import SavedBank
from colora.errors import BaseMismatchError
from colora.vllm.checkpoint import check_checkpoint
from tests.helpers.run_files import save_base
from tests.helpers.servers import make_bank
from tests.helpers.tiny import tiny_llama


@pytest.fixture
def bank(tmp_path):
    return SavedBank(make_bank(tmp_path))


def test_the_same_base_passes_in_any_precision(bank, tmp_path, caplog):
    check_checkpoint(bank, bank.info.base)
    tiny_llama().bfloat16().save_pretrained(tmp_path / "half")
    check_checkpoint(bank, str(tmp_path / "half"))
    assert not caplog.records


def test_another_base_of_the_same_shapes_is_refused(bank, tmp_path):
    other = save_base(tmp_path / "other", tiny_llama(seed=5))
    with pytest.raises(BaseMismatchError, match=r"another base model.*relative distance 1\.\d+"):
        check_checkpoint(bank, other)


def test_weights_that_cannot_be_compared_are_told(bank, tmp_path, caplog):
    (tmp_path / "renamed").mkdir()
    tensors = safetensors.torch.load_file(f"{bank.info.base}/model.safetensors")
    renamed = {f"other.{key}": value for key, value in tensors.items()}
    safetensors.torch.save_file(renamed, tmp_path / "renamed" / "model.safetensors")
    check_checkpoint(bank, str(tmp_path / "renamed"))
    assert "cannot be compared" in caplog.text
    caplog.clear()
    (tmp_path / "renamed" / "model.safetensors").write_bytes(b"half")
    check_checkpoint(bank, str(tmp_path / "renamed"))
    assert "cannot be compared" in caplog.text
