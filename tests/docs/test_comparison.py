"""What README says of other libraries, where it can be tried here."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.tiny import tiny_llama


def test_peft_mixes_loras_in_a_batch_for_inference_alone():
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules="all-linear"), adapter_name="billing")
    model.add_adapter("legal", LoraConfig(target_modules="all-linear"))
    batch = torch.ones(2, 3, dtype=torch.long)
    model.eval()(input_ids=batch, adapter_names=["billing", "legal"])
    with pytest.raises(ValueError, match="training"):
        model.train()(input_ids=batch, adapter_names=["billing", "legal"])
