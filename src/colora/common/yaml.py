"""YAML files that people write: read with overrides, and every fault told with its place.

A key that stands twice in one mapping is a fault: YAML forbids it, and PyYAML takes the second without a word.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from colora.errors import ConfigError

__all__ = ["YamlFile", "near", "read_yaml", "tell_fault", "told_line"]

Place = Sequence[str | int]
"""Where a value is: the keys and list positions that lead to it."""


class YamlFile(dict[str, Any]):
    """The mapping that a YAML file holds, which also knows its lines.

    Args:
        value: the mapping.
        root: the node of the file that it was made of.
    """

    def __init__(self, value: Mapping[str, Any], root: yaml.Node) -> None:
        super().__init__(value)
        self._root = root
        self._overridden: list[list[str]] = []

    def override(self, text: str) -> None:
        """Apply "key=value", with a dotted key. Raises ConfigError."""
        self._overridden.append(_apply(self, text))

    def line(self, place: Place) -> int | None:
        """The line of a value, or of what should have it; None if an override gave it.

        Parts of the place that the file does not have are left out: pydantic adds the names of its own types.
        """
        names = [str(part) for part in place]
        if any(names[: len(key)] == key for key in self._overridden):
            return None
        node, line = self._root, None
        for part, name in zip(place, names, strict=True):
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if key.value == name]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                pairs = [(one, one) for one in node.value[part : part + 1]]
            else:
                pairs = []
            for key, value in pairs:
                node, line = value, key.start_mark.line + 1
        return line


def read_yaml(path: Path, overrides: Sequence[str], needs: str) -> YamlFile:
    """The mapping that a YAML file holds, with "key=value" overrides applied; `needs` names what it must have.

    Raises:
        ConfigError: a file or an override that cannot be read, or a key that stands twice, with its place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        value, root = _load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not YAML: the character #x{error.character:04x}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        named = path.suffix.lower() in (".yaml", ".yml")
        wanted = "" if named else f"; expected a YAML file with at least {needs}"
        problem = str(getattr(error, "problem", error))
        raise ConfigError(f"{place}: not YAML: {problem}{_layout_hint(problem)}{wanted}") from error
    except ValueError as error:  # a day that no calendar has, for instance
        raise ConfigError(f"{path}: not YAML: a value that cannot be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not YAML that can be read: nested too deeply") from error
    if not isinstance(value, dict) or root is None:
        raise ConfigError(f"{path}: expected a mapping with at least {needs}, found {_kind(value)}")
    file = YamlFile(value, root)
    for override in overrides:
        file.override(override)
    return file


_LAYOUT = {
    r"found character '\\t'": "indent with spaces, not with tabs",
    r"expected <block end>": "check the indentation of this line and of those before it; use spaces",
    r"mapping values are not allowed": "check the indentation of this line and of those before it, and put a text "
    "that has ': ' in it in double quotes",
    r"could not find expected ':'": "this line or one before it is no KEY: VALUE, with a space after the colon",
}
"""What PyYAML says of lines that are not where they should be, as expressions, and what to do about it."""


def _layout_hint(problem: str) -> str:
    return next((f"; {hint}" for pattern, hint in _LAYOUT.items() if re.search(pattern, problem)), "")


def near(name: str, known: Collection[str]) -> str:
    """What to add to "unknown": "; did you mean 'x'?" if a known name is like this one, else nothing."""
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def tell_fault(
    error: Mapping[str, Any],
    fields: Collection[str],
    whole: str,
    line: Callable[[Place], int | None] | None = None,
    hint: str = "",
) -> str:
    """One of pydantic's errors as "place: expected, found (line 7)".

    Args:
        error: of `ValidationError.errors`.
        fields: the known ones.
        whole: names the file.
        line: of a value, see `YamlFile.line`; None: no line is told.
        hint: what to do, beginning with "; ".
    """
    return _told(error, fields, whole) + hint + told_line(None if line is None else line(error["loc"]))


def told_line(number: int | None) -> str:
    """What stands behind a fault: " (line 7)", or nothing."""
    return "" if number is None else f" (line {number})"


def _told(error: Mapping[str, Any], fields: Collection[str], whole: str) -> str:
    place = ".".join(str(part) for part in error["loc"] if part != "[key]") or whole
    if error["type"] == "extra_forbidden":
        return f"{place}: no such field{near(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] == "model_type":
        return f"{place}: expected a mapping, found {_kind(error['input'])}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = error.get("input")
    shown = "" if isinstance(found, dict | list) or error["type"] == "value_error" else f", found {found!r}"
    return f"{place}: {message.replace('input should be', 'expected')}{shown}"


class _RepeatedKeyError(yaml.MarkedYAMLError):
    """A key that stands twice in one mapping."""


def _load(text: str) -> tuple[Any, yaml.Node | None]:
    """As `yaml.safe_load`, with the node that the value was made of. Raises _RepeatedKeyError besides."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _check_keys(node, loader)
        return loader.construct_document(node), node
    finally:
        loader.dispose()


def _check_keys(root: yaml.Node, loader: yaml.SafeLoader) -> None:
    # Before the loader merges what `<<` names: a mapping may well override what it merges.
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue  # constructing it will fail: only scalars can name a field
                merge = key.tag == "tag:yaml.org,2002:merge"
                name, line = "<<" if merge else loader.construct_object(key), key.start_mark.line + 1
                if name in lines:
                    what = "merge several as <<: [*a, *b]" if merge else "remove one of them"
                    found = f"the key {str(name)!r} stands twice in one mapping, in lines {lines[name]} and {line}"
                    raise _RepeatedKeyError(problem=f"{found}; {what}", problem_mark=key.start_mark)
                lines[name] = line


def _apply(value: dict[str, Any], override: str) -> list[str]:
    """Change a value as an override says. Returns the parts of its key."""
    key, found, text = override.partition("=")
    if not found or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, such as training.lr=1e-3")
    try:
        new, _ = _load(text)
    except _RepeatedKeyError as error:
        raise ConfigError(f"override {override!r}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value{_quotes(key, text)}") from error
    here: Any = value
    *parents, last = key.strip().split(".")
    for part in parents:
        if isinstance(here, list):
            here = here[_place(here, part, override)]
        else:
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
        if not isinstance(here, dict | list):
            raise ConfigError(f"override {override!r}: {part!r} holds {_kind(here)}, which has no fields")
    here[_place(here, last, override) if isinstance(here, list) else last] = new
    return [*parents, last]


def _quotes(key: str, text: str) -> str:
    # A shell takes the outer quotes of 'prompt=Q: {input}' away, and YAML reads a mapping.
    return f"; write a text like this in double quotes, as in '{key}=\"...\"'" if set(text) & set(":{") else ""


def _place(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"override {override!r}: expected a number from 0 to {len(items) - 1}, found {part!r}")
    return int(part)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]
