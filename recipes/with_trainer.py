"""transformers' Trainer trains a bank of three tasks: one collator, one optimiser, one argument.

`TaskIdsCollator` brings the tasks of the rows past the Trainer's own collator, `TaskAdamW` leaves the cores of absent
tasks alone, and `remove_unused_columns=False` keeps the Trainer from dropping the column. All else is as always.

    python recipes/with_trainer.py --base smollm2

With SmolLM2-135M it prints (exact match in per cent, of countries that were not in training):

    training loss: 2.90
    | task | bank exact_match |
    | --- | ---: |
    | capital | 66.7 |
    | continent | 83.3 |
    | language | 33.3 |
    | mean | 61.1 |
    bank: runs/with-trainer/bank
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

import colora

DATA = Path(__file__).parent / "data"


def tokenized(task, tokenizer):
    """The training rows of a task; labels of the prompt are -100, and `task_ids` says whose row it is."""
    for example in task.splits["train"]:
        prompt = tokenizer(f"{example.input} ->")["input_ids"]
        answer = tokenizer(f" {example.outputs[0]}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        yield {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "task_ids": task.name}


def main(base: str, steps: int, output: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = colora.load_base(base)
    info = colora.BankInfo(base=base, prompt="{input} -> {output}")
    sources = [colora.TaskSource(path=str(folder)) for folder in sorted(DATA.iterdir())]
    tasks = info.prompted(colora.read_tasks(sources))  # so that `evaluate` asks with that prompt
    model = get_peft_model(model, colora.CoLoRAConfig(tasks=[task.name for task in tasks], task_type="CAUSAL_LM"))

    arguments = TrainingArguments(
        str(output / "trainer"),
        remove_unused_columns=False,  # or the tasks of the rows are dropped, and the bank refuses to guess
        per_device_train_batch_size=12,
        max_steps=steps,
        lr_scheduler_type="cosine",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Dataset.from_list([row for task in tasks for row in tokenized(task, tokenizer)]),
        data_collator=colora.TaskIdsCollator(DataCollatorForSeq2Seq(tokenizer), model),
        optimizers=(colora.TaskAdamW(colora.parameter_groups(model, lr=1e-3, core_lr=2e-2)), None),
    )
    trainer.remove_callback(PrinterCallback)  # of what the Trainer measures of itself
    print(f"training loss: {trainer.train().training_loss:.2f}")

    settings = colora.EvaluationSettings(metrics=("exact_match",), max_new_tokens=5, method="bank")
    ids = {task.name: number for number, task in enumerate(tasks)}
    measured = colora.evaluate(model.eval(), tokenizer, tasks, settings, ids)
    print(colora.comparison_markdown(measured.records), end="")
    colora.save_bank(model, output / "bank", info)
    print(f"bank: {output / 'bank'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/with-trainer"), help="folder for the bank")
    main(**vars(parser.parse_args()))
