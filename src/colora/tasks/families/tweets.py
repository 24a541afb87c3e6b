"""Short tweets and their labels, from TweetEval (Barbieri et al. 2020), in its own division into splits."""

from colora.errors import ConfigError
from colora.tasks.families.draw import DrawnTask, TaskRequest, checked_splits, shuffled
from colora.tasks.families.files import LONGEST, data_folder, read_splits, short_examples
from colora.tasks.schema import SPLITS, Example

__all__ = ["TWEETS", "draw_tweets"]

FOLDER = "tweeteval"

STANCES = ("against", "favor", "none")
CHOICES = {
    "emotion": ("anger", "joy", "optimism", "sadness"),
    "irony": ("irony", "non_irony"),
    **{f"stance_{topic}": STANCES for topic in ("abortion", "atheism", "climate")},
}
TWEETS = {
    "emotion": "Emotion (anger, joy, optimism, sadness):",
    "irony": "irony or non_irony?",
    "stance_abortion": "Stance on abortion (against, favor, none):",
    "stance_atheism": "Stance on atheism (against, favor, none):",
    "stance_climate": "Stance on climate change (against, favor, none):",
}


def draw_tweets(request: TaskRequest) -> DrawnTask:
    """`request.variant` names a folder of train.jsonl, val.jsonl and test.jsonl; each split is drawn from its file.

    Raises:
        ConfigError: if the folder is not there, or has too few short examples.
        TaskFileError: with every fault of the files.
    """
    if request.variant not in TWEETS:
        known = ", ".join(f"tweet-{variant}" for variant in TWEETS)
        raise ConfigError(f'expected a task of the family tweet, found "{request.name}"; known: {known}')
    examples = read_splits(data_folder(request, f"{FOLDER}/{request.variant}"), SPLITS)
    splits: dict[str, list[Example]] = {}
    seen: set[str] = set()
    for split in ("test", "val", "train"):
        pool = short_examples(examples[split], "tweet", seen)
        seen.update(example.input for example in pool)
        splits[split] = shuffled(pool, request, split)[: request.sizes[split]]
    limit = f"of tweets with at most {LONGEST['tweet']} bytes"
    return DrawnTask(
        checked_splits(splits, request, limit),
        TWEETS[request.variant],
        f"{FOLDER}/{request.variant}",
        CHOICES[request.variant],
    )
