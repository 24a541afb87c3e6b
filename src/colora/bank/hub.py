"""Banks on the Hugging Face hub, by the name that the hub's own file system has for them: `hf://ORG/BANK`.

A bare `ORG/BANK` is a folder, and never asked for elsewhere: a folder's name with a slip of the pen would otherwise be
a stranger's bank. What is fetched lies in the hub's cache and is used as any other bank, but not changed in place.
"""

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from colora.errors import BankFileError, ConfigError

__all__ = ["FILES", "cached_id", "check_changeable", "fetched", "is_hub_id", "is_hub_name"]

FILES = ("adapter_config.json", "adapter_model.safetensors", "bank.json", "README.md", "cores/*")
"""What is fetched of a repository: no pickle, and nothing that is no bank's."""
_NAME = re.compile(r"hf:/{1,2}(?P<repo>[^/@]+/[^/@]+?)(@(?P<revision>.+))?/?")  # a Path has one slash of two
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(path: str | Path) -> bool:
    """Whether a bank is named by its place on the hub: `hf://ORG/BANK`, or `hf://ORG/BANK@REVISION`."""
    return str(path).startswith("hf:/")


def is_hub_id(name: str) -> bool:
    """Whether a text could be the id of a repository, `ORG/NAME`."""
    return _ID.fullmatch(name) is not None


def fetched(name: str | Path) -> Path:
    """The folder in the hub's cache with the files of a bank; they are fetched if they are not there.

    `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` count as for everything that comes from the hub.

    Raises:
        BankFileError: no name of a bank on the hub, no such repository, or it cannot be had.
    """
    found = _NAME.fullmatch(str(name))
    if found is None:
        raise BankFileError(f"{name}: expected hf://ORG/BANK or hf://ORG/BANK@REVISION, found no such name")
    try:
        folder = snapshot_download(found["repo"], revision=found["revision"], allow_patterns=list(FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BankFileError(
            f"hf://{found['repo']}: cannot be downloaded from the hub "
            f"({str(error).strip() or type(error).__name__}); check that the name is right, that the hub "
            "can be reached (HF_HUB_OFFLINE is not set), and that HF_TOKEN may read a private repository"
        ) from error
    return Path(folder)


def cached_id(folder: Path) -> str | None:
    """The id on the hub of what a folder in the hub's cache is a copy of; None for any other folder."""
    cache, folder = Path(constants.HF_HUB_CACHE).resolve(), folder.resolve()
    if cache not in folder.parents:
        return None
    kind, *parts = folder.relative_to(cache).parts[0].split("--")  # models--ORG--NAME
    return "/".join(parts) if kind == "models" else None


def check_changeable(folder: Path) -> None:
    """See that a bank that is to be changed in place is no copy in the hub's cache.

    Raises:
        ConfigError: it is one.
    """
    if (name := cached_id(folder)) is not None:
        raise ConfigError(
            f"hf://{name}: a bank on the hub is not changed in place; name a folder for the changed bank (output=..., "
            f"--output), or fetch it first, `hf download {name} --local-dir bank`, and push it when it is changed"
        )
