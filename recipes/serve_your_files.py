"""From files of your own to an HTTP server: train a bank, start `colora serve`, ask every task the same question.

Each file or folder is a task; its lines are {"input": ..., "output": ...} (CSV, parquet and more will do as well).
The server speaks OpenAI's protocol, and `model` in a request is the task's name.

    python recipes/serve_your_files.py                       # the three folders in recipes/data
    python recipes/serve_your_files.py billing.jsonl legal.csv --ask "Where is my parcel?"

With SmolLM2-135M and the folders in recipes/data it prints:

    | task | colora exact_match |
    | --- | ---: |
    | capital | 83.3 |
    | continent | 83.3 |
    | language | 50.0 |
    | mean | 72.2 |
    asking 3 tasks over HTTP
    capital: Denmark -> 'Copenhagen'
    continent: Denmark -> 'Europe'
    language: Denmark -> 'Danish'
    to go on: colora serve runs/your-files/bank
"""

import argparse
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import colora

DATA = Path(__file__).parent / "data"


@contextmanager
def served(bank: Path, port: int):
    """`colora serve` as a process of its own, once it answers; it ends with the block."""
    command = [sys.executable, "-m", "colora", "serve", str(bank), "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit("the server did not start; see above why")
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:  # not yet
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def ask(url: str, task: str, question: str) -> str:
    body = {"model": task, "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": question}]}
    request = Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(files: list[Path], base: str, steps: int, output: Path, port: int, question: str) -> None:
    config = colora.RunConfig(
        base=base,
        output=str(output),
        tasks=[{"path": str(file)} for file in files],
        prompt="{input} -> {output}",
        training={"steps": steps, "rows": 12},
        evaluation={"metrics": ["exact_match"], "max_new_tokens": 6},
    )
    result, measured = colora.train_and_evaluate(config)
    print(colora.comparison_markdown(measured.records), end="")
    with served(result.bank, port) as url:
        print(f"asking {len(files)} tasks over HTTP")
        for file in files:
            print(f"{file.stem}: {question} -> {ask(url, file.stem, question)!r}")
    print(f"to go on: colora serve {result.bank}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", default=sorted(DATA.iterdir()), help="files or folders of tasks")
    parser.add_argument("--base", default="smollm2", help="a folder, a .gguf file, an id on the hub, or smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/your-files"), help="folder of the run")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ask", dest="question", default="Denmark", help="what every task is asked")
    main(**vars(parser.parse_args()))
