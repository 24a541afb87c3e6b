"""Your own training loop: one bank for three tasks, plain PyTorch, and `task_ids` with every batch.

The prompts are the same for all tasks, "Japan ->"; which answer is right, the capital, the language or the continent,
is for the core of the task to know. A batch mixes tasks freely, in training and in generation.

    python recipes/own_loop.py --base smollm2

With SmolLM2-135M it prints (of six countries that were not in training):

    step 10: loss 1.06
    step 20: loss 0.40
    capital: 4 of 6 right; Japan -> 'Tokyo'
    continent: 4 of 6 right; Japan -> 'Asia'
    language: 3 of 6 right; Japan -> 'Chinese'
    bank: runs/own-loop
"""

import argparse
from pathlib import Path

import torch
from peft import get_peft_model

import colora

DATA = Path(__file__).parent / "data"


def encode(tokenizer, rows):
    """Prompts and answers as one padded batch; the loss sees the answers alone."""
    prompts = [tokenizer(f"{example.input} ->")["input_ids"] for _, example in rows]
    ends = [f" {example.outputs[0]}{tokenizer.eos_token}" for _, example in rows]
    answers = [tokenizer(end, add_special_tokens=False)["input_ids"] for end in ends]
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    batch = tokenizer.pad({"input_ids": whole}, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(prompt)] = -100
    return {**batch, "labels": labels, "task_ids": [name for name, _ in rows]}


def main(base: str, steps: int, output: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = colora.load_base(base)
    tasks = colora.read_tasks([colora.TaskSource(path=str(folder)) for folder in sorted(DATA.iterdir())])
    names = [task.name for task in tasks]
    model = get_peft_model(model, colora.CoLoRAConfig(tasks=names, task_type="CAUSAL_LM"))
    optimizer = colora.TaskAdamW(colora.parameter_groups(model, lr=1e-3, core_lr=2e-2))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    rows = [(task.name, example) for task in tasks for example in task.splits["train"]]
    for step in range(1, steps + 1):
        loss = model(**encode(tokenizer, [rows[i] for i in torch.randperm(len(rows))[:12]])).loss
        loss.backward()
        optimizer.step()  # moves A, B, and the cores of the tasks in the batch
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.2f}")

    model.eval()
    asked = [(task.name, example) for task in tasks for example in task.splits["test"]]  # countries not in training
    texts = [f"{example.input} ->" for _, example in asked]
    prompts = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    outputs = model.generate(**prompts, task_ids=[name for name, _ in asked], max_new_tokens=5, do_sample=False)
    answers = tokenizer.batch_decode(outputs[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    for name in names:
        own = [(one, answer.strip()) for (task, one), answer in zip(asked, answers, strict=True) if task == name]
        right = sum(answer in example.outputs for example, answer in own)
        print(f"{name}: {right} of {len(own)} right; {own[0][0].input} -> {own[0][1]!r}")
    colora.save_bank(model, output, colora.BankInfo(base=base, prompt="{input} -> {output}"))
    print(f"bank: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/own-loop"), help="folder for the bank")
    main(**vars(parser.parse_args()))
