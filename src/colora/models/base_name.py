"""The name of a base model, and what can be wrong with it, told from the name alone: nothing heavy is imported."""

import re
from difflib import get_close_matches

__all__ = ["DEFAULT_BASE", "DEFAULT_HUB_ID", "hub_id_fault"]

DEFAULT_BASE = "smollm2"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def hub_id_fault(name: str) -> str | None:
    """Why a name that is no folder and no file here is no id on the hub either; None if it may be one.

    Examples:
        >>> hub_id_fault("smollm")
        "'smollm' is no folder and no model that is known here; did you mean 'smollm2'?"
    """
    if name.endswith(".gguf") or not _HUB_ID.fullmatch(name):
        return f"expected a folder, a .gguf file or a hub id such as {DEFAULT_HUB_ID!r}, got {name!r}"
    if name != DEFAULT_BASE and "/" not in name and get_close_matches(name.lower(), [DEFAULT_BASE], cutoff=0.8):
        return f"{name!r} is no folder and no model that is known here; did you mean {DEFAULT_BASE!r}?"
    return None
