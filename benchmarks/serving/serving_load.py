"""A load for a server from another process: clients that ask again as soon as they are answered.

    python -m benchmarks.serving.serving_load URL --tasks 64 --requests 96 [--concurrency 16] [--seconds 600]

Tasks are drawn by Zipf's law, prompts and lengths of outputs at random; the same seed asks the same. Prints one line of
JSON: tokens a second, latencies, the time to the first token with --stream, and how answers ended.
"""

import argparse
import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from statistics import median, quantiles
from typing import Any

import httpx

EXPONENT = 1.1
WORDS = ("river", "ledger", "harbour", "signal", "winter", "paper", "copper", "garden", "window", "seven", "thirty")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("url")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--seconds", type=float, help="go on for so long instead")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--uniform", action="store_true", help="all tasks alike instead of by Zipf's law")
    parser.add_argument("--model", help="ask this one alone, instead of tasks")
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(load(args))))


def bodies(tasks: int, seed: int, uniform: bool) -> Iterator[dict[str, Any]]:
    """Requests without end."""
    draw = random.Random(seed)
    weights = list(accumulate(1.0 if uniform else 1 / rank**EXPONENT for rank in range(1, tasks + 1)))
    while True:
        (task,) = draw.choices(range(tasks), cum_weights=weights)
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(4, 24)))
        yield {"model": f"user-{task}", "prompt": prompt, "temperature": 0, "max_tokens": draw.randint(8, 32)}


async def first_token(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> tuple[int, float]:
    """The status of a streamed answer, and when its first text came; it is read to its end."""
    first = 0.0
    async with client.stream("POST", f"{url}/completions", json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if not first and line.startswith("data:") and '"text":""' not in line.replace(" ", ""):
                first = time.monotonic()
    return answer.status_code, first or time.monotonic()


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """Send the requests, and measure."""
    source, statuses = bodies(args.tasks, args.seed, args.uniform), Counter[int]()
    latencies: list[float] = []
    firsts: list[float] = []
    answers: dict[int, str] = {}
    tokens = asked = 0
    began = time.monotonic()

    def unfinished() -> bool:
        return time.monotonic() < began + args.seconds if args.seconds else asked < args.requests

    async def ask_repeatedly(client: httpx.AsyncClient) -> None:
        nonlocal tokens, asked
        while unfinished():
            number, body = asked, next(source)
            asked += 1
            body |= {"model": args.model} if args.model else {}
            sent_at = time.monotonic()
            if args.stream:
                status, first = await first_token(client, args.url, body)
                firsts.append(first - sent_at)
                latencies.append(time.monotonic() - sent_at)
                statuses[status] += 1
                continue
            answer = await client.post(f"{args.url}/completions", json=body)
            latencies.append(time.monotonic() - sent_at)
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                content = answer.json()
                tokens += content["usage"]["completion_tokens"]
                if not args.seconds:
                    answers[number] = content["choices"][0]["text"]

    limits = httpx.Limits(max_connections=args.concurrency)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        await asyncio.gather(*(ask_repeatedly(client) for _ in range(args.concurrency)))
    seconds = time.monotonic() - began
    cuts = quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else [latencies[0]] * 99
    if firsts:
        return {"statuses": dict(statuses), "first_token_p50": round(median(firsts), 3)}
    texts = json.dumps([answers.get(number) for number in range(len(answers))])
    return {
        "tasks": args.tasks,
        "requests": asked,
        "statuses": dict(statuses),
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 2),
        "latency_p50": round(cuts[49], 3),
        "latency_p95": round(cuts[94], 3),
        "answers_sha256": hashlib.sha256(texts.encode()).hexdigest(),
    }


if __name__ == "__main__":
    main()
