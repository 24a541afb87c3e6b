"""Conversations of task files: the last assistant's turn is the answer, what came before is the prompt."""

from collections.abc import Callable, Mapping
from typing import Any

from colora.tasks.faults import describe, quoted
from colora.tasks.schema import Example

__all__ = ["conversation_example", "text_fault"]

_INSTRUCTING = ("system", "developer")
# What would change the prompt or the answer, and has no place in an example.
_OTHER_CONTENT = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "audio",
)


def text_fault(value: str) -> str | None:
    """What is wrong with the characters of a text, or None."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        return "a lone surrogate"  # JSON may escape half a character, and no tokenizer takes it
    if "\0" in value:
        return "the character NUL"  # where some tokenizers end a text, and some leave it out
    return None


def conversation_example(
    turns: object, label: str, instruction: str | None, fault: Callable[[str, str], None]
) -> Example | None:
    """The example that a list of {"role", "content"} says: system turns first, then user and assistant in turn.

    Args:
        turns: the list, as it was read.
        label: what it is called in faults.
        instruction: in place of the system turns, if not None.
        fault: notes what is wrong at a place below `label`.

    Returns:
        the example; None if there is a fault.
    """
    if not isinstance(turns, list | tuple) or not turns:
        fault(label, f'expected a list of turns in "{label}", found {describe(turns)}')
        return None
    roles: list[str] = []
    texts: list[str] = []
    for number, turn in enumerate(turns):
        place = f"{label}[{number}]"
        found = _turn(turn, place, fault)
        if found is None:
            return None
        role = "system" if found[0] in _INSTRUCTING else found[0]
        before = roles[-1] if roles else "system"
        wanted = {"system": ("system", "user"), "user": ("assistant",), "assistant": ("user",)}[before]
        if role not in wanted:
            fault(place, f'expected a turn of {" or ".join(wanted)} in "{place}", found one of {found[0]}')
            return None
        roles.append(role)
        texts.append(found[1])
    if turns[-1].get("weight") in (0, False):
        last = f"{label}[{len(turns) - 1}]"
        fault(last, f'expected an answer to train on in "{last}", found "weight": 0; leave the conversation out')
        return None
    if roles[-1] != "assistant":
        fault(label, f"expected a conversation that ends with the assistant's turn in \"{label}\", found {roles[-1]}'s")
        return None
    first = roles.index("user")
    said = instruction if instruction is not None else "\n\n".join(texts[:first]) or None
    return Example(texts[-2], (texts[-1],), said, tuple(texts[first:-2]))


def _turn(turn: object, place: str, fault: Callable[[str, str], None]) -> tuple[str, str] | None:
    """Role and text of a turn, or None with a fault."""
    if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
        found = f"an object with {quoted(turn)}" if isinstance(turn, Mapping) else describe(turn)
        fault(place, f'expected an object with "role" and "content" in "{place}", found {found}')
        return None
    role, text = turn["role"], _text(turn["content"])
    if role not in (*_INSTRUCTING, "user", "assistant"):
        found = f'"{role[:40]}"' if isinstance(role, str) else describe(role)
        fault(f"{place}.role", f'expected system, user or assistant in "{place}.role", found {found}')
        return None
    if other := [key for key in _OTHER_CONTENT if turn.get(key)]:
        fault(place, f'expected nothing but text in "{place}", found {quoted(other)}')
        return None
    if text is None or not text.strip():
        fault(f"{place}.content", f'expected text in "{place}.content", found {describe(turn["content"])}')
        return None
    if wrong := text_fault(text):
        fault(f"{place}.content", f'expected Unicode text in "{place}.content", found {wrong}')
        return None
    return role, text


def _text(content: Any) -> str | None:
    """A text, or the texts of content parts, one after the other; None if there is anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple) or not content:
        return None
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if len(found) == len(content) else None
