"""A small folder of task data in the layout and the formats of the real one."""

import json
from pathlib import Path

from tests.helpers.task_files import write

__all__ = ["write_data"]


def write_data(root: Path, count: int = 120, tweets: int = 40) -> Path:
    """SCAN 126 and 127, odd-man-out 141 and 142, CODAH, five word tasks and two clients with `count` examples each, a
    TweetEval folder, two annotators and two raters."""
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
    _words(root / "function_vectors", count)
    _people(root)
    _clients(root / "flan_clients", count)
    return root


def _words(root: Path, count: int) -> None:
    """Two tasks of the same inputs, in other cases, and one of lists."""
    words = [f"word{number}" for number in range(count)]
    for path, pairs in {
        "letters/capitalize_first_letter": [(word, "W") for word in words],
        "letters/lowercase_first_letter": [(word.upper(), "w") for word in words],
        "words/antonym": [(word, f"un{word}") for word in words],
        "lists/choose_first_of_3": [(f"{word}, b, c", word) for word in words],
        "facts/park-country": [(f"{word} park", f"{word} land") for word in words],
    }.items():
        write(root / f"{path}.jsonl", [{"input": text, "output": answer} for text, answer in pairs])


def _people(root: Path) -> None:
    """Two annotators of the same tweets and two raters of the same comments, of which every seventh is too long."""
    for person in ("annotators/annotator_01", "annotators/annotator_02", "raters/rater_000", "raters/rater_012"):
        answers = ("hateful", "not hateful") if person.startswith("annotators") else ("1", "2", "3", "4", "5")
        splits = {"train": range(100), "test": range(200, 240)}
        if person.startswith("annotators"):
            splits["val"] = range(100, 105)
        for split, numbers in splits.items():
            rows = [
                {"input": f"text {n}" + " long" * 40 * (n % 7 == 0), "output": answers[n % len(answers)], "text_id": n}
                for n in numbers
            ]
            write(root / person / f"{split}.jsonl", rows)


def _clients(root: Path, count: int) -> None:
    """A client that judges and one that writes; some answers of the latter are too long."""
    for split, start in (("train", 0), ("test", 1000)):
        numbers = range(start, start + count)
        asked = [{"input": f"Same, {n}?\nOPTIONS:\n- no\n- yes", "output": ("no", "yes")[n % 2]} for n in numbers]
        told = [{"input": f"Add punctuation: {n}", "output": f"{n}." + "!" * 150 * (n % 5 == 0)} for n in numbers]
        write(root / "paraphrase" / f"{split}.jsonl", asked)
        write(root / "text_formatting" / f"{split}.jsonl", told)


def _instructions(root: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    instances = [{"input": text, "output": [answer]} for text, answer in pairs]
    instances.append({"input": "long " * 100, "output": ["too long"]})
    value = {"Definition": "A long definition.", "Instances": instances}
    write(root / "natural_instructions" / f"task{name}.json", json.dumps(value))
