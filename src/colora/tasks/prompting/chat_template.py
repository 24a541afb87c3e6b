"""Conversations through a tokenizer's chat template, which may lose nothing of what was said.

A template is a program of the model's maker: it may expect a text or a list of content parts, raise, drop or change
texts. It is tried once with a question and an answer; then every prompt is compared with the template's own frame.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from weakref import WeakKeyDictionary

from colora.errors import ConfigError
from colora.tasks.tokenizer import Tokenizer

__all__ = ["ChatFormat", "chat_format", "prompt_text"]

# Capitals, spaces, lines, quotes, brackets, an accent and some length: whatever changes or cuts texts, changes these.
_QUESTION = "A first Question:  3 < 5?\n    \"é\" & 'ß' " + "wOrd " * 2000 + "End"
_ANSWER = "An Answer:  5 > 3.\n    \"ü\" & 'ñ' " + "wOrd " * 2000 + "End"
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_CLOSED_THOUGHT = "</think>"


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer's chat template does with a conversation.

    Attributes:
        template: the template, with today's date in place of the clock.
        parts: whether it takes a turn's content as a list of parts, as those of vision-language models do.
        header: what it puts between a question and its answer although the generation prompt lacks it; empty for
            templates that know `add_generation_prompt`.
        tail: what it puts after an answer.
        notes: what users should know before they train with it.
    """

    template: str
    parts: bool
    header: str
    tail: str
    notes: tuple[str, ...]
    frames: dict[int, tuple[str, ...] | None] = field(default_factory=dict, compare=False, repr=False)


_KNOWN: WeakKeyDictionary[Tokenizer, tuple[str, ChatFormat]] = WeakKeyDictionary()


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """Try the tokenizer's chat template, once for each template and day.

    The clock of a template (`strftime_now`) stands at midnight, so that a prompt is the same all day.

    Raises:
        ConfigError: the template raises, loses the question or the answer, or gives another prompt at every call.
    """
    template = _source(tokenizer)
    today = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0)
    frozen = _at(template, today)
    key, known = _KNOWN.get(tokenizer, ("", None))
    if known is None or key != frozen:
        known = _tried(tokenizer, frozen, _at(template, datetime(1999, 12, 31)))
        _KNOWN[tokenizer] = (frozen, known)
    return known


def prompt_text(turns: Sequence[str], tokenizer: Tokenizer) -> str:
    """The prompt after these turns, the user's first and last, with every text whole.

    Where a template trims a text, the text is put back as it was. What an assistant's earlier turn has up to its last
    `</think>` may be left out, as reasoning models do.

    Raises:
        ConfigError: see `chat_format`; or the template loses some of these very texts.
    """
    chat = chat_format(tokenizer)
    rendered = _render(turns, tokenizer, chat.template, chat.parts)
    frame = _frame(len(turns), tokenizer, chat)
    if frame is not None and (whole := _filled(frame, turns, rendered)) is not None:
        return whole + chat.header
    skeleton = "".join(frame or ())
    needed = [
        (turn.rpartition(_CLOSED_THOUGHT)[2] if number % 2 else turn).strip() for number, turn in enumerate(turns)
    ]
    for number, text in enumerate(needed):
        if text and rendered.count(text) < skeleton.count(text) + needed.count(text):
            whose = "assistant's" if number % 2 else "user's"
            raise _error(tokenizer, f'loses text of the {whose} turn {number + 1}, "{text[:40]}"')
    return rendered + chat.header


def _at(template: str, time: datetime) -> str:
    """The template with this time in place of the clock, where the clock's format stands in the call."""
    return _NOW.sub(lambda found: repr(time.strftime(found[2])), template)


def _tried(tokenizer: Tokenizer, template: str, another_day: str) -> ChatFormat:
    """Args: the template of today, and that of another day."""
    parts = _takes_parts(tokenizer, template)
    prompt = _render([_QUESTION], tokenizer, template, parts)
    if prompt != _render([_QUESTION], tokenizer, template, parts):
        raise _error(tokenizer, "gives another prompt at every call (a clock, or chance)")
    answered = _render([_QUESTION, _ANSWER], tokenizer, template, parts, generation=False)
    before, found, tail = answered.rpartition(_ANSWER)
    if not found:
        raise _error(tokenizer, "loses or changes the assistant's answer")
    start, found, middle = before.rpartition(_QUESTION)
    if not found:
        raise _error(tokenizer, "loses or changes the user's text where an answer follows it")
    head, _, generation = prompt.rpartition(_QUESTION)
    if head != start:
        raise _error(tokenizer, "begins a prompt in another way where the answer follows")
    header, notes = "", []
    if middle.startswith(generation):
        rest = middle.removeprefix(generation)
        if rest.strip() and prompt == _render([_QUESTION], tokenizer, template, parts, generation=False):
            header = rest  # it ignores add_generation_prompt: answers would stand where no assistant's turn has begun
    elif not generation.startswith(middle.rstrip()):  # a generation prompt may also open the model's reasoning
        notes.append(
            f"the chat template of {_name(tokenizer)} ends a prompt with {generation[-60:]!r}, but puts "
            f"{middle[-60:]!r} before an answer; training and generation here use the first"
        )
    # Where its format is computed, the clock still goes, and nobody knows how fast.
    if "strftime_now(" in template or _render([_QUESTION], tokenizer, another_day, parts) != prompt:
        notes.append(
            f"the chat template of {_name(tokenizer)} writes today's date into every prompt: prompts of other "
            "days differ from these, also where a run is gone on with. To avoid that write a fixed date into the "
            "template, or set chat_template: false"
        )
    return ChatFormat(template, parts, header, tail, tuple(notes))


def _takes_parts(tokenizer: Tokenizer, template: str) -> bool:
    """Whether the template wants content parts; a text is tried first, for most take one, and many both."""
    try:
        plain = _render([_QUESTION], tokenizer, template, parts=False)
        problem = _error(tokenizer, "loses or changes the user's text")
    except ConfigError as error:
        plain, problem = "", error
    if _QUESTION in plain:
        return False
    try:
        listed = _render([_QUESTION], tokenizer, template, parts=True)
    except ConfigError:
        raise problem from None
    # A template that prints whatever the content is prints the list itself.
    if _QUESTION in listed and not re.search(r"""(["'])type\1""", listed.replace(_QUESTION, ""), re.IGNORECASE):
        return True
    raise problem


def _frame(turns: int, tokenizer: Tokenizer, chat: ChatFormat) -> tuple[str, ...] | None:
    """What the template puts before, between and after so many turns; None if it has each text not just once."""
    if turns not in chat.frames:
        marks = [f"Mark-{number}-Here" for number in range(turns)]
        rest, pieces = _render(marks, tokenizer, chat.template, chat.parts), []
        once = all(rest.count(mark) == 1 for mark in marks)
        for mark in marks:
            piece, _, rest = rest.partition(mark)
            pieces.append(piece)
        chat.frames[turns] = (*pieces, rest) if once else None
    return chat.frames[turns]


def _filled(frame: Sequence[str], turns: Sequence[str], rendered: str) -> str | None:
    """The frame with these turns in it, if that is what was rendered, apart from white space around the turns."""
    position, whole = len(frame[0]), frame[0]
    if not rendered.startswith(frame[0]):
        return None
    for turn, piece in zip(turns, frame[1:], strict=True):
        forms = (turn, turn.rstrip(), turn.lstrip(), turn.strip())
        form = next((form for form in forms if rendered.startswith(form + piece, position)), None)
        if form is None:
            return None
        position += len(form + piece)
        whole += turn + piece
    return whole if position == len(rendered) else None


def _render(turns: Sequence[str], tokenizer: Tokenizer, template: str, parts: bool, generation: bool = True) -> str:
    conversation: list[dict[str, str | list[dict[str, str]]]] = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}] if parts else text}
        for number, text in enumerate(turns)
    ]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=generation, chat_template=template
        )
    except Exception as error:  # a template is a program: it raises jinja2's errors and any of Python's
        raise _error(tokenizer, f"raises {type(error).__name__}: {error}") from error
    return str(text)


def _source(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, none of them the default
        raise _error(tokenizer, f"cannot be chosen: {error}") from error


def _name(tokenizer: Tokenizer) -> str:
    """What the tokenizer is called; of a folder the last part alone, for a server's clients read it as well."""
    name = tokenizer.name_or_path
    return repr(Path(name).name if Path(name).is_absolute() else name)


def _error(tokenizer: Tokenizer, what: str) -> ConfigError:
    return ConfigError(
        f"the chat template of {_name(tokenizer)}: expected one that renders a user's turn and the assistant's "
        f"answer whole, found one that {what}. Set chat_template: false to prompt with the plain text, or mend the "
        "template (chat_template.jinja or tokenizer_config.json of the base)"
    )
