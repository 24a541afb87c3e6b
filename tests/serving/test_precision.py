"""bfloat16 where nobody says otherwise, the CPU multiplies it, and the answers stay."""

import pytest
import torch

from colora.bank.tensors import SavedBank
from colora.common.device import cpu_multiplies_bfloat16
from colora.models.base import load_base
from colora.serving.precision import keeps_answers, suitable_base
from tests.helpers.servers import make_bank, process, serving
from tests.helpers.tiny import tiny_llama


def uneven(seed):
    """A model two of whose tokens are told apart by what bfloat16 rounds away, and far apart."""
    model = tiny_llama(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 300 * model.model.embed_tokens.weight[7]
        model.model.embed_tokens.weight[8] = model.model.embed_tokens.weight[7] * (1 + 2**-9)
    return model


def test_tokens_that_are_level_may_change_places_and_others_not():
    exact = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7]]).log()
    assert keeps_answers(exact, exact)
    assert not keeps_answers(exact, torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.2, 0.7]]).log())
    level = torch.tensor([[0.46, 0.44, 0.1]]).log()
    assert keeps_answers(level, torch.tensor([[0.44, 0.46, 0.1]]).log())
    assert not keeps_answers(level, torch.full((1, 3), torch.nan))


@pytest.mark.parametrize(("make_base", "dtype"), [(tiny_llama, torch.bfloat16), (uneven, torch.float32)])
def test_the_base_is_rounded_where_the_answers_stay(tmp_path, make_base, dtype, caplog):
    saved = SavedBank(make_bank(tmp_path, make_base=make_base))
    asked = []

    def load(precision):
        asked.append(precision)
        return load_base(saved.info.base, precision)

    base, _ = suitable_base(load, saved)
    assert base.dtype == dtype
    assert asked == [torch.float32, torch.bfloat16, *([torch.float32] if dtype == torch.float32 else [])]
    assert ("answers differ" in caplog.text) is (dtype == torch.float32)
    assert not [name for name, _ in base.named_parameters() if "colora" in name]


def test_a_server_says_in_which_precision_it_answers(bank, tmp_path):
    with process(bank, "--dtype", "float32", log=tmp_path / "log") as (_, _):
        assert "/v1, in float32 (" in (tmp_path / "log").read_text()
    with serving(bank, dtype=None) as server:
        assert server.service.dtype == (torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32)
