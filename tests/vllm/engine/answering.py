"""A process of vLLM that answers what it is asked on standard input, all of it in one batch, and ends.

python -m tests.vllm.engine.answering < JSON > JSON
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
MARK = "answers: "
# vLLM keeps a core for the front end where nobody says otherwise; and nothing is fetched.
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def answers(
    base: Path, bank: Path, rounds: Sequence[Sequence[tuple[str | None, list[int]]] | str], **options: Any
) -> list[list[list[int]]]:
    """The greedy tokens after each prompt, round by round.

    Args:
        base, bank: folders.
        rounds: batches, each of pairs of a task's name, or None for the base, and a prompt in tokens; "name=task" is an
            adapter of another name, with the core of the task; "/..." is the folder of a plain LoRA. A path is no
            batch: the bank there takes the place of the other, which is read anew; it has no answers.
        options: of `vllm.LLM`; "tokens" is the length of an answer, "environment" more variables.

    Raises:
        AssertionError: with the end of what the process said, if it failed.
    """
    environment = os.environ | ENVIRONMENT | {"COLORA_BANK": str(bank)} | options.pop("environment", {})
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), environment.get("PYTHONPATH", "")])
    tokens = options.pop("tokens", 12)
    asked = {"base": str(base), "rounds": rounds, "tokens": tokens, "options": options}
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.engine.answering"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]  # vLLM logs there too
    found: list[list[list[int]]] = json.loads(line.removeprefix(MARK))
    return found


def main() -> None:
    asked = json.load(sys.stdin)

    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest
    from vllm.plugins import load_general_plugins

    from colora.vllm.adapter_path import CorePath
    from colora.vllm.entry import register

    def request(task: str, number: int) -> LoRARequest:
        if task.startswith("/"):
            return LoRARequest(task, number, task)
        name, _, core = task.partition("=")
        return LoRARequest(name, number, str(CorePath(core or name, version=core)))

    load_general_plugins()
    register()  # again, where the entry point is installed: that must do no harm
    options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 4, "max_model_len": 128, "dtype": "float32"}
    options |= {"enforce_eager": True, "worker_extension_cls": "colora.vllm.worker.BankExtension"}
    llm = LLM(asked["base"], skip_tokenizer_init=True, **options | asked["options"])
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
    names: dict[str, int] = {}
    found = []
    for one in asked["rounds"]:
        if isinstance(one, str):
            bank = Path(os.environ["COLORA_BANK"])
            bank.rename(bank.with_name("old"))
            Path(one).rename(bank)
            llm.collective_rpc("colora_reload")
            names = {f"old {name}": number for name, number in names.items()}  # a new core has a new number
            continue
        requests = [None if task is None else request(task, names.setdefault(task, len(names) + 1)) for task, _ in one]
        for one_request in requests:
            if one_request is not None and one_request.lora_name not in names:
                llm.llm_engine.add_lora(one_request)  # as the server does with each that it meets
        prompts = [TokensPrompt(prompt_token_ids=prompt) for _, prompt in one]
        outputs = llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
