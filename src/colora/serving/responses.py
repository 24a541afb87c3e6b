"""Answers in OpenAI's form: whole responses, the chunks of a stream, and the objects for tasks and jobs."""

import json
import time
import uuid
from typing import Any

from colora.serving.jobs import Job

__all__ = [
    "ChatFormat",
    "CompletionFormat",
    "ResponseFormat",
    "job_object",
    "model_object",
    "server_sent_event",
    "usage_object",
]


class ResponseFormat:
    """The form of the answers of one path.

    Args:
        task: the model that was asked for.
    """

    id_prefix = response_object = chunk_object = ""

    def __init__(self, task: str) -> None:
        self.head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": task}

    def response(self, outputs: list[tuple[str, str]], usage: dict[str, int]) -> dict[str, Any]:
        """A whole response; `outputs` are texts and why they ended."""
        choices = [
            {"index": index, "logprobs": None, "finish_reason": reason, **self.full_text(text)}
            for index, (text, reason) in enumerate(outputs)
        ]
        return {**self.head, "object": self.response_object, "choices": choices, "usage": usage}

    def chunk(self, index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
        """One event of a stream: a piece of the choice `index`, or why that choice ended."""
        choice = {"index": index, "logprobs": None, "finish_reason": reason, **self.text_piece(text, first)}
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


def job_object(job: Job) -> dict[str, str]:
    """An onboarding job, without the examples."""
    return {"job": job.id, "task": job.task, "state": job.state, "message": job.message}
