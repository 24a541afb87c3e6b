"""A small folder of task data in the layout and the formats of the real one."""

import json
from pathlib import Path

from tests.helpers.task_files import write

__all__ = ["write_data"]


def write_data(root: Path, count: int = 120, tweets: int = 40) -> Path:
    """SCAN 126 and 127, odd-man-out 141 and 142, CODAH with `count` examples each, and a TweetEval folder."""
    walks = [f"I_WALK I_RUN {number}" for number in range(count)]
    commands = [f"walk and run {number}" for number in range(count)]
    _instructions(root, "126_scan", list(zip(commands, walks, strict=True)))
    _instructions(root, "127_scan", list(zip(walks, commands, strict=True)))
    words = [(f"Category: things \nWords: a{n}, b{n}, odd{n}, c{n}, d{n}", f"odd{n}") for n in range(count)]
    _instructions(root, "141_odd", words)
    _instructions(root, "142_odd", [(f"d{n}, c{n}, b{n}, a{n}, other{n}", f"other{n}") for n in range(count)])
    _instructions(root, "156_codah", [(f"Prompt: {n} \nCompletion A: x", "Completion A") for n in range(count)])
    for split, start in (("train", 0), ("val", 1000), ("test", 2000)):
        rows = [{"input": f"tweet {n} #x", "output": "irony"} for n in range(start, start + tweets)]
        rows.append({"input": "in all three", "output": f"a label of {split}"})
        write(root / "tweeteval" / "irony" / f"{split}.jsonl", rows)
    return root


def _instructions(root: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    instances = [{"input": text, "output": [answer]} for text, answer in pairs]
    instances.append({"input": "long " * 100, "output": ["too long"]})
    value = {"Definition": "A long definition.", "Instances": instances}
    write(root / "natural_instructions" / f"task{name}.json", json.dumps(value))
