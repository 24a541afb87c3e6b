"""A process that pushes a bank to a hub and fetches it, as a user would, and prints what it found as JSON.

python -m tests.helpers.hub_program BASE BANK WORK, with the variables of `tests.helpers.hub_stand_in`
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from colora import export_loras, load_bank
from colora.bank.how_to_prompt import HowToPrompt
from tests.helpers.run_files import cli

MARK = "found: "
IDS = torch.arange(6, 24).reshape(2, 9)


def logits(model: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, **more).logits
    return found


def said(*arguments: object) -> dict[str, Any]:
    result = cli(*arguments)
    return {"code": result.exit_code, "out": result.stdout, "err": result.stderr}


def main(base: str, bank: str, work: Path) -> None:
    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(base)

    model, tokenizer, info = load_bank(bank)
    tasks = model.tasks[:2]
    before = logits(model, task_ids=tasks)
    model.push_to_hub("org/bank")
    fetched = PeftModel.from_pretrained(fresh(), "org/bank")
    again, _, told = load_bank("hf://org/bank")
    found: dict[str, Any] = {
        "same by PEFT": torch.equal(logits(fetched, task_ids=tasks), before),
        "same by load_bank": torch.equal(logits(again, task_ids=tasks), before),
        "same info": told == info,
    }
    card = ModelCard.load("org/bank")
    card.text = card.text.replace("# CoLoRA bank", "# Support, by my own words")
    card.push_to_hub("org/bank")
    model.push_to_hub("org/bank")
    model.set_core(tasks[0], {name: 2 * core for name, core in model.core(tasks[0]).items()})
    model.push_to_hub("org/changed")  # another bank now: of its prompts and quality nothing is known
    export_loras(again, work / "loras", [tasks[0]], HowToPrompt(told, tokenizer))
    HfApi().create_repo("org/lora")
    HfApi().upload_folder(repo_id="org/lora", folder_path=work / "loras" / tasks[0])
    lora = PeftModel.from_pretrained(fresh(), "org/lora")
    found["lora differs by"] = (logits(lora) - logits(again, task_ids=[tasks[0]] * 2)).abs().max().item()
    lora.push_to_hub("org/lora-again")
    found["tasks"] = said("tasks", "hf://org/bank")
    found["generate"] = said("generate", "hf://org/bank", "hi", "--task", tasks[0], "--max-new-tokens", 2)
    found["export"] = said("export", "hf://org/bank", work / "exported", "--task", tasks[0])
    found["merge"] = said("merge", "hf://org/bank", "new", f"{tasks[0]}=1", "--output", work / "merged")
    found["merge in place"] = said("merge", "hf://org/bank", "new", f"{tasks[0]}=1")
    found["forget"] = said("forget", "hf://org/bank", tasks[0])
    found["no prefix"] = said("tasks", "org/bank")
    found["unknown"] = said("tasks", "hf://org/nobody")
    found["revision"] = said("tasks", "hf://org/bank@nowhere")
    print(MARK + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
