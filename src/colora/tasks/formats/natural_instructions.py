"""The file format of Natural Instructions (Mishra et al. 2022; Wang et al. 2022), as published."""

from typing import Any, TypeGuard

from colora.tasks.faults import Faults, describe, quoted

__all__ = ["is_natural_instructions", "natural_instructions_rows"]


_DEMONSTRATIONS = ("Positive Examples", "Negative Examples")
_ABSENT = ("", "-")
"""What stands for demonstrations in published files that have none."""


def is_natural_instructions(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is one task of the collection."""
    return isinstance(value, dict) and "Instances" in value


def natural_instructions_rows(file: str, value: dict[str, Any], faults: Faults) -> list[tuple[str, Any]]:
    """The instances with their JSON paths; the definition becomes each one's instruction.

    The positive and negative examples are demonstrations for few-shot prompts: they are not used here, but checked,
    for where they are damaged the rest may be, too. A file without a definition is read: a source may give the
    instruction itself.
    """
    definition, instances = value.get("Definition"), value["Instances"]
    if isinstance(definition, list) and all(isinstance(part, str) for part in definition):
        definition = "\n".join(definition)  # later releases publish a list of one
    if definition is not None and not isinstance(definition, str):
        faults.add(file, f"expected text or a list of texts, found {describe(definition)}", "Definition")
        definition = None
    if not isinstance(instances, list):
        faults.add(file, f"expected a list, found {describe(instances)}", "Instances")
        return []
    for key in _DEMONSTRATIONS:
        _check_demonstrations(file, key, value.get(key, []), faults)
    rows: list[tuple[str, Any]] = []
    for index, item in enumerate(instances):
        if isinstance(item, dict) and definition is not None:
            item = {"instruction": definition, **item}
        rows.append((f"Instances[{index}]", item))
    return rows


def _check_demonstrations(file: str, key: str, found: object, faults: Faults) -> None:
    """Each has an input and an output, a text or a list of texts, and perhaps an explanation."""
    if found is None or found in _ABSENT:
        return
    if not isinstance(found, list):
        faults.add(file, f"expected a list, found {describe(found)}", key)
        return
    for index, item in enumerate(found):
        place = f"{key}[{index}]"
        if item in _ABSENT:
            continue
        if not isinstance(item, dict):
            faults.add(file, f"expected an object, found {describe(item)}", place)
            continue
        for field in ("input", "output", "explanation"):
            if field not in item:
                if field != "explanation":
                    faults.add(file, f'expected a field "{field}", found {quoted(item)}', place)
                continue
            value = item[field]
            texts = value if field == "output" and isinstance(value, list) else [value]
            if not texts or not all(isinstance(text, str) for text in texts):
                expected = "text or a list of texts" if field == "output" else "text"
                faults.add(file, f'expected {expected} in "{field}", found {describe(value)}', f"{place}.{field}")
