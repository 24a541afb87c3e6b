"""LoRAs that you have become one bank: shared A and B, a core for each, and what that costs in precision.

    python recipes/loras_to_bank.py loras/billing loras/legal      # folders as PEFT saves them, on one base
    python recipes/loras_to_bank.py                                # trains three LoRAs first, to have some

With SmolLM2-135M and LoRAs of its own it prints (an error is that of the weights' updates, relative):

    a bank of rank 8 of 3 LoRAs; its files are 1.48 times smaller
    capital: of rank 4, error 17.5%
    continent: of rank 4, error 17.8%
    language: of rank 4, error 18.7%
    capital: Denmark -> 'Copenhagen'
    continent: Denmark -> 'Europe'
    language: Denmark -> 'Danish'
    to train it further, all tasks together: colora train RUN.yaml --from runs/loras-to-bank/bank
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import colora

DATA = Path(__file__).parent / "data"


def train_lora(task, base: str, steps: int, folder: Path) -> Path:
    """An ordinary LoRA of one task, by stock PEFT and a plain loop."""
    model, tokenizer = colora.load_base(base)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=2e-3)
    texts = [f"{one.input} -> {one.outputs[0]}{tokenizer.eos_token}" for one in task.splits["train"]]
    for _ in range(steps):
        chosen = [texts[i] for i in torch.randperm(len(texts))[:8]]
        batch = tokenizer(chosen, padding=True, padding_side="right", return_tensors="pt")
        model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def main(loras: list[Path], base: str, steps: int, output: Path) -> None:
    if not loras:
        torch.manual_seed(0)
        tasks = colora.read_tasks([colora.TaskSource(path=str(folder)) for folder in sorted(DATA.iterdir())])
        loras = [train_lora(task, base, steps, output / "loras" / task.name) for task in tasks]
    report = colora.import_loras(loras, output / "bank", base=base, prompt="{input} -> {output}")
    print(f"a bank of rank {report.rank} of {len(loras)} LoRAs; its files are {report.ratio:.2f} times smaller")
    for task in report.tasks:
        print(f"{task.name}: of rank {task.rank}, error {task.error:.1%}")

    asked = [colora.Request(task.name, "Denmark") for task in report.tasks]
    for request, answer in zip(asked, colora.generate_texts(report.bank, asked, max_new_tokens=5), strict=True):
        print(f"{request.task}: {request.input} -> {answer!r}")
    print(f"to train it further, all tasks together: colora train RUN.yaml --from {output / 'bank'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loras", type=Path, nargs="*", help="folders of LoRAs; by default three are trained")
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=10, help="of each LoRA that is trained here")
    parser.add_argument("--output", type=Path, default=Path("runs/loras-to-bank"), help="folder; must be new")
    main(**vars(parser.parse_args()))
