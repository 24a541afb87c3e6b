"""The file format of Natural Instructions (Mishra et al. 2022; Wang et al. 2022), as published."""

from typing import Any, TypeGuard

from colora.tasks.faults import Faults, describe

__all__ = ["is_natural_instructions", "natural_instructions_rows"]


def is_natural_instructions(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is one task of the collection."""
    return isinstance(value, dict) and "Instances" in value


def natural_instructions_rows(file: str, value: dict[str, Any], faults: Faults) -> list[tuple[str, Any]]:
    """The instances with their JSON paths; the definition becomes each one's instruction.

    The positive and negative examples are demonstrations for few-shot prompts, which are not used here. A file
    without a definition is read too: a source may give the instruction itself.
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
    rows: list[tuple[str, Any]] = []
    for index, item in enumerate(instances):
        if isinstance(item, dict) and definition is not None:
            item = {"instruction": definition, **item}
        rows.append((f"Instances[{index}]", item))
    return rows
