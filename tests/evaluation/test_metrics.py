"""Text metrics by their values, in several scripts."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from colora.errors import ColoraError
from colora.evaluation.metrics import UnicodeTokenizer, exact_match, rouge_l


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Dos d'abril, mañana!", ["dos", "d", "abril", "mañana"]),
        ("Ο Οδυσσεύς ΗΡΘΕ", ["ο", "οδυσσεύσ", "ηρθε"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("snake_case 2024-03-12", ["snake", "case", "2024", "03", "12"]),
        ("今天3月12日 ok", ["今", "天", "3", "月", "12", "日", "ok"]),
        ("หนึ่ง", ["ห", "นึ่", "ง"]),  # marks stay with their letter
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs and virama are marks, which \w would split at
        ("می\u200cخواهم", ["میخواهم"]),  # an invisible joiner is no boundary
        ("대한 민국", ["대한", "민국"]),
        ("I\u2764\ufe0fyou", ["i", "you"]),  # a mark after a symbol is no token
        ("…!?", []),
    ],
)
def test_tokens(text, tokens):
    assert UnicodeTokenizer().tokenize(text) == tokens


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("mañana", ["mañana"], 100.0),
        ("manana", ["mañana"], 0.0),
        ("Η Αθήνα είναι μεγάλη", ["η αθήνα είναι μικρή"], 75.0),
        ("今天很好", ["今天不好"], 75.0),
        ("a b", ["a b c d"], 100 * 2 * 1.0 * 0.5 / 1.5),
        ("a b", ["x", "a b c d", "a b c"], 80.0),  # the best reference, wherever it stands
        ("b a", ["a b"], 50.0),  # order counts
        ("", ["a"], 0.0),
        ("!", ["!"], 0.0),  # no tokens: documented
    ],
)
def test_rouge_l(prediction, references, score):
    assert rouge_l(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize("text", ["mañana será otro día", "Ελληνικά", "Việt Nam", "한국어"])
def test_composed_and_decomposed_text_are_equal(text):
    nfc, nfd = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    assert nfc != nfd
    assert rouge_l(nfc, [nfd]) == rouge_l(nfd, [nfc]) == 100.0
    assert exact_match(nfc, [nfd]) == exact_match(nfd, [nfc]) == 100.0


@given(st.lists(st.sampled_from("abc12"), max_size=8), st.lists(st.sampled_from("abc12"), max_size=8))
def test_ascii_words_score_as_with_the_stock_tokenizer(left, right):
    prediction, reference = " ".join(left), " ".join(right)
    stock = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, [reference]) == pytest.approx(100 * stock)


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        (" dos de març\n", ["dos de març"], 100.0),
        ("Dos de març", ["dos de març"], 0.0),
        ("dos  de març", ["dos de març"], 0.0),
        ("dos de març.", ["dos de març"], 0.0),
        ("b", ["a", "b"], 100.0),
        ("", ["a"], 0.0),
    ],
)
def test_exact_match(prediction, references, score):
    assert exact_match(prediction, references) == score


@pytest.mark.parametrize("metric", [rouge_l, exact_match])
def test_references_must_be_several_texts(metric):
    with pytest.raises(ColoraError, match="at least one reference"):
        metric("a", [])
    with pytest.raises(ColoraError, match="the single text 'abc'"):
        metric("a", "abc")
