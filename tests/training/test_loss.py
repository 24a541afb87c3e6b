"""The weights of rows and their likelihoods, against slow definitions."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from colora import CoLoRAConfig
from colora.errors import ColoraError
from colora.models.likelihood import label_tokens, row_nll
from colora.tasks.encode import IGNORED
from colora.training.loop.loss import WEIGHTINGS, row_weights
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5
from tests.helpers.train_tiny import EachStep, make_trainer, roles


def slow_loss(task_ids, rows, active, weighting):
    """`rows` are lists of token losses; the definitions in words, one loop each."""
    kept = [(task, row) for task, row in zip(task_ids, rows, strict=True) if active[task]]
    if weighting == "task":
        means = []
        for task in sorted({task for task, row in kept if row}):
            tokens = [loss for other, row in kept for loss in row if other == task]
            means.append(sum(tokens) / len(tokens))
        return sum(means) / max(len(means), 1)
    if weighting == "token":
        tokens = [loss for _, row in kept for loss in row]
        return sum(tokens) / max(len(tokens), 1)
    return sum(sum(row) / max(len(row), 1) for _, row in kept) / max(len(kept), 1)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(6))
def test_weighted_rows_add_up_to_the_loss_as_defined_in_words(weighting, seed):
    generator = torch.Generator().manual_seed(seed)
    tasks = 5
    ids = torch.randint(tasks - 1, (9,), generator=generator)  # the last task is never there
    tokens = torch.randint(0 if seed % 2 else 1, 6, (9,), generator=generator)
    active = torch.rand(tasks, generator=generator) < (0.6 if seed else 2)
    rows = [torch.rand(int(count), generator=generator).tolist() for count in tokens]
    step_tokens = torch.zeros(tasks).index_add_(0, ids, tokens.float())
    step_rows = torch.zeros(tasks).index_add_(0, ids, torch.ones(9))
    sums = torch.tensor([sum(row) for row in rows])
    total = 0.0
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):  # micro-batches of unequal size
        weights = row_weights(ids[part], tokens[part], step_tokens, step_rows, active, weighting)
        assert weights.dtype == torch.float32
        assert (weights[~active[ids[part]]] == 0).all()
        total += float((weights * sums[part]).sum())
    assert total == pytest.approx(slow_loss(ids.tolist(), rows, active.tolist(), weighting), rel=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_zero_and_finite_when_every_task_has_stopped(weighting):
    ids, tokens = torch.tensor([0, 1]), torch.tensor([3, 0])
    weights = row_weights(
        ids, tokens, torch.tensor([3.0, 0]), torch.ones(2), torch.zeros(2, dtype=torch.bool), weighting
    )
    assert weights.tolist() == [0, 0]


# ---- likelihood -------------------------------------------------------------------------------------------------


class NoSelection(nn.Module):
    """A causal model whose forward knows no `logits_to_keep`, and tells when it is asked for all logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def causal_batch():
    """Rows with labels at different places: at both ends, in two runs, none at all."""
    ids = torch.randint(6, VOCAB, (4, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.full_like(ids, IGNORED)
    labels[0, 5:] = ids[0, 5:]
    labels[1, 0:2], labels[1, 5] = ids[1, 0:2], ids[1, 5]
    labels[3] = ids[3]
    return {"input_ids": ids, "attention_mask": mask}, labels


def slow_causal(model, inputs, labels):
    losses = []
    for ids, mask, row in zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True):
        logits = model(input_ids=ids[None, : mask.sum()]).logits[0].double().log_softmax(-1)
        places = [p for p in range(1, int(mask.sum())) if row[p] != IGNORED]
        losses.append(-sum((logits[p - 1, row[p]] for p in places), torch.zeros((), dtype=torch.float64)))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "no_logits_to_keep"])
def test_likelihood_of_causal_rows_equals_the_one_by_one_oracle(kind):
    base = tiny_gpt2(dtype=torch.float64) if kind == "gpt2" else tiny_llama(dtype=torch.float64)
    inputs, labels = causal_batch()
    model = NoSelection(base) if kind == "no_logits_to_keep" else base
    ours = row_nll(model, inputs, labels)
    torch.testing.assert_close(ours, slow_causal(base, inputs, labels), rtol=1e-10, atol=1e-10)
    assert ours[2] == 0
    assert label_tokens(labels, encoder_decoder=False).tolist() == [4, 2, 0, 8]


@pytest.mark.parametrize("kind", ["llama", "no_logits_to_keep"])
def test_the_last_token_of_causal_rows_need_not_go_through_the_model(kind):
    base = tiny_llama(dtype=torch.float64)
    model = NoSelection(base) if kind == "no_logits_to_keep" else base
    inputs, labels = causal_batch()
    shorter = {name: value[:, :-1] for name, value in inputs.items()}
    whole, ours = row_nll(model, inputs, labels), row_nll(model, shorter, labels)
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)
    assert ours[0] > 0  # its last label stands at the very end


def test_likelihood_of_encoder_decoder_rows_equals_the_one_by_one_oracle():
    model = tiny_t5(dtype=torch.float64)
    inputs, _ = causal_batch()
    labels = torch.randint(6, VOCAB, (4, 5), generator=torch.Generator().manual_seed(4))
    labels[0, 3:], labels[2] = IGNORED, IGNORED
    ours = row_nll(model, inputs, labels)
    for row, loss in enumerate(ours.tolist()):
        wanted = [int(label) for label in labels[row] if label != IGNORED]
        decoder = torch.tensor([[model.config.decoder_start_token_id, *wanted]])
        length = int(inputs["attention_mask"][row].sum())
        logits = model(input_ids=inputs["input_ids"][row : row + 1, :length], decoder_input_ids=decoder).logits[0]
        slow = -sum(logits[place].log_softmax(-1)[label].item() for place, label in enumerate(wanted))
        assert loss == pytest.approx(slow, rel=1e-9, abs=1e-9)
    assert label_tokens(labels, encoder_decoder=True).tolist() == [3, 5, 0, 5]


def test_likelihood_through_a_bank_follows_each_rows_task():
    names = ["a", "b", "c"]
    bank = get_peft_model(tiny_llama(dtype=torch.float64), CoLoRAConfig(r=4, tasks=names, init_weights=False)).eval()
    inputs, labels = causal_batch()
    ours = row_nll(bank, {**inputs, "task_ids": torch.tensor([2, 0, 1, 1])}, labels)
    for row, name in enumerate(["c", "a", "b", "b"]):
        bank.set_task(name)
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        slow = slow_causal(bank, one, labels[row : row + 1])
        torch.testing.assert_close(ours[row : row + 1], slow, rtol=1e-9, atol=1e-9)
    other = row_nll(bank, {**inputs, "task_ids": torch.tensor([0, 0, 1, 1])}, labels)
    assert abs(other[0] - ours[0]) > 1e-6


def test_likelihood_of_a_half_precision_model_is_summed_in_float32():
    inputs, labels = causal_batch()
    losses = row_nll(tiny_llama(dtype=torch.bfloat16), inputs, labels)
    assert losses.dtype == torch.float32


def test_logits_of_another_length_than_the_labels_are_refused():
    class Shorter(NoSelection):
        def forward(self, input_ids, attention_mask):
            output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            output.logits = output.logits[:, 1:]
            return output

    inputs, labels = causal_batch()
    with pytest.raises(ColoraError, match=r"expected logits of shape \(4, 9, .*found \(4, 8, "):
        row_nll(Shorter(tiny_llama()), inputs, labels)


# ---- accumulation -----------------------------------------------------------------------------------------------


def gradients_of_the_first_step(tmp_path, accumulate, weighting):
    trainer = make_trainer(
        tmp_path / f"{accumulate}", steps=1, rows=6, accumulate=accumulate, dropout=0.0, init_weights=False,
        weighting=weighting, max_grad_norm=0.0, seed=5, log_steps=1,
    )  # fmt: skip
    found = {}

    class Look(EachStep):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad})

    trainer.add_callback(Look())
    trainer.train()
    loss = next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
    return found, loss


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradients_do_not_depend_on_accumulation(tmp_path, weighting):
    whole, loss = gradients_of_the_first_step(tmp_path, 1, weighting)
    parts, loss_of_parts = gradients_of_the_first_step(tmp_path, 3, weighting)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    assert all(group for group in roles(whole))
    for name, gradient in whole.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_three_weightings_give_different_gradients(tmp_path):
    found = [gradients_of_the_first_step(tmp_path / weighting, 1, weighting)[0] for weighting in WEIGHTINGS]
    name = next(iter(found[0]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one][name] - found[other][name]).abs().max() > 1e-4
