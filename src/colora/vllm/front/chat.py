"""Chat requests as training had them: the bank's prompt in place of the base's chat template, and answers without the
white space at their ends.

vLLM is started with a chat template that prints what it is given (`colora.vllm.front.template`), and each request gives
it the whole prompt of its task.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from colora.errors import ConfigError
from colora.serving.fields import UnsupportedError
from colora.serving.schemas import Message, check_turns, instruction_of, turns_of
from colora.tasks.prompting.prompts import conversation_text, end_token_ids
from colora.tasks.prompting.templates import PromptTemplate
from colora.tasks.tokenizer import Tokenizer
from colora.vllm.front.template import PROMPT

__all__ = ["ChatPrompts", "StrippedEvents", "stripped_answer"]

# What a chat template, or vLLM around it, would make of these has no place in a prompt of the bank's.
DECIDED: dict[str, tuple[object, ...]] = {
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (),
    "documents": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "reasoning_effort": ("none",),
}
_MESSAGES = TypeAdapter(list[Message])


class ChatPrompts:
    """Makes prompts.

    Args:
        tokenizer: of the base; without its chat template if the bank was trained without.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = sorted(end_token_ids(tokenizer))
        self._encoding = threading.Lock()  # tokenizers are not safe to use from several threads

    def rewritten(self, body: dict[str, Any], template: PromptTemplate | None) -> dict[str, Any]:
        """A chat request with the prompt of its task.

        Args:
            body: of `POST /v1/chat/completions`.
            template: of the task.

        Raises:
            UnsupportedError: naming a field that would change the prompt.
            ConfigError: messages that are none, or for which the prompt has no place.
        """
        for name, neutral in DECIDED.items():
            if body.get(name) is not None and body[name] not in neutral:
                raise UnsupportedError(name)
        try:
            messages = _MESSAGES.validate_python(body.get("messages"))
            check_turns(messages)
        except ValidationError as error:
            raise ConfigError("; ".join(_told(error))) from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for number, message in enumerate(messages):
            message.check_fields(f"messages.{number}.")
        with self._encoding:
            text, special = conversation_text(instruction_of(messages), turns_of(messages), self.tokenizer, template)
        stops = body.get("stop_token_ids") or []
        if not isinstance(stops, list) or not all(type(one) is int for one in stops):
            raise ConfigError("stop_token_ids: expected a list of numbers of tokens")
        kept = {name: value for name, value in body.items() if name not in DECIDED}
        return kept | {
            "messages": [{"role": "user", "content": text}],
            "chat_template_kwargs": {PROMPT: text},
            "add_special_tokens": special,
            "stop_token_ids": sorted({*self.end_tokens, *stops}),
        }


def _told(error: ValidationError) -> Iterator[str]:
    """A line for each fault, without what was sent."""
    for fault in error.errors(include_input=False):
        yield f"messages.{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def stripped_answer(content: bytes) -> bytes:
    """A whole response with answers that begin and end without white space; anything else as it is."""
    try:
        value = json.loads(content)
        for choice in value["choices"]:
            if isinstance(text := choice["message"]["content"], str):
                choice["message"]["content"] = text.strip()
    except (ValueError, KeyError, TypeError):
        return content
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class StrippedEvents:
    """The same of a response that comes piece by piece, as server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self._held: dict[int, str] = {}  # white space that may be followed by something
        self._begun: set[int] = set()

    def feed(self, content: bytes) -> bytes:
        """The events that are whole by now, with their texts as they should be."""
        *events, self._rest = (self._rest + content).split(b"\n\n")
        return b"".join(self._event(event) + b"\n\n" for event in events)

    def end(self) -> bytes:
        """What is left when the response has ended."""
        rest, self._rest = self._rest, b""
        return rest

    def _event(self, event: bytes) -> bytes:
        try:
            value = json.loads(event.removeprefix(b"data: "))
            for choice in value["choices"]:
                text = choice["delta"].get("content")
                if isinstance(text, str):
                    choice["delta"]["content"] = self._stripped(choice["index"], text)
        except (ValueError, KeyError, TypeError):
            return event
        return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def _stripped(self, choice: int, text: str) -> str:
        text = self._held.pop(choice, "") + text
        if choice not in self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            self._begun.add(choice)
        if choice in self._begun:
            self._held[choice] = text[len(kept) :]
        return kept
