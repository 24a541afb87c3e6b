"""The types that fields of a run file have, each with a message of its own."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from colora.evaluation.metrics import metric_options
from colora.tasks.prompting.templates import CHAT, NAMED_TEMPLATES, parse_template

__all__ = [
    "AUTO",
    "FEDERATED_AUTO",
    "Count",
    "Groups",
    "MetricOption",
    "Names",
    "Prompt",
    "Rate",
    "Share",
    "Spec",
    "allowed_prompt",
]

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
if TYPE_CHECKING:
    MetricOption = str
else:  # a type checker cannot read a Literal off a table
    MetricOption = Literal[tuple(metric_options())]


def _names(value: Any) -> Any:
    # Of a union pydantic reports the faults of both sides; here there is one.
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return value
    raise ValueError(f"expected a name, an expression or a list of names, found {value!r}")


Names = Annotated[str | list[str], BeforeValidator(_names)]


def _groups(value: Any) -> Any:
    named = isinstance(value, list) and all(isinstance(one, list) and one for one in value)
    if value in ("none", "auto") or (value and named and all(isinstance(name, str) for one in value for name in one)):
        return value
    raise ValueError(f"expected 'none', 'auto' or a list of lists of task names, found {value!r}")


Groups = Annotated[str | list[list[str]], BeforeValidator(_groups)]


AUTO = "auto"
"""The `prompt` that takes the one under which the base finds the training answers likeliest."""


def _prompt(value: str) -> str:
    words = (*NAMED_TEMPLATES, CHAT, AUTO)
    if value not in words and "{" not in value:
        raise ValueError(
            f"expected a text with {{input}} and {{output}}, or one of {', '.join(words)}; found {value!r}"
        )
    if "\\n" in value:  # of a text in single quotes, or in none
        raise ValueError("found a backslash and an n, which YAML takes for a line break in double quotes alone")
    if value not in (CHAT, AUTO):
        parse_template(value)
    return value


Prompt = Annotated[str, AfterValidator(_prompt)]


FEDERATED_AUTO = (
    "auto compares prompts on training examples, and a federation's clients keep theirs; run `colora check` where some "
    "are, and name the prompt that it takes"
)


def allowed_prompt(prompt: str | None, info: ValidationInfo, place: str = "") -> str | None:
    if prompt == CHAT and info.data.get("chat_template") is False:
        raise ValueError(f"{place}chat asks for what chat_template: false switches off; remove one of the two")
    return prompt


class Spec(BaseModel):
    # A misspelt key is a fault, not a default.
    model_config = ConfigDict(extra="forbid", validate_default=True)
