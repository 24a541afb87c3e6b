"""TRL on a bank: supervised fine-tuning of two tasks, then DPO in which the tasks prefer opposite things.

After SFT both tasks answer as in the examples. The pairs of DPO then say that "capital" wants its answers in CAPITALS
and "language" does not. One batch holds pairs of both; the reference is a frozen copy of the bank, and each row of it
has the task of its pair. What is printed is by how many nats CAPITALS are likelier than the plain answer: in a few
steps they come up in one task and go down in the other.

    python recipes/with_trl.py --base smollm2        # needs trl

With SmolLM2-135M it prints:

    after SFT, capital: CAPITALS by -39.2 nats
    after SFT, language: CAPITALS by -32.5 nats
    after DPO, capital: CAPITALS by -13.7 nats
    after DPO, language: CAPITALS by -115.5 nats
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import colora

DATA = Path(__file__).parent / "data"
TASKS = ["capital", "language"]


def train(kind, config, model, tokenizer, rows, output, lr, **options):
    """One of TRL's trainers on rows with a column `task_ids`."""
    arguments = config(
        str(output),
        remove_unused_columns=False,  # 1: keep the column
        per_device_train_batch_size=8,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    optimizer = colora.TaskAdamW(colora.parameter_groups(model, lr=lr, core_lr=20 * lr))
    trainer = kind(model, args=arguments, train_dataset=rows, processing_class=tokenizer, optimizers=(optimizer, None))
    trainer.data_collator = colora.TaskIdsCollator(trainer.data_collator, model)  # 2: past TRL's own collator
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def nats(model, tokenizer, task, example, answer):
    """The log-likelihood of an answer under a task."""
    prompt = tokenizer(f"{example.input} ->", return_tensors="pt")["input_ids"]
    ids = tokenizer(f" {answer}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt, ids], 1).to(model.device)
    with torch.no_grad():
        logits = model(input_ids=whole, task_ids=[task]).logits[0, prompt.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(1, whole[0, prompt.shape[1] :, None]).sum().item()


def report(stage, model, tokenizer, tasks):
    model.eval()
    for task in tasks:
        upper, plain = (
            [nats(model, tokenizer, task.name, one, form(one.outputs[0])) for one in task.splits["test"]]
            for form in (str.upper, str)
        )
        print(f"after {stage}, {task.name}: CAPITALS by {(sum(upper) - sum(plain)) / len(plain):.1f} nats")
    model.train()


def main(base: str, steps: int, output: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = colora.load_base(base)
    tasks = colora.read_tasks([colora.TaskSource(path=str(DATA / name)) for name in TASKS])
    model = get_peft_model(model, colora.CoLoRAConfig(tasks=TASKS, task_type="CAUSAL_LM"))
    examples = [(task.name, one.input, one.outputs[0]) for task in tasks for one in task.splits["train"]]

    rows = [{"prompt": f"{asked} ->", "completion": f" {answer}", "task_ids": name} for name, asked, answer in examples]
    train(SFTTrainer, SFTConfig, model, tokenizer, Dataset.from_list(rows), output, lr=1e-3, max_steps=steps)
    report("SFT", model, tokenizer, tasks)

    pairs = []
    for name, asked, answer in examples:
        chosen, rejected = (answer.upper(), answer) if name == "capital" else (answer, answer.upper())
        pairs.append({"prompt": f"{asked} ->", "chosen": f" {chosen}", "rejected": f" {rejected}", "task_ids": name})
    train(DPOTrainer, DPOConfig, model, tokenizer, Dataset.from_list(pairs), output, lr=5e-4, max_steps=steps)
    report("DPO", model, tokenizer, tasks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/with-trl"), help="folder for TRL's files")
    main(**vars(parser.parse_args()))
