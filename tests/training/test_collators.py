"""`TaskIdsCollator`: the ids stand where the rows and tokens of their task are, or an error says why not."""

import pickle

import pytest
import torch
from transformers import DataCollatorWithFlattening, DataCollatorWithPadding, Trainer, TrainingArguments

from colora import TaskIdsCollator
from colora.errors import ConfigError, TaskIdError
from tests.helpers.dense_oracle import TASKS, make_bank
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

ROWS = [
    {"input_ids": [10, 11, 12], "labels": [10, 11, 12], "task_ids": "bo"},
    {"input_ids": [13], "labels": [13], "task_ids": "ada"},
    {"input_ids": [14, 15], "labels": [14, 15], "task_ids": "cy"},
]


def padded(rows, side="right", multiple=1):
    """A plain collator: pads `input_ids` with 0."""
    length = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    made = {"input_ids": [], "attention_mask": []}
    for row in rows:
        ids = list(row["input_ids"])
        for key, values in (("input_ids", ids), ("attention_mask", [1] * len(ids))):
            rest = [0] * (length - len(ids))
            made[key].append(values + rest if side == "right" else rest + values)
    return {key: torch.tensor(value) for key, value in made.items()}


def flattened(rows):
    return {"input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]])}


def paired(rows):
    sides = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected") for row in rows]
    return padded([{"input_ids": ids} for ids in sides])


def ids(collator, rows, model=TASKS, **settings):
    return TaskIdsCollator(collator, model, **settings)(rows)["task_ids"].tolist()


def test_one_id_a_row():
    assert ids(padded, ROWS) == [1, 0, 2]
    numbers = [{**row, "task_ids": number} for row, number in zip(ROWS, (2, 0, torch.tensor(1)), strict=True)]
    assert ids(padded, numbers) == [2, 0, 1]
    named = [{**{k: v for k, v in row.items() if k != "task_ids"}, "tenant": row["task_ids"]} for row in ROWS]
    assert ids(padded, named, column="tenant") == [1, 0, 2]


def test_the_collator_sees_no_task_and_the_rows_stay():
    seen = []
    TaskIdsCollator(lambda rows: seen.extend(rows) or padded(rows), TASKS)(ROWS)
    assert not any("task_ids" in row for row in seen)
    assert all("task_ids" in row for row in ROWS)


def test_a_flattened_batch_has_an_id_for_each_token():
    assert ids(flattened, ROWS) == [[1, 1, 1, 0, 2, 2]]
    assert ids(DataCollatorWithFlattening(), ROWS) == [[1, 1, 1, 0, 2, 2]]
    more = lambda rows: {"input_ids": torch.nn.functional.pad(flattened(rows)["input_ids"], (0, 2))}  # noqa: E731
    assert ids(more, ROWS) == [[1, 1, 1, 0, 2, 2, 2, 2]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_rows_have_an_id_for_each_token(side):
    rows = [
        {"input_ids": [10, 11, 12], "task_ids": ["bo", "bo", "ada"]},
        {"input_ids": [13, 14], "task_ids": ["cy", "bo"], "seq_lengths": [1, 1]},
        {"input_ids": [15], "task_ids": "ada"},
    ]
    right = [[1, 1, 0, 0], [2, 1, 1, 1], [0, 0, 0, 0]]
    left = [[0, 1, 1, 0], [1, 1, 2, 1], [0, 0, 0, 0]]
    assert ids(lambda rows: padded(rows, side, multiple=4), rows) == (right if side == "right" else left)
    assert ids(flattened, rows) == [[1, 1, 0, 2, 1, 0]]


def test_packed_documents_may_have_one_entry_each():
    rows = [{"input_ids": [10, 11, 12], "task_ids": ["bo", "ada"], "seq_lengths": [2, 1]}]
    assert ids(padded, rows) == [[1, 1, 0]]


def test_pairs_have_their_row_s_task_twice():
    rows = [{"prompt_ids": [9], "chosen_ids": [10], "rejected_ids": [11, 12], "task_ids": t} for t in ("bo", "cy")]
    assert ids(paired, rows) == [1, 2, 1, 2]


def test_inputs_that_are_no_tokens_have_one_id_a_row():
    rows = [{"image": 1.0, "task_ids": "bo"}, {"image": 2.0, "task_ids": 0}]
    assert ids(lambda rows: {"pixel_values": torch.zeros(len(rows), 3)}, rows) == [1, 0]


BAD = [
    ({"input_ids": [1], "labels": [1]}, padded, r"row 1 .* has no 'task_ids', only 'input_ids', 'labels'.*remove_unu"),
    ({"input_ids": [1], "task_ids": None}, padded, "row 1 .* has no 'task_ids'"),
    ({"input_ids": [1], "task_ids": "eve"}, padded, r"row 1 .*'eve' is no task .* ada, bo, cy \(ids 0 to 2\)"),
    ({"input_ids": [1], "task_ids": 3}, padded, "row 1 .*: 3 is no task"),
    ({"input_ids": [1], "task_ids": -1}, padded, "row 1 .*: -1 is no task"),
    ({"input_ids": [1], "task_ids": True}, padded, "row 1 .*: True is no task"),
    ({"input_ids": [1], "task_ids": 0.5}, padded, "row 1 .*: 0.5 is no task"),
    ({"input_ids": [1, 2], "task_ids": [0, 1, 1]}, padded, "has 2 input_ids, but .* token by token: 3"),
    ({"input_ids": [1, 2], "task_ids": 0}, lambda rows: padded(rows * 2), r"made 4 rows of 2"),
    ({"input_ids": [1, 2], "task_ids": 0}, lambda rows: flattened(rows[1:]), "row of 2 tokens does not consist of"),
    ({"input_ids": [1, 2], "task_ids": 0}, lambda rows: flattened(rows[::-1]), "not consist of the 5 given tokens"),
    ({"prompt": "a", "task_ids": 0}, list, "made a list, no batch of tensors.*GRPO.*set_task"),
    ({"text": "a", "task_ids": 0}, lambda rows: flattened(rows[:1]), "no input_ids, but .* token by token"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "collator", "error"), BAD)
def test_what_does_not_fit_is_refused_by_row(row, collator, error):
    with pytest.raises(TaskIdError, match=error):
        TaskIdsCollator(collator, TASKS)([ROWS[0], row])


def test_names_are_those_of_the_bank_at_the_time():
    model = make_bank(tiny_llama(), ["a", "b"])
    collator = TaskIdsCollator(padded, model)
    rows = [{"input_ids": [1], "task_ids": "b"}]
    assert collator(rows)["task_ids"].tolist() == [1]
    model.remove_task("a")
    assert collator(rows)["task_ids"].tolist() == [0]
    model.add_tasks(["c"])
    assert collator([{**rows[0], "task_ids": "c"}])["task_ids"].tolist() == [1]
    with pytest.raises(ConfigError, match="expected a model with one bank, found a LlamaForCausalLM with none"):
        TaskIdsCollator(padded, tiny_llama())


def test_for_a_process_the_names_go_and_the_model_stays():
    collator = TaskIdsCollator(DataCollatorWithPadding(tiny_tokenizer()), make_bank(tiny_llama()))
    there = pickle.loads(pickle.dumps(collator))
    assert there.model == TASKS
    assert there([{"input_ids": [7, 8], "task_ids": "cy"}])["task_ids"].tolist() == [2]


def test_the_stock_trainer_without_padding_gives_the_loss_of_the_padded_rows(tmp_path):
    losses = []
    for collator in (DataCollatorWithFlattening(), None):
        model = make_bank(tiny_llama(), task_type="CAUSAL_LM")
        settings = TrainingArguments(
            tmp_path, per_device_train_batch_size=3, max_steps=1, use_cpu=True, report_to=[], logging_steps=1,
            remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=ROWS, data_collator=collator or _padded_with_labels)
        trainer.data_collator = TaskIdsCollator(trainer.data_collator, model)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def _padded_with_labels(rows):
    made = padded(rows)
    return {**made, "labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}
