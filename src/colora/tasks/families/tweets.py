"""Short tweets and their labels, from TweetEval (Barbieri et al. 2020), in its own division into splits."""

from colora.errors import ConfigError
from colora.tasks.families.draw import Ask, Draw, complete, shuffled
from colora.tasks.families.files import LONGEST, data_folder, read_splits, short_examples
from colora.tasks.schema import Example

__all__ = ["TWEETS", "draw_tweets"]

FOLDER = "tweeteval"

TWEETS = {
    "emotion": "Emotion (anger, joy, optimism, sadness):",
    "irony": "irony or non_irony?",
    "stance_abortion": "Stance on abortion (against, favor, none):",
    "stance_atheism": "Stance on atheism (against, favor, none):",
    "stance_climate": "Stance on climate change (against, favor, none):",
}


def draw_tweets(ask: Ask) -> Draw:
    """`ask.variant` names a folder of train.jsonl, val.jsonl and test.jsonl; each split is drawn from its file.

    Raises:
        ConfigError: if the folder is not there, or has too few short examples.
        TaskFileError: with every fault of the files.
    """
    if ask.variant not in TWEETS:
        known = ", ".join(f"tweet-{variant}" for variant in TWEETS)
        raise ConfigError(f'expected a task of the family tweet, found "{ask.name}"; known: {known}')
    given = read_splits(data_folder(ask, f"{FOLDER}/{ask.variant}"))
    splits: dict[str, list[Example]] = {}
    seen: set[str] = set()
    for split in ("test", "val", "train"):
        pool = short_examples(given[split], "tweet", seen)
        seen.update(one.input for one in pool)
        splits[split] = shuffled(pool, ask, split)[: ask.sizes[split]]
    limit = f"of tweets with at most {LONGEST['tweet']} bytes"
    return Draw(complete(splits, ask, limit), TWEETS[ask.variant], f"{FOLDER}/{ask.variant}")
