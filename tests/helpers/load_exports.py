"""What a user without CoLoRA does with its exports: a program that must not import it, for `test_export`.

    python -I -S load_exports.py FOLDER SITE_PACKAGES ...

FOLDER/cases.json lists the cases. Each case's logits go to FOLDER/NAME.out.safetensors.
"""

import json
import sys
from pathlib import Path


class _NoColora:
    """Refuses colora where it is installed beside the other packages rather than by a link that -S ignores."""

    def find_spec(self, name, path=None, target=None):
        if name == "colora":
            raise ModuleNotFoundError("No module named 'colora'")
        return None


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path += sys.argv[2:]
    sys.meta_path.insert(0, _NoColora())
    try:
        import colora  # noqa: F401
    except ModuleNotFoundError:
        print("colora cannot be imported")

    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    for case in json.loads((folder / "cases.json").read_text()):
        auto = AutoModelForSeq2SeqLM if case["seq2seq"] else AutoModelForCausalLM
        model = auto.from_pretrained(case["base"], dtype=getattr(torch, case["dtype"]))
        if case["lora"] is not None:
            model = PeftModel.from_pretrained(model, case["lora"])
            assert model.peft_config["default"].peft_type == "LORA"
        with torch.no_grad():
            more = {key: torch.tensor(value) for key, value in case["more"].items()}
            logits = model(**load_file(folder / "inputs.safetensors"), **more).logits
        save_file({"logits": logits.contiguous()}, folder / f"{case['name']}.out.safetensors")
    print(sorted(name for name in sys.modules if name.split(".")[0] == "colora"))


if __name__ == "__main__":
    main()
