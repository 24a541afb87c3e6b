"""TRL's SFT, DPO and KTO train a bank of several tasks in one run, through `TaskIdsCollator`."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from colora import TaskIdsCollator
from colora.errors import TaskIdError
from tests.helpers.dense_oracle import dense_logits, distance, factors, make_bank
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'trl>=1.16'")
from datasets import Dataset  # noqa: E402
from trl.trainer.dpo_trainer import DataCollatorForPreference  # noqa: E402

TASKS = ["ada", "bo", "absent"]
NAMES = ["ada", "bo", "bo", "ada"]
TEXTS = ["one", "number two", "three, rather long", "4"]
TOKENS = tiny_tokenizer()


def bank(**config):
    return make_bank(tiny_llama(), TASKS, task_type="CAUSAL_LM", **config)


def settings(folder, kind, **arguments):
    given = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    given |= {"per_device_train_batch_size": 4, "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-2}
    given |= {"gradient_checkpointing": False, "remove_unused_columns": False, "optim": "sgd"}
    return kind(str(folder), **given | arguments)


def run(trainer, model):
    trainer.data_collator = TaskIdsCollator(trainer.data_collator, model)
    trainer.train()
    return trainer.state.log_history[0]


def sft(model, folder, rows, **arguments):
    made = settings(folder, trl.SFTConfig, **arguments)
    return run(trl.SFTTrainer(model, args=made, train_dataset=rows, processing_class=TOKENS), model)


def texts():
    return Dataset.from_dict({"text": TEXTS, "task_ids": NAMES})


def tokenized():
    ids = [TOKENS(text)["input_ids"] + [TOKENS.eos_token_id] for text in TEXTS]
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "task_ids": [TASKS.index(name) for name in NAMES]})


def by_token(row):
    return {"task_ids": [row["task_ids"]] * len(row["input_ids"])}


def packed(length=64, strategy="bfd"):
    rows = tokenized().map(by_token)
    return trl.pack_dataset(rows, length, strategy)


def oracle_loss(model):
    """Mean over all predicted tokens of a batch, from dense weights, one row at a time."""
    losses = []
    for row in tokenized():
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = dense_logits(tiny_llama(), factors(model), [row["task_ids"]], {"input_ids": ids})
        losses.append(cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    return torch.cat(losses).mean().item()


def moved(before, model):
    """For each task, the largest change of its cores; and of A and B."""
    after = factors(model)
    cores = [max(distance(before[n]["core"][k], t["core"][k]) for n, t in after.items()) for k in range(len(TASKS))]
    return cores, max(distance(before[n][part], t[part]) for n, t in after.items() for part in "AB")


FORMS = {
    "texts and names": (texts, {}),
    "texts and names, checkpointed": (texts, {"gradient_checkpointing": True}),
    "two batches of two": (texts, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "padding-free": (texts, {"padding_free": True, "max_length": None}),
    "packed": (packed, {"padding_free": True, "max_length": None}),
    "packed in two rows": (lambda: packed(20), {"padding_free": True, "max_length": None}),
    "packed in two rows, one a step": (
        lambda: packed(20),
        {"padding_free": True, "max_length": None, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_sft_trains_the_tasks_of_its_rows(tmp_path, form):
    """Loss and step are those of the plain padded batch with ids, and that loss is the oracle's."""
    rows, arguments = FORMS[form]
    plain, model = bank(), bank()
    before = factors(model)
    expected = sft(plain, tmp_path, tokenized(), max_grad_norm=0.0)
    assert expected["loss"] == pytest.approx(oracle_loss(bank()), rel=1e-5)
    found = sft(model, tmp_path, rows(), max_grad_norm=0.0, **arguments)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    cores, shared = moved(before, model)
    assert min(cores[:2]) > 5e-5
    assert cores[2] == 0.0
    assert shared > 1e-4
    after, other = factors(plain), factors(model)
    assert max(distance(after[name][part], other[name][part]) for name in after for part in ("A", "B", "core")) < 1e-6


def test_packed_rows_that_cut_texts_route_their_tokens(tmp_path):
    """TRL's "wrapped" packing cuts texts anywhere and pads nothing but the last row."""
    model, rows = bank(), packed(16, "wrapped")
    found = sft(model, tmp_path, rows, max_length=None, shuffle_dataset=False)
    losses = []
    for row in rows:
        ids, tasks = torch.tensor([row["input_ids"]]), torch.tensor([row["task_ids"]])
        with torch.no_grad():
            logits = bank()(input_ids=ids, task_ids=tasks).logits
        losses.append(cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    assert found["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_an_evaluation_is_routed_as_well(tmp_path):
    model = bank()
    made = settings(tmp_path, trl.SFTConfig, per_device_eval_batch_size=4, learning_rate=0.0)
    trainer = trl.SFTTrainer(model, args=made, train_dataset=texts(), eval_dataset=texts(), processing_class=TOKENS)
    trainer.data_collator = TaskIdsCollator(trainer.data_collator, model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(oracle_loss(model), rel=1e-4)


@pytest.mark.parametrize("arguments", [{"remove_unused_columns": True}, {"packing": True, "max_length": 32}])
def test_a_column_that_the_trainer_drops_is_missed_by_name(tmp_path, arguments):
    with pytest.raises(TaskIdError, match=r"has no 'task_ids'.*remove_unused_columns=False.*pack the rows beforehand"):
        sft(bank(), tmp_path, texts(), **arguments)


def test_without_the_collator_the_error_names_it(tmp_path):
    made = settings(tmp_path, trl.SFTConfig)
    with pytest.raises(TaskIdError, match=r"which task.*remove_unused_columns=False.*TaskIdsCollator"):
        trl.SFTTrainer(bank(), args=made, train_dataset=texts(), processing_class=TOKENS).train()


# ---- preferences -----------------------------------------------------------------------------------------------------


def pairs():
    return Dataset.from_dict(
        {"prompt": TEXTS, "chosen": [" yes", " surely", " no", " 1"], "rejected": [" x", " y z", " w", " v"],
         "task_ids": NAMES}
    )  # fmt: skip


def summed(model, prompt, answer, task):
    start = TOKENS(prompt)["input_ids"]
    ids = torch.tensor([start + TOKENS(answer)["input_ids"] + [TOKENS.eos_token_id]])
    with torch.no_grad():
        logits = log_softmax(model(input_ids=ids, task_ids=[task]).logits[0, :-1], -1)
    return logits.gather(1, ids[0, 1:, None])[len(start) - 1 :].sum().item()


@pytest.mark.parametrize("beforehand", [False, True])
def test_dpo_trains_the_tasks_of_its_pairs(tmp_path, beforehand):
    """Where TRL asks the reference while the trainer is made, the collator is given to it."""
    model = bank()
    before = factors(model)
    made = settings(tmp_path, trl.DPOConfig, learning_rate=1.0, precompute_ref_log_probs=beforehand)
    collator = TaskIdsCollator(DataCollatorForPreference(TOKENS.pad_token_id), model)
    trainer = trl.DPOTrainer(
        model, args=made, train_dataset=pairs(), processing_class=TOKENS, data_collator=collator if beforehand else None
    )
    if not beforehand:
        trainer.data_collator = TaskIdsCollator(trainer.data_collator, model)
    trainer.train()
    found = trainer.state.log_history[0]
    assert found["loss"] == pytest.approx(math.log(2), rel=1e-5)
    for side in ("chosen", "rejected"):
        rows = [summed(bank(), row["prompt"], row[side], row["task_ids"]) for row in pairs()]
        assert found[f"logps/{side}"] == pytest.approx(sum(rows) / len(rows), rel=1e-4)
    cores, shared = moved(before, model)
    assert min(cores[:2]) > 1e-5
    assert cores[2] == 0.0
    assert shared > 1e-5


def test_dpo_s_second_step_measures_against_the_bank_as_it_was(tmp_path):
    model, start = bank(), bank()
    made = settings(tmp_path, trl.DPOConfig, learning_rate=1.0, max_steps=2, lr_scheduler_type="constant", beta=0.5)
    trainer = trl.DPOTrainer(model, args=made, train_dataset=pairs(), processing_class=TOKENS)
    run(trainer, model)
    stepped = bank()
    again = settings(tmp_path, trl.DPOConfig, learning_rate=1.0, max_steps=1, lr_scheduler_type="constant", beta=0.5)
    run(trl.DPOTrainer(stepped, args=again, train_dataset=pairs(), processing_class=TOKENS), stepped)
    losses = []
    for row in pairs():
        gain = {
            side: summed(stepped, row["prompt"], row[side], row["task_ids"])
            - summed(start, row["prompt"], row[side], row["task_ids"])
            for side in ("chosen", "rejected")
        }
        losses.append(math.log1p(math.exp(-0.5 * (gain["chosen"] - gain["rejected"]))))
    assert abs(sum(losses) / 4 - math.log(2)) > 1e-3
    assert trainer.state.log_history[1]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_kto_trains_the_tasks_of_its_rows(tmp_path):
    model = bank()
    before = factors(model)
    rows = {"prompt": TEXTS, "completion": [" yes", " x", " no", " w"], "label": [True, False, True, False]}
    rows = Dataset.from_dict({**rows, "task_ids": NAMES})
    made = settings(tmp_path, trl.KTOConfig, learning_rate=1.0)
    found = run(trl.KTOTrainer(model, args=made, train_dataset=rows, processing_class=TOKENS), model)
    assert found["loss"] == pytest.approx(0.5, rel=1e-5)
    cores, _ = moved(before, model)
    assert min(cores[:2]) > 1e-5
    assert cores[2] == 0.0
