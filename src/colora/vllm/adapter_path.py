"""What a request of vLLM carries to its workers: which core, and of which version, in place of a LoRA's folder.

vLLM keeps what it computed of a prompt by the name and the path of the adapter. A changed core has another version,
and so another path: nothing that was computed with the old one is found again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["CorePath"]

SCHEME = "colora:"


@dataclass(frozen=True)
class CorePath:
    """A task's core.

    Attributes:
        task: its name.
        version: what no other state of the task has had since the server began.
        file: where it is; None: in the bank.
    """

    task: str
    version: str = ""
    file: str | None = None

    def __str__(self) -> str:
        return SCHEME + json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def parse(text: str) -> "CorePath | None":
        """What `str` wrote; None for the path of anything else."""
        return CorePath(**json.loads(text.removeprefix(SCHEME))) if text.startswith(SCHEME) else None

    def content(self) -> bytes | None:
        """The core file; None if the core is in the bank."""
        return None if self.file is None else Path(self.file).read_bytes()
