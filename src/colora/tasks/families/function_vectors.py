"""Word tasks of one line each, from the data of "Function Vectors in Large Language Models" (Todd et al. 2023,
arXiv:2310.15213), in four families of eight, with short instructions of our own.

Many tasks share their inputs (the same words in three languages, the first, middle and last of a list), so an example
belongs to a split by its input, whatever its case, and that decision is one for all four families. A task has 197 to
400 examples.
"""

from colora.errors import ConfigError
from colora.tasks.families.draw import DrawnTask, TaskRequest, assign_splits, checked_splits, shuffled
from colora.tasks.families.files import LONGEST, data_folder, read_splits, short_examples
from colora.tasks.schema import Example

__all__ = ["FACTS", "LETTERS", "LISTS", "WORDS", "draw_facts", "draw_letters", "draw_lists", "draw_words"]

FOLDER = "function_vectors"

LETTERS = {
    "capitalize": "Word with a capital letter:",
    "capitalize_first_letter": "First letter, as a capital:",
    "capitalize_last_letter": "Last letter, as a capital:",
    "capitalize_second_letter": "Second letter, as a capital:",
    "lowercase_first_letter": "First letter, in lower case:",
    "lowercase_last_letter": "Last letter, in lower case:",
    "next_capital_letter": "Letter after the first one, as a capital:",
    "word_length": "Number of letters:",
}
"""next_capital_letter asks for the letter that follows the word's first one in the alphabet."""
LISTS = {
    "alphabetically_first_3": "First in the alphabet:",
    "alphabetically_last_3": "Last in the alphabet:",
    "animal_v_object_3": "The animal:",
    "choose_first_of_3": "First of the list:",
    "choose_last_of_3": "Last of the list:",
    "choose_middle_of_3": "Middle of the list:",
    "color_v_animal_3": "The colour:",
    "verb_v_adjective_3": "The verb:",
}
FACTS = {
    "country-capital": "Capital of the country:",
    "country-currency": "Currency of the country:",
    "landmark-country": "Country of the place:",
    "national_parks": "American state of the park:",
    "park-country": "Country of the park:",
    "person-instrument": "Instrument of the musician:",
    "person-sport": "Sport of the athlete:",
    "product-company": "Company of the product:",
}
WORDS = {
    "antonym": "Opposite:",
    "english-french": "English to French:",
    "english-german": "English to German:",
    "english-spanish": "English to Spanish:",
    "present-past": "Past tense:",
    "sentiment": "Sentiment (positive, negative):",
    "singular-plural": "Plural:",
    "synonym": "Synonym:",
}
SENTIMENTS = ("negative", "positive")


def draw_letters(request: TaskRequest) -> DrawnTask:
    """A word, and one of its letters or its length."""
    return _draw(request, "letters", LETTERS)


def draw_lists(request: TaskRequest) -> DrawnTask:
    """Three words, and one of them."""
    return _draw(request, "lists", LISTS)


def draw_facts(request: TaskRequest) -> DrawnTask:
    """The name of a place, a person or a thing, and what the world knows of it."""
    return _draw(request, "facts", FACTS)


def draw_words(request: TaskRequest) -> DrawnTask:
    """A word and another that a dictionary or a grammar gives for it; of sentiment a sentence and its judgement."""
    return _draw(request, "words", WORDS)


def _draw(request: TaskRequest, family: str, instructions: dict[str, str]) -> DrawnTask:
    if request.variant not in instructions:
        known = ", ".join(f"{family}-{variant}" for variant in instructions)
        raise ConfigError(f'expected a task of the family {family}, found "{request.name}"; known: {known}')
    path = data_folder(request, f"{FOLDER}/{family}") / f"{request.variant}.jsonl"
    if not path.is_file():
        raise ConfigError(f'task "{request.name}": expected the file {path}, found none')
    examples = short_examples(read_splits(path, ("train",))["train"], family)
    splits = assign_splits(shuffled(examples, request), _content, FOLDER, request)
    pool = f"half, a quarter and a quarter of {len(examples)} with at most {LONGEST[family]} bytes"
    return DrawnTask(
        checked_splits(splits, request, pool),
        instructions[request.variant],
        f"{FOLDER}/{family}/{path.name}",
        SENTIMENTS if request.variant == "sentiment" else (),
    )


def _content(example: Example) -> str:
    return example.input.casefold()
