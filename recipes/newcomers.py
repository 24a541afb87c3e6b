"""Newcomers: a task joins a trained bank, learns more later, and nobody else's model changes by one bit.

A bank is trained on two tasks. A third one comes with eight examples: A and B stay as they are, and a core of its own
is trained. Twelve more examples come later, and the core goes on from where it is.

    python recipes/newcomers.py --base smollm2

With SmolLM2-135M it prints (the last line: of six countries that nobody has seen):

    continent, 8 examples: 12.79 nats a token without the bank, 1.26 with its own core
    continent, 12 more: 2.24 nats a token before, 1.08 after, on examples held out
    kept -> the new core
    capital is the same to the bit
    tasks: capital, language, continent; a further one costs 53,760 numbers
    continent: 4 of 6 right; Japan -> 'Europe'
"""

import argparse
from pathlib import Path

import torch

import colora

DATA = Path(__file__).parent / "data"


def main(base: str, steps: int, output: Path) -> None:
    config = colora.RunConfig(
        base=base,
        output=str(output),
        tasks=[{"path": str(DATA / name)} for name in ("capital", "language")],
        prompt="{input} -> {output}",
        training={"steps": steps, "rows": 12},
    )
    bank = colora.train(config).bank
    before = colora.SavedBank(bank).core(0)  # of "capital", layer by layer

    lines = (DATA / "continent" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few, more = output / "few.jsonl", output / "more.jsonl"
    few.write_text("".join(lines[:8]), encoding="utf-8")
    more.write_text("".join(lines[8:]), encoding="utf-8")

    done = colora.onboard(bank, few, name="continent")
    print(f"continent, 8 examples: {done.before:.2f} nats a token without the bank, {done.after:.2f} with its own core")
    later = colora.update(bank, more, name="continent")
    print(f"continent, 12 more: {later.before:.2f} nats a token before, {later.after:.2f} after, on examples held out")
    print(f"kept -> the {'new' if later.kept else 'old'} core")

    after = colora.SavedBank(bank).core(0)
    same = all(torch.equal(before[layer], after[layer]) for layer in before)
    print("capital is the same to the bit" if same else "capital has changed")
    overview = colora.bank_overview(bank)
    print(f"tasks: {', '.join(overview.tasks)}; a further one costs {overview.per_task.parameters:,} numbers")

    (task,) = colora.read_tasks([colora.TaskSource(path=str(DATA / "continent"))])
    asked = [colora.Request("continent", example.input) for example in task.splits["test"]]  # countries it has not seen
    answers = colora.generate_texts(bank, asked, max_new_tokens=5)
    right = sum(answer in example.outputs for example, answer in zip(task.splits["test"], answers, strict=True))
    print(f"continent: {right} of {len(asked)} right; {asked[0].input} -> {answers[0]!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/newcomers"), help="folder of the run")
    main(**vars(parser.parse_args()))
