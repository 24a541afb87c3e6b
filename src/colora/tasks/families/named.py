"""The groups of tasks that experiments refer to by name.

How much tasks have in common is decided here, before anything is measured:

similar-8           dates in eight Romance languages. No two write more than a third of the dates alike.
half-8              the first four of these, and four tasks that have nothing to do with dates or with each other.
different-8         eight tasks of eight kinds: two kinds of writing out, one of parsing, five of judging text.
unrelated-dates-8   dates in eight languages of eight families or branches, none of which shares the names of months
                    with another: one thing to learn (what a date is), eight ways to say it.
numbers-8           numbers in words in six Romance languages, Swiss French, and Esperanto, which has their roots.
scan-4              commands to actions and back. 128 and 129 are the same mappings as 126 and 127, so this is a group
                    of two pairs of equal tasks.
odd-man-out-3       three questions about the same kind of words.
tweets-5            all of our TweetEval. Its stances have few short tweets: see `colora.tasks.families.files.LONGEST`.
similar-32          dates for a study of the number of tasks, by its first 1, 2, 4, 8, 16 and 32: similar-8 first, then
                    eight more Romance languages, then sixteen other languages of Europe in Latin letters.

In a group that has both, date-es comes first, so that one task can be followed through several groups. All dates are
as CLDR has them, and so may change a little with the version of Babel.
"""

from colora.errors import ConfigError

__all__ = ["GROUPS", "group_tasks"]


def _names(family: str, variants: str) -> tuple[str, ...]:
    return tuple(f"{family}-{variant}" for variant in variants.split())


_ROMANCE = _names("date", "es pt it ca fr ro ast oc")
_MORE_ROMANCE = _names("date", "gl fur lij rm scn vec sc an")
_MORE_EUROPEAN = _names("date", "nl de da is sr_Latn hr sk cs pl hsb lt lv et fi sq mt")

GROUPS: dict[str, tuple[str, ...]] = {
    "similar-8": _ROMANCE,
    "half-8": (*_ROMANCE[:4], "number-de", "scan-126", "odd-man-out-142", "tweet-irony"),
    "different-8": (
        *("date-es", "number-de", "scan-126", "odd-man-out-142", "codah-156"),
        *_names("tweet", "irony emotion stance_abortion"),
    ),
    "unrelated-dates-8": _names("date", "fi tr vi cy lt eu zh hr"),
    "numbers-8": _names("number", "es pt it ca fr ro fr_CH eo"),
    "scan-4": _names("scan", "126 127 128 129"),
    "odd-man-out-3": _names("odd-man-out", "141 142 143"),
    "tweets-5": _names("tweet", "irony emotion stance_abortion stance_atheism stance_climate"),
    "similar-32": _ROMANCE + _MORE_ROMANCE + _MORE_EUROPEAN,
}


def group_tasks(group: str) -> tuple[str, ...]:
    """The names of a group's tasks.

    Raises:
        ConfigError: if there is no such group.
    """
    if group not in GROUPS:
        raise ConfigError(f'expected the name of a group of tasks, found "{group}"; known: {", ".join(GROUPS)}')
    return GROUPS[group]
