"""`CoLoRAConfig`: what a task bank is, as a PEFT config."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from peft import PeftConfig

from colora.common.files import NAME_RULE, fits_name_rule
from colora.errors import BankFileError, ConfigError

__all__ = [
    "ADAPTER_NAME",
    "COLORA",
    "FORMAT_VERSION",
    "INIT_WORDS",
    "ROWS_VERSION",
    "CoLoRAConfig",
    "InitWord",
    "check_task_name",
]

InitWord = Literal["gaussian", "orthogonal"]
INIT_WORDS: tuple[InitWord, ...] = get_args(InitWord)
"""What `init_weights` may say beside true and false: other distributions of A."""
ADAPTER_NAME = "default"
"""What a bank is called on its model where nobody says otherwise, as PEFT calls the first adapter."""
FORMAT_VERSION = 1
"""Version of the saved form in which the cores are stacks among the tensors, which PEFT reads."""
ROWS_VERSION = 2
"""Version of the form in which they are rows in files of their own. A bank with a higher one was written by a newer
CoLoRA and is refused."""


class _PeftTypeName(str):
    """PEFT's `PeftType` is a closed enum; its tables take any hashable that is a string and has a `value`."""

    @property
    def value(self) -> str:
        return str(self)


COLORA = _PeftTypeName("COLORA")


def check_task_name(name: object) -> str | None:
    """Why `name` cannot name a task, or None if it can."""
    if not isinstance(name, str):
        return f"a task name must be a string, found {type(name).__name__}"
    if not fits_name_rule(name):
        return f"expected a task name of {NAME_RULE}, found {name!r}"
    return None


@dataclass
class CoLoRAConfig(PeftConfig):
    """One bank of K tasks: factors A and B shared per layer, one r × r core per task and layer (arXiv:2602.07218).

    The weight of task k is W0 + s · B Λ_k A with s = lora_alpha / r, or lora_alpha / √r with `use_rslora`.

    Examples:
        >>> CoLoRAConfig(r=8, tasks=["billing", "legal"]).scaling
        1.0

    Raises:
        ConfigError: naming every field that is out of range.
        BankFileError: if `format_version` is newer than this library can read, or that of cores in rows.
    """

    r: int = field(default=16, metadata={"help": "Rank of the shared factors; a core has r × r numbers per layer."})
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale: the update is multiplied by lora_alpha / r (or / √r); r by default."}
    )
    core_rank: int | None = field(
        default=None,
        metadata={
            "help": "Rank of the cores of tasks that are added; r by default. Lower where A and B have further "
            "directions that were added for single tasks."
        },
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / √r instead of lora_alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of A while training."})
    target_modules: list[str] | str | None = field(
        default="all-linear",
        metadata={
            "help": "Module names or a regular expression, or 'all-linear' for all but the output layer and what a "
            "bank cannot adapt, which is told."
        },
    )
    target_parameters: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fused weights of a mixture of experts to adapt as well, by name, such as 'experts.gate_up_proj' "
            "and 'experts.down_proj': every expert gets factors and cores of its own."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Module names or a regular expression to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the only layers to adapt; None adapts all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, if it is not the usual 'layers' or 'h'."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train in full and share by all tasks, such as a head."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["default"],
        metadata={"help": "Names of the tasks, in the order of the stacked cores; task id k is tasks[k]."},
    )
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "True: A Kaiming uniform, B zero, so that training starts at the base model. "
            "'gaussian' or 'orthogonal': the same with another A. False: everything random (for tests)."
        },
    )
    init_rotation: float = field(
        default=0.5,
        metadata={
            "help": "Share of the r directions in which each core starts as a rotation of its own, so that what tasks "
            "want differently does not cancel while B is small; 0: all cores start at the identity."
        },
    )
    bias: str = field(default="none", metadata={"help": "Only 'none': biases stay those of the base model."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the saved form."})
    base_identity: dict[str, Any] | None = field(
        default=None, metadata={"help": "Shapes and a sketch of the base weights; filled when the bank is created."}
    )
    weights_sha256: str | None = field(
        default=None, metadata={"help": "Digest of the saved tensors; filled when the bank is saved."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.format_version, int) and self.format_version > ROWS_VERSION:
            raise BankFileError(
                f"this bank has format version {self.format_version}, but this CoLoRA reads up to {ROWS_VERSION}; "
                "upgrade colora to load it"
            )
        if self.format_version == ROWS_VERSION:
            raise BankFileError(
                f"the cores of this bank are in rows (format version {ROWS_VERSION}), which PEFT and transformers do "
                "not load: use colora.load_bank(FOLDER), or colora.attach_bank(base_model, FOLDER)"
            )
        super().__post_init__()
        self.peft_type = COLORA
        # No field: what the tensors to be loaded must match, once. `weights_sha256` then follows what is saved.
        self.unchecked_sha256 = self.weights_sha256
        self.loaded_from: str | None = None  # no field either: the folder that the bank in memory came from
        if self.lora_alpha is None:
            self.lora_alpha = self.r
        if isinstance(self.tasks, Sequence) and not isinstance(self.tasks, str):
            self.tasks = list(self.tasks)
        if isinstance(self.target_modules, set | tuple):
            self.target_modules = sorted(self.target_modules)
        if faults := self._faults():
            raise ConfigError("this CoLoRAConfig cannot be used:", faults)

    @property
    def rank_of_new(self) -> int:
        """Rank of the cores of tasks that are added."""
        return self.core_rank or self.r

    def alpha_of(self, rank: int) -> float:
        """The `lora_alpha` with which an adapter of this rank has the same factor s."""
        if rank == self.r and self.lora_alpha is not None:
            return self.lora_alpha
        return self.scaling * (rank**0.5 if self.use_rslora else rank)

    def to_dict(self) -> dict[str, Any]:
        """As any config of PEFT's. Without `core_rank` it is that of earlier versions, which can read it."""
        fields: dict[str, Any] = super().to_dict()
        return {name: value for name, value in fields.items() if name != "core_rank" or value is not None}

    @property
    def scaling(self) -> float:
        """The factor s of the update."""
        return float(self.lora_alpha or self.r) / (self.r**0.5 if self.use_rslora else self.r)

    def with_tasks(self, tasks: Sequence[str]) -> "CoLoRAConfig":
        """A copy for other tasks; the names of these, of which there may be very many, are not copied."""
        others = {one.name: getattr(self, one.name) for one in fields(self) if one.init and one.name != "tasks"}
        return type(self)(**copy.deepcopy(others), tasks=list(tasks))

    def _faults(self) -> list[str]:
        faults = []
        if not isinstance(self.r, int) or isinstance(self.r, bool) or self.r < 1:
            faults.append(f"r: expected a whole number of at least 1, found {self.r!r}")
        elif self.core_rank is not None and not (type(self.core_rank) is int and 1 <= self.core_rank <= self.r):
            faults.append(f"core_rank: expected a whole number from 1 to r={self.r}, found {self.core_rank!r}")
        if not isinstance(self.lora_alpha, int | float) or not 0 < self.lora_alpha < float("inf"):
            faults.append(f"lora_alpha: expected a number above 0, found {self.lora_alpha!r}")
        if not isinstance(self.lora_dropout, int | float) or not 0 <= self.lora_dropout < 1:
            faults.append(
                f"lora_dropout: expected a number from 0 up to (not including) 1, found {self.lora_dropout!r}"
            )
        if not isinstance(self.init_rotation, int | float) or not 0 <= self.init_rotation <= 1:
            faults.append(f"init_rotation: expected a share from 0 to 1, found {self.init_rotation!r}")
        if self.init_weights not in (True, False, *INIT_WORDS):
            words = " or ".join(map(repr, INIT_WORDS))
            faults.append(f"init_weights: expected true, false, {words}, found {self.init_weights!r}")
        if self.target_parameters is not None and not (
            isinstance(self.target_parameters, list)
            and all(isinstance(name, str) and name for name in self.target_parameters)
        ):
            faults.append(f"target_parameters: expected a list of names, found {self.target_parameters!r}")
        if self.bias != "none":
            faults.append(f"bias: expected 'none', found {self.bias!r}")
        if not isinstance(self.tasks, list) or not self.tasks:
            faults.append(f"tasks: expected a list of at least one task name, found {self.tasks!r}")
            return faults
        faults += [f"tasks: {fault}" for fault in map(check_task_name, self.tasks) if fault]
        if twice := [name for name, count in Counter(map(str, self.tasks)).items() if count > 1]:
            faults.append(f"tasks: every name may stand once, found more than once: {', '.join(sorted(twice))}")
        return faults
