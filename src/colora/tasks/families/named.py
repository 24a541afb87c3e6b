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
letters-8           a word, and a letter of it or its length: eight questions about the same kind of input. For one word
                    they have different answers, so an implicit prompt cannot be right for two tasks at once.
lists-8             three words, and one of them: by its place, by the alphabet, by what it means.
facts-8             what the world knows of a name; two tasks of countries, two of parks, two of people.
words-8             three translations from English, opposites, synonyms, plurals, past tenses, and a judgement.
annotators-a        ten people who judged the same tweets as hateful or not.
annotators-b        ten others, of the same tweets.
raters-32           how offensive people find the same comments. Of the 61 raters with at least 16 training and 8 test
                    comments of at most 160 bytes, the 32 with the most such comments, training and test together; of
                    equals the lower number.
flan-8              the eight clients of FedDPA's first division of Flan: five of judging, three of writing.
dates-4             the first four of similar-8.
similar-32          dates for a study of the number of tasks, by its first 1, 2, 4, 8, 16 and 32: similar-8 first, then
                    eight more Romance languages, then sixteen other languages of Europe in Latin letters.

In a group that has both, date-es comes first, so that one task can be followed through several groups. All dates are
as CLDR has them, and so may change a little with the version of Babel.

What an experiment has to allow for, in tokens of SmolLM2, with an instruction and any of the plain templates: flan-8
needs max_length: 160 and max_new_tokens: 64, raters-32 needs max_length: 72; the others fit the defaults, 64 and 32.
What it can ask for (train, val, test of a task, with any of the seeds 0 to 4): letters-8 and lists-8 160, 70, 80;
facts-8 and words-8 90, 45, 45; annotators 80, 32, 65; raters-32 18, 0, 8, so nothing can be chosen on it; flan-8 136
for test and 209 for training and validation together.
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
    "letters-8": _names(
        "letters",
        "capitalize capitalize_first_letter capitalize_last_letter capitalize_second_letter "
        "lowercase_first_letter lowercase_last_letter next_capital_letter word_length",
    ),
    "lists-8": _names(
        "lists",
        "choose_first_of_3 choose_middle_of_3 choose_last_of_3 alphabetically_first_3 alphabetically_last_3 "
        "animal_v_object_3 color_v_animal_3 verb_v_adjective_3",
    ),
    "facts-8": _names(
        "facts",
        "country-capital country-currency landmark-country national_parks park-country person-instrument "
        "person-sport product-company",
    ),
    "words-8": _names(
        "words",
        "english-french english-german english-spanish antonym synonym singular-plural present-past sentiment",
    ),
    "annotators-a": _names("annotator", "01 02 03 04 05 06 07 08 09 10"),
    "annotators-b": _names("annotator", "11 12 13 14 15 16 17 18 19 20"),
    "raters-32": _names(
        "rater",
        "005 009 010 011 014 015 016 017 019 022 023 025 029 035 037 038 043 048 052 058 059 062 067 071 075 078 "
        "080 082 090 091 092 095",
    ),
    "flan-8": _names(
        "flan",
        "coreference entailment linguistic_acceptability paraphrase question_classification structure_to_text "
        "text_formatting word_disambiguation",
    ),
    "dates-4": _ROMANCE[:4],
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
