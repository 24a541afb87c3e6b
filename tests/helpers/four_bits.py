"""A tiny base that bitsandbytes has quantised to four bits, as a folder: what users make once, or find on the hub."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.helpers.run_files import save_base
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

__all__ = ["four_bit_base"]


def four_bit_base(folder: Path) -> str:
    """Write FOLDER/plain and, quantised, FOLDER/four, with layers as wide as a block is long; the latter's name."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'colora[quantized]')")
    plain = save_base(folder / "plain", tiny_llama(hidden=64))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder / "four")
    tiny_tokenizer().save_pretrained(folder / "four")
    return str(folder / "four")
