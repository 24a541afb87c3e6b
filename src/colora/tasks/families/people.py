"""People who judged the same texts: is a tweet hateful, from 1 to 5 how offensive is a comment. A task is a person.

Annotators: 20 people and 200 tweets (Röttger et al. 2022, arXiv:2112.07475), each judged by all. The published test
tweets are nobody's training tweets and stay test. The 11 published validation tweets are few, so a quarter of the
training tweets, the same ones for all people, are validation tweets too.

Raters: 96 people of the offensiveness part of POPQUORN (Pei and Jurgens 2023, arXiv:2306.06826), in its division by
text, without validation. Comments of more than 160 bytes, one in eight, are left out; of the others no one has more
than 50 tokens of SmolLM2. That leaves each rater 15 to 27 training and 4 to 15 test texts.
"""

import hashlib
import re

from colora.errors import ConfigError
from colora.tasks.families.draw import DrawnTask, TaskRequest, checked_splits, shuffled
from colora.tasks.families.files import LONGEST, data_folder, read_splits, short_examples
from colora.tasks.schema import SPLITS, Example

__all__ = ["draw_annotators", "draw_raters"]

JUDGEMENTS = {"annotator": ("hateful", "not hateful"), "rater": ("1", "2", "3", "4", "5")}
"""All answers; a rater's 1 is not offensive at all and 5 very."""


def draw_annotators(request: TaskRequest) -> DrawnTask:
    """`request.variant` is the person's number, "01" to "20".

    Raises:
        ConfigError: if there is no such person, or the person judged too few tweets.
        TaskFileError: with every fault of the files.
    """
    number = _number(request, "annotator", digits=2)
    given = read_splits(data_folder(request, f"annotators/annotator_{request.variant}"), SPLITS)
    pools: dict[str, list[Example]] = {"train": [], "val": [*given["val"]], "test": [*given["test"]]}
    for example in given["train"]:
        digest = hashlib.blake2b(f"{request.seed}:annotator:{example.input}".encode(), digest_size=1).digest()
        pools["val" if digest[0] % 4 == 0 else "train"].append(example)
    return _drawn(request, pools, "annotator", f"Annotator {number}:")


def draw_raters(request: TaskRequest) -> DrawnTask:
    """`request.variant` is the person's number, "000" to "095"; there is no validation split.

    Raises:
        ConfigError: if there is no such person, or the person rated too few short texts.
        TaskFileError: with every fault of the files.
    """
    number = _number(request, "rater", digits=3)
    given = read_splits(data_folder(request, f"raters/rater_{request.variant}"), ("train", "test"))
    return _drawn(request, {split: [*given[split]] for split in SPLITS}, "rater", f"Rater {number}:")


def _number(request: TaskRequest, family: str, digits: int) -> int:
    if not re.fullmatch(rf"[0-9]{{{digits}}}", request.variant):
        raise ConfigError(
            f'expected a task of the family {family}, with a number of {digits} digits, found "{request.name}"'
        )
    return int(request.variant)


def _drawn(request: TaskRequest, pools: dict[str, list[Example]], family: str, instruction: str) -> DrawnTask:
    splits = {
        split: shuffled(short_examples(pools[split], family), request, split)[: request.sizes[split]]
        for split in SPLITS
    }
    pool = f"of texts with at most {LONGEST[family]} bytes"
    return DrawnTask(
        checked_splits(splits, request, pool),
        instruction,
        f"{family}s/{family}_{request.variant}",
        JUDGEMENTS[family],
    )
