"""Requests of the OpenAI interface, as far as a bank can answer them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from colora.models.decoding.sampling import Sampling

__all__ = ["ChatRequest", "CompletionRequest", "Message", "SamplingRequest", "UnsupportedError"]

UNSUPPORTED = (
    "tools", "tool_choice", "functions", "function_call", "logprobs", "top_logprobs", "logit_bias", "suffix", "echo",
    "best_of", "audio", "prediction", "web_search_options",
)  # fmt: skip
MOST_CHOICES = 8


class UnsupportedError(ValueError):
    """A field of the OpenAI interface that asks for something that is not there."""

    def __init__(self, field: str) -> None:
        self.field = field
        super().__init__(f"{field}: not supported by this server")


class SamplingRequest(BaseModel):
    """What both kinds of requests say; fields that nobody knows are not looked at, as elsewhere.

    Attributes:
        model: name of the task.
    """

    model_config = ConfigDict(extra="allow")
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        given = [value] if isinstance(value, str) else value or []
        if len(given) > 16 or any(not one for one in given):
            raise ValueError("expected at most 16 strings, none of them empty")
        return value

    def check_supported(self) -> None:
        """Raises UnsupportedError for the first field that asks for what is not there."""
        extra = self.model_extra or {}
        for name in UNSUPPORTED:
            if extra.get(name):
                raise UnsupportedError(name)
        form: Any = extra.get("response_format")
        if form and not (isinstance(form, dict) and form.get("type") == "text"):
            raise UnsupportedError("response_format")

    def sampling(self, max_tokens: int, temperature: float, choice: int) -> Sampling:
        """How one of the choices is continued; the arguments stand where the request says nothing."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=self.longest or max_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            seed=None if self.seed is None else self.seed + choice,
            stop=stop,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    @property
    def longest(self) -> int | None:
        """Longest output in tokens, if the request says so."""
        return self.max_tokens


class StreamOptions(BaseModel):
    """Whether a last chunk has the number of tokens."""

    include_usage: bool = False


class TextPart(BaseModel):
    """A part of a message's content: text only."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """All of its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _turns(self) -> "ChatRequest":
        roles = [one.role for one in self.messages if one.role not in ("system", "developer")]
        expected = ["user", "assistant"] * len(roles)
        if not roles or roles != expected[: len(roles)] or roles[-1] != "user":
            raise ValueError(
                "messages: expected turns of user and assistant that begin and end with the user, found "
                + (", ".join(roles) or "none of them")
            )
        return self


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`: the prompt goes to the model as it is."""

    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(one, int) for one in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


SamplingRequest.model_rebuild()
ChatRequest.model_rebuild()
CompletionRequest.model_rebuild()
