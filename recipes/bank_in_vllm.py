"""A bank inside vLLM: its server answers for all tasks at once, and requests of different tasks share every step.

    python recipes/bank_in_vllm.py runs/your-files Denmark Japan         # a bank, and what every task is asked
    python recipes/bank_in_vllm.py runs/your-files Denmark -- --max-model-len 256    # vLLM's own options at the end

It needs vLLM 0.32 in the environment, see docs/serving.md. It prints an answer of each task (these are what `colora
serve` answered with the bank of recipes/serve_your_files.py; the test asks vLLM itself):

    capital: Denmark -> 'Copenhagen'
    continent: Denmark -> 'Europe'
    language: Denmark -> 'Danish'
    3 answers from one server
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import colora


@contextmanager
def served(bank: Path, port: int, own: list[str]):
    """vLLM's server with the bank inside, once it answers; it ends with the block."""
    command = [sys.executable, "-m", "colora", "serve", str(bank), "--engine", "vllm", "--port", str(port), *own]
    server = subprocess.Popen(command, stdout=sys.stderr)
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit("the server did not start; see above why")
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:  # not yet
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def ask(url: str, task: str, question: str) -> str:
    body = {"model": task, "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": question}]}
    request = Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(bank: Path, questions: list[str], port: int, own: list[str]) -> None:
    asked = [(task, question) for question in questions for task in colora.bank_overview(bank).tasks]
    with served(bank, port, own) as url, ThreadPoolExecutor(len(asked)) as threads:
        answers = threads.map(lambda one: ask(url, *one), asked)  # all at once
        for (task, question), answer in zip(asked, answers, strict=True):
            print(f"{task}: {question} -> {answer!r}")
    print(f"{len(asked)} answers from one server")


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bank", type=Path, help="folder of a bank or of a run")
    parser.add_argument("questions", nargs="+", help="what every task is asked")
    parser.add_argument("--port", type=int, default=8000)
    main(**vars(parser.parse_args(sys.argv[1:end])), own=sys.argv[end + 1 :])
