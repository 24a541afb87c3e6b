"""What the environment tells the plugin."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from colora.errors import ConfigError

__all__ = ["BANK", "KEYS", "STATE", "WAY", "PluginSettings"]

BANK = "COLORA_BANK"
"""The environment variable that names the bank, or the run around it; without it the plugin does nothing."""
STATE = "COLORA_STATE"
"""Names the folder of cores that come while the server runs."""
KEYS = "COLORA_KEYS"
"""Names the file of keys."""
WAY = "COLORA_VLLM"
"""How tasks get into vLLM: "shared", "folders", or "auto"."""
WAYS = ("auto", "shared", "folders")


@dataclass(frozen=True)
class PluginSettings:
    """What a process of vLLM is told.

    Attributes:
        bank: folder of a bank or of the run around it.
        state: folder of cores that come while the server runs; None: they last as long as the server.
        keys: file of keys; None: every request may do everything.
        way: "shared": A and B held once, which needs a known version of vLLM; "folders": a plain LoRA for each task
            that is asked for, written on demand; "auto": the first where it can be had.
    """

    bank: Path
    state: Path | None = None
    keys: Path | None = None
    way: str = "auto"

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "PluginSettings":
        """Raises ConfigError for a way that there is not."""
        way = environment.get(WAY, "auto")
        if way not in WAYS:
            raise ConfigError(f"{WAY}: expected one of {', '.join(WAYS)}, found {way!r}")
        state, keys = (Path(path) if (path := environment.get(name)) else None for name in (STATE, KEYS))
        return PluginSettings(Path(environment[BANK]), state, keys, way)
