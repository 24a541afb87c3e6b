"""What the environment tells the plugin."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from colora.errors import ConfigError

__all__ = ["BANK", "KEYS", "PAGE", "STATE", "WAY", "PluginSettings"]

BANK = "COLORA_BANK"
"""The environment variable that names the bank, or the run around it; without it the plugin does nothing."""
STATE = "COLORA_STATE"
"""Names the folder of cores that come while the server runs."""
KEYS = "COLORA_KEYS"
"""Names the file of keys."""
PAGE = "COLORA_PAGE"
"""Whether browsers get a page to try the tasks: "on", or "off"."""
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
        page: whether browsers get a page to try the tasks at the root of the server.
    """

    bank: Path
    state: Path | None = None
    keys: Path | None = None
    way: str = "auto"
    page: bool = True

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "PluginSettings":
        """Raises ConfigError for a way that there is not, and a page that is neither on nor off."""
        way = environment.get(WAY, "auto")
        if way not in WAYS:
            raise ConfigError(f"{WAY}: expected one of {', '.join(WAYS)}, found {way!r}")
        page = environment.get(PAGE, "on")
        if page not in ("on", "off"):
            raise ConfigError(f"{PAGE}: expected on or off, found {page!r}")
        state, keys = (Path(path) if (path := environment.get(name)) else None for name in (STATE, KEYS))
        return PluginSettings(Path(environment[BANK]), state, keys, way, page == "on")
