"""A federation in one process: three clients whose texts and cores stay with them, and one shared A and B.

In each round every client trains on its own examples, and sends its A and B alone; the server averages them. The same
run file works over a network, with `colora federate server` and `colora federate client`.

    python recipes/federated.py --base smollm2

With SmolLM2-135M it prints (exact match in per cent, of countries that were not in training):

    | task | colora exact_match |
    | --- | ---: |
    | capital | 66.7 |
    | continent | 83.3 |
    | language | 66.7 |
    | mean | 72.2 |
    8 rounds; each client sent 156.6 MB, and no text and no core
    capital: Denmark -> 'Copenhagen'
    continent: Denmark -> 'Europe'
    language: Denmark -> 'Danish'
"""

import argparse
from pathlib import Path

import colora

DATA = Path(__file__).parent / "data"


def main(base: str, rounds: int, output: Path) -> None:
    config = colora.RunConfig(
        base=base,
        output=str(output),
        tasks=[{"path": str(folder)} for folder in sorted(DATA.iterdir())],  # a client each
        prompt="{input} -> {output}",
        training={"lr": 1e-3, "core_lr": 2e-2},
        federation={"rounds": rounds, "local_steps": 2, "core_steps": 1},
        evaluation={"metrics": ["exact_match"], "max_new_tokens": 6},
    )
    measured = colora.simulate(config)
    print(colora.comparison_markdown(measured.records), end="")

    sent = [one for one in colora.read_records(output / "rounds.jsonl") if one.metric == "bytes_up"]
    print(f"{rounds} rounds; each client sent {sum(one.value for one in sent) / 3e6:.1f} MB, and no text and no core")
    asked = [colora.Request(folder.name, "Denmark") for folder in sorted(DATA.iterdir())]
    for request, answer in zip(asked, colora.generate_texts(output / "bank", asked, max_new_tokens=5), strict=True):
        print(f"{request.task}: {request.input} -> {answer!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/federated"), help="folder of the run")
    main(**vars(parser.parse_args()))
