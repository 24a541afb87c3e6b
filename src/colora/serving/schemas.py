"""Requests of the OpenAI interface, as far as a bank can answer them."""

from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from colora.models.decoding.sampling import Sampling
from colora.serving.fields import CHAT, COMPLETION, HARMLESS, NEUTRAL, Fields, UnsupportedError

__all__ = [
    "INSTRUCTING_ROLES",
    "MOST_CHOICES",
    "ChatRequest",
    "CompletionRequest",
    "Message",
    "SamplingRequest",
    "check_turns",
    "instruction_of",
    "turns_of",
]

INSTRUCTING_ROLES = ("system", "developer")
MOST_CHOICES = 8
MOST_LOGPROBS = 20


class SamplingRequest(Fields):
    """The fields of both kinds of requests; for the others see `colora.serving.fields`.

    Attributes:
        model: name of the task.
    """

    harmless = HARMLESS
    strip: ClassVar[bool] = True
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        strings = [value] if isinstance(value, str) else value or []
        if len(strings) > 16 or not all(strings):
            raise ValueError("expected at most 16 strings, none of them empty")
        return value

    def check_fields(self, place: str = "") -> None:
        super().check_fields(place)
        if self.best_of not in (None, 1, self.n):
            raise UnsupportedError("best_of")

    def sampling(self, max_tokens: int, temperature: float, choice: int) -> Sampling:
        """How choice number `choice` is sampled; the other arguments are for what the request leaves open."""
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
            strip=self.strip,
            logprobs=self.places,
        )

    @property
    def longest(self) -> int | None:
        """Longest output in tokens, or None if the request leaves it open."""
        return self.max_tokens

    @property
    def places(self) -> int | None:
        """Of how many of the likeliest tokens it asks the log probability; None if it asks for no log probabilities."""
        return None


class StreamOptions(Fields):
    """Whether a last chunk has the number of tokens."""

    harmless = frozenset({"include_obfuscation"})
    neutral: ClassVar = {"continuous_usage_stats": (False,)}

    include_usage: bool = False


class TextPart(Fields):
    """A part of a message's content: text only."""

    harmless = frozenset({"cache_control", "prompt_cache_breakpoint"})
    neutral: ClassVar = {"annotations": ([],)}

    type: Literal["text"]
    text: str


class Message(Fields):
    """One turn."""

    neutral: ClassVar = dict.fromkeys(("tool_calls", "annotations"), ([],))

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """All of its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar = NEUTRAL | CHAT

    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def places(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def instruction(self) -> str | None:
        """What system and developer say, wherever they say it; None if they say nothing."""
        return instruction_of(self.messages)

    @property
    def turns(self) -> list[str]:
        """What user and assistant say in turn."""
        return turns_of(self.messages)

    @model_validator(mode="after")
    def _begins_and_ends(self) -> "ChatRequest":
        check_turns(self.messages)
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs: true beside it")
        return self


def instruction_of(messages: Sequence[Message]) -> str | None:
    """What system and developer say, wherever they say it; None if they say nothing."""
    return "\n\n".join(message.text for message in messages if message.role in INSTRUCTING_ROLES) or None


def turns_of(messages: Sequence[Message]) -> list[str]:
    """What user and assistant say in turn. Messages of one role that follow each other are one turn, with a blank line
    between them: not every chat template knows such messages, and what training made of several texts is this.
    """
    talk = (message for message in messages if message.role not in INSTRUCTING_ROLES)
    by_role = groupby(talk, lambda message: message.role)
    return ["\n\n".join(message.text for message in group) for _, group in by_role]


def check_turns(messages: Sequence[Message]) -> None:
    """Raises ValueError unless the user begins and ends."""
    roles = [message.role for message in messages if message.role not in INSTRUCTING_ROLES]
    if not roles or (roles[0], roles[-1]) != ("user", "user"):
        raise ValueError(
            "messages: expected turns of user and assistant that begin and end with the user, found "
            + (", ".join(roles[:20]) or "none of them")
        )


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`: the prompt goes to the model as it is, and what follows it comes back as it is."""

    strip: ClassVar = False
    neutral: ClassVar = NEUTRAL | COMPLETION

    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | Literal[False] | None = None
    prompt: str | list[str] | list[int] | list[list[int]]

    @property
    def places(self) -> int | None:
        return None if self.logprobs is False else self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


SamplingRequest.model_rebuild()
ChatRequest.model_rebuild()
CompletionRequest.model_rebuild()
