"""Prompt templates: how instruction, input and answer stand in one text, such as "Q: {input}\\nA: {output}".

A template shows the whole text that a model would have seen, up to the end of the answer. The spaces before `{output}`
belong to the answer: "A: {output}" makes the prompt "A:" and the answer " yes", since in most vocabularies a word and
the space before it are one token.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from colora.errors import ConfigError

__all__ = ["CHAT", "NAMED_TEMPLATES", "PromptTemplate", "parse_template", "template_of"]

CHAT = "chat"
"""The name of the tokenizer's own chat template, which is a program and no text."""

_FIELD = re.compile(r"\{(\w*)\}")
_REQUIRED, _FIELDS = ("input", "output"), ("instruction", "input", "output")
_SKIPPED_INSTRUCTION = re.compile(r"\{instruction\}\s*")


@dataclass(frozen=True)
class PromptTemplate:
    """A template that `parse_template` has checked.

    Attributes:
        text: the template, with `{input}` and `{output}` once each, and `{instruction}` at most once.
    """

    text: str

    @cached_property
    def _before(self) -> str:
        return self.text.partition("{output}")[0]

    @property
    def takes_instruction(self) -> bool:
        """Whether instructions have a place in it."""
        return "{instruction}" in self.text

    @cached_property
    def lead(self) -> str:
        """The spaces that the answer begins with."""
        return self._before[len(self._before.rstrip(" \t")) :]

    def prompt(self, instruction: str | None, text: str) -> str:
        """The text up to where the answer begins.

        Without an instruction the space or the lines after its place go as well. Braces in the texts mean nothing.

        Args:
            instruction: of the task, if it has one.
            text: fills `{input}`.

        Raises:
            ConfigError: an instruction, and no place for it.
        """
        if instruction and not self.takes_instruction:
            raise ConfigError(
                f"expected no instruction, because the prompt {self.text!r} has no {{instruction}}; found "
                f"{instruction[:40]!r}: leave the instruction out, or add {{instruction}} to the prompt "
                "before training"
            )
        frame = self._before.removesuffix(self.lead)
        if not instruction:
            frame = _SKIPPED_INSTRUCTION.sub("", frame)
        values = {"instruction": instruction or "", "input": text}
        return _FIELD.sub(lambda found: values[found[1]], frame)


# "newline" is the text that models without a chat template get where nobody asks for another.
NAMED_TEMPLATES = {
    name: PromptTemplate(text)
    for name, text in {
        "newline": "{instruction}\n\n{input}\n{output}",
        "qa": "{instruction}\nQ: {input}\nA: {output}",
        "input-output": "{instruction}\nInput: {input}\nOutput: {output}",
        "arrow": "{instruction}\n{input} -> {output}",
    }.items()
}
"""Templates by name."""


def parse_template(text: str) -> PromptTemplate:
    """A template from its text, or from its name in `NAMED_TEMPLATES`.

    Raises:
        ConfigError: for a field that is missing, unknown or there twice, text after `{output}`, or a name that nobody
            knows.
    """
    if text in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[text]
    found = _FIELD.findall(text)
    if not found:
        raise ConfigError(
            f"expected a prompt with {{input}} and {{output}}, or one of {', '.join(NAMED_TEMPLATES)}; found {text!r}"
        )
    if unknown := sorted(set(found) - set(_FIELDS)):
        named = ", ".join(f"{{{name}}}" for name in unknown)
        raise ConfigError(f"expected the fields {{instruction}}, {{input}} and {{output}}, found {named}")
    for name in _FIELDS:
        expected = "once" if name in _REQUIRED else "at most once"
        if found.count(name) > 1 or (name in _REQUIRED and not found.count(name)):
            raise ConfigError(f"expected {{{name}}} {expected}, found it {found.count(name)} times in {text!r}")
    if after := text.partition("{output}")[2]:
        raise ConfigError(
            f"expected {{output}} at the end, found {after!r} after it; the model's end token ends an answer"
        )
    return PromptTemplate(text)


def template_of(prompt: str) -> PromptTemplate | None:
    """What a user's prompt stands for: a template, or None for "chat".

    Raises:
        ConfigError: as `parse_template`.
    """
    if prompt == CHAT:
        return None
    if prompt not in NAMED_TEMPLATES and "{" not in prompt:
        names = ", ".join([*NAMED_TEMPLATES, CHAT])
        raise ConfigError(f"expected a text with {{input}} and {{output}}, or one of {names}; found {prompt!r}")
    return parse_template(prompt)
