"""JSON that people write: the same key twice in one object is a fault, and so is what a reader's limits would hide."""

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["JsonFault", "parse_json"]

MOST_DIGITS = 4000
"""Of an integer; Python itself refuses more than 4300."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', re.DOTALL)


class JsonFault(ValueError):
    """Text that is not JSON, or JSON that says one thing twice. `line` and `column` count from 1; 0: not known."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        self.message, self.line, self.column = message, line, column
        super().__init__(message)


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        JsonFault: no JSON, with line and column; an object with the same key twice, with the line of the second;
            brackets nested too deeply, or a number of more than `MOST_DIGITS` digits.

    Examples:
        >>> try:
        ...     parse_json('{"a": 1,\\n "a": 2}')
        ... except JsonFault as fault:
        ...     print(fault.line, fault)
        2 the key "a" twice in one object, in lines 1 and 2
    """
    repeated = False

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        found = dict(pairs)
        repeated = repeated or len(found) < len(pairs)
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise JsonFault(error.msg, error.lineno, error.colno) from None
    except RecursionError:
        raise JsonFault("brackets nested too deeply") from None
    if repeated:
        key, first, second = next(_repeated(text))
        place = f", in lines {first} and {second}" if first != second else ""
        raise JsonFault(f'the key "{key[:80]}" twice in one object{place}', second)
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise JsonFault(f"a number of {len(digits)} digits")
    return int(digits)


def _repeated(text: str) -> Iterator[tuple[str, int, int]]:
    """The keys that stand twice in an object of a valid JSON text, with both lines."""
    objects: list[dict[str, int]] = []
    last, last_line, line, counted = '""', 1, 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", counted, token.start())
        counted = token.start()
        match token[0]:
            case "{" | "[":
                objects.append({})
            case "}" | "]":
                objects.pop()
            case ":":
                key = json.loads(last)
                if key in objects[-1]:
                    yield key, objects[-1][key], last_line
                objects[-1][key] = last_line
            case string:
                last, last_line = string, line
