"""JSON bodies of requests, read strictly: what was sent is understood, or refused by the name of its field."""

import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from colora.common.json_text import JsonFault, parse_json
from colora.errors import ConfigError
from colora.serving.routes.dependencies import TenantDep

__all__ = ["BodyError", "check_lines", "check_text", "json_body", "parse_body"]

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Body = TypeVar("Body", bound=BaseModel)


class BodyError(ConfigError):
    """A body that is no JSON or no text, or says one thing twice. `field`: where, None for all of it."""

    def __init__(self, field: str | None, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message)


def json_body(model: type[Body]) -> Callable[..., Awaitable[Body]]:
    """A dependency of endpoints: the body as `model`. It is read once the key has been checked.

    Raises:
        BodyError: see `parse_body`; or the body is not announced as JSON.
        RequestValidationError: naming every field that is not as it should be.
    """

    async def read(request: Request, tenant: TenantDep) -> Body:
        content = await request.body()
        # A page of another site can send anything else than this without asking first.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise BodyError(None, f"expected Content-Type: application/json, found {kind[:60] or 'none'}")
        try:
            return model.model_validate(parse_body(content))
        except ValidationError as error:
            faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_input=False)]
            raise RequestValidationError(faults) from None

    return read


def parse_body(content: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        BodyError: it is not UTF-8, too deep, has a number that is none, an object with a name that stands twice, or
            text with half of a surrogate pair, which no tokenizer reads.
        RequestValidationError: it is no JSON.
    """
    try:
        value = parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BodyError(None, f"expected UTF-8, found the byte 0x{content[error.start]:02x} in the body") from None
    except JsonFault as fault:
        if not fault.column:  # JSON, but none that says one thing
            raise BodyError(None, f"expected JSON that can be read, found {fault}") from None
        message = f"JSON decode error: {fault} in line {fault.line}, column {fault.column}"
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": message}]) from None
    for field, text in _texts(value):
        check_text(field, text)
    return value


def check_lines(content: bytes) -> None:
    """Refuse lines of JSON that are no text; what else may be wrong with them is for their reader to say.

    Raises:
        BodyError: naming the line, and the field if it is one.
    """
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = content.count(b"\n", 0, error.start) + 1
        raise BodyError(f"line {place}", f"expected UTF-8, found the byte 0x{content[error.start]:02x}") from None
    if not SURROGATE.search(content):
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if SURROGATE.search(line):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            for field, text in _texts(value):
                check_text(f"line {number}: {field}", text)


def check_text(field: str, text: str) -> None:
    """Refuse text that is none. Raises BodyError naming the field and the place."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        where = field.encode("ascii", "backslashreplace").decode()
        raise BodyError(where, f"expected text, found half of a surrogate pair, {found}, at {error.start}") from None


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """All strings with where they stand, the names of fields included; without recursion. Raises BodyError at NaN."""
    found: list[tuple[str, Any]] = [("", value)]
    while found:
        place, one = found.pop()
        if isinstance(one, str):
            yield place or "body", one
        elif isinstance(one, float) and not math.isfinite(one):
            raise BodyError(place or None, f"expected a number, found {one}")
        elif isinstance(one, dict):
            yield from ((f"{place}.{name}".lstrip("."), name) for name in one)
            found += [(f"{place}.{name}".lstrip("."), each) for name, each in one.items()]
        elif isinstance(one, list):
            found += [(f"{place}.{index}".lstrip("."), each) for index, each in enumerate(one)]
