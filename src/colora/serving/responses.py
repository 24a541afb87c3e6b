"""Answers in OpenAI's form: whole responses, the chunks of a stream, and the objects for tasks and jobs."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colora.models.decoding.logprobs import Logprobs
from colora.serving.jobs import Job
from colora.serving.logprobs import ChatLogprobs, CompletionLogprobs, TokenBytes
from colora.serving.onboarding import NUMBERS

__all__ = [
    "ChatFormat",
    "CompletionFormat",
    "Output",
    "ResponseFormat",
    "job_object",
    "model_object",
    "server_sent_event",
    "usage_object",
]


@dataclass(frozen=True)
class Output:
    """One whole output: its text, why it ended, and its log probabilities if they were asked for."""

    text: str
    reason: str
    logprobs: list[Logprobs] | None


class ResponseFormat:
    """The form of the answers of one path.

    Args:
        task: the model that was asked for.
        names: of tokens, for the log probabilities.
    """

    id_prefix = response_object = chunk_object = ""
    logprobs_form: type[ChatLogprobs] = ChatLogprobs

    def __init__(self, task: str, names: TokenBytes) -> None:
        self.names = names
        self._streamed: dict[int, ChatLogprobs] = {}
        self.head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": task}

    def response(self, outputs: Sequence[Output], usage: dict[str, int]) -> dict[str, Any]:
        """A whole response."""
        choices = [
            {
                "index": index,
                "logprobs": None if one.logprobs is None else self.logprobs_form(self.names).of(one.logprobs),
                "finish_reason": one.reason,
                **self.full_text(one.text),
            }
            for index, one in enumerate(outputs)
        ]
        return {**self.head, "object": self.response_object, "choices": choices, "usage": usage}

    def chunk(
        self, index: int, text: str, reason: str | None, first: bool, logprobs: Logprobs | None = None
    ) -> dict[str, Any]:
        """One event of a stream: a piece of the choice `index`, or why that choice ended."""
        places = None
        if logprobs is not None:
            places = self._streamed.setdefault(index, self.logprobs_form(self.names)).of([logprobs])
        choice = {"index": index, "logprobs": places, "finish_reason": reason, **self.text_piece(text, first)}
        return {**self.head, "object": self.chunk_object, "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The event after the last piece, with the numbers of tokens."""
        return {**self.head, "object": self.chunk_object, "choices": [], "usage": usage}

    def full_text(self, text: str) -> dict[str, Any]:
        """The fields of a choice that hold its text."""
        raise NotImplementedError

    def text_piece(self, text: str, first: bool) -> dict[str, Any]:
        """The fields of a streamed choice that hold a piece of its text."""
        raise NotImplementedError


class ChatFormat(ResponseFormat):
    """`/v1/chat/completions`."""

    id_prefix, response_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def full_text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def text_piece(self, text: str, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        return {"delta": role | ({"content": text} if text or first else {})}


class CompletionFormat(ResponseFormat):
    """`/v1/completions`."""

    id_prefix, response_object, chunk_object = "cmpl", "text_completion", "text_completion"
    logprobs_form = CompletionLogprobs

    def full_text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def text_piece(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The numbers of tokens of a response."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def server_sent_event(value: dict[str, Any]) -> str:
    """One event of a `text/event-stream`."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def model_object(task: str) -> dict[str, Any]:
    """A task as OpenAI describes a model."""
    return {"id": task, "object": "model", "created": 0, "owned_by": "colora"}


def job_object(job: Job) -> dict[str, Any]:
    """An onboarding job, without the examples; its numbers are null until it is done."""
    numbers = {name: job.numbers.get(name) for name in NUMBERS}
    return {"job": job.id, "task": job.task, "state": job.state, "message": job.message} | numbers
