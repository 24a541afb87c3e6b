"""How a bank's prompts are made, for those who use an exported task elsewhere and need the tokens of training."""

import json
from dataclasses import dataclass
from string import Template

from colora.bank.layout import BankInfo
from colora.tasks.prompting.prompts import answer_ids, end_token_id, prompt_ids
from colora.tasks.prompting.templates import PromptTemplate
from colora.tasks.schema import Example
from colora.tasks.tokenizer import Tokenizer

__all__ = ["HowToPrompt"]

INSTRUCTION, INPUT, OUTPUT = "Answer in one word.", "Which colour has the sky?", "Blue"

README = Template("""\
# $task

$origin It answers best where the prompt has the tokens that
it was trained with, and they are made like this.

$form

An example, with the instruction `$instruction` and the input `$input`. As JSON, so that every space shows:

```json
$example
```

- `prompt` is what goes to the model$special, and `prompt_ids` are its tokens$added.
- `answer` is what the model was trained to go on with$space, and `answer_ids` are its tokens. The last one, `$end`,
  ends the answer: generation should stop there.
- Prompt and answer had at most $length tokens together in training$encoder.
""")

TEMPLATE = Template("""\
The prompt is this text up to where the answer begins (`{output}`). Spaces right before the answer are the answer's, and
not the prompt's:

```text
$template
```

It is a plain text: it goes to vLLM's or TGI's `/v1/completions` as it is, or to `generate` of transformers after
`tokenizer(prompt)`, and not through a chat template.$without""")
NO_INSTRUCTION = "\n\nThe prompt has no place for an instruction; there was none in training."
SKIPPED = "\n\nWithout an instruction, `{instruction}` and the white space after it are left out."
CHAT = """\
The prompt is the tokenizer's chat template around one user turn: the instruction, if there is one, a blank line, and
the input. In vLLM or TGI that is `/v1/chat/completions` with one message of the user's."""
PLAIN = """\
The prompt is the instruction, if there is one, a blank line, the input, and a line break. It is a plain text: it goes
to vLLM's or TGI's `/v1/completions` as it is, and not through a chat template."""


@dataclass(frozen=True)
class HowToPrompt:
    """How a bank's prompts are made.

    Args:
        info: of the bank.
        tokenizer: of its base model, as `load_bank` returns it.
        encoder_decoder: whether the base model is one.
    """

    info: BankInfo
    tokenizer: Tokenizer
    encoder_decoder: bool = False

    def readme(self, task: str, origin: str | None = None) -> str:
        """The README of an exported task; `origin` says what the files are, and of what bank."""
        template = self.info.template(task)
        takes_instruction = template is None or template.takes_instruction
        example = Example(INPUT, (OUTPUT,), INSTRUCTION if takes_instruction else None, template=template)
        prompt = prompt_ids(example, self.tokenizer, encoder_decoder=self.encoder_decoder)
        answer = answer_ids(example, OUTPUT, self.tokenizer, self.encoder_decoder)
        is_chat = self._is_chat(template)
        end = end_token_id(self.tokenizer, self.encoder_decoder)
        lead = "" if template is None or self.encoder_decoder else template.lead
        shown = {
            "prompt": self._text(example, template, prompt),
            "prompt_ids": prompt,
            "answer": lead + OUTPUT,
            "answer_ids": [*answer, end],
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in shown.items()]
        return README.substitute(
            task=task,
            origin=origin or f"A task on `{self.info.base}`, as files that need no CoLoRA.",
            form=self._form(template),
            instruction=example.instruction or "(none)",
            input=INPUT,
            example="{\n  " + ",\n  ".join(lines) + "\n}",
            special=", special tokens included" if is_chat else "",
            added="" if is_chat else ", those that the tokenizer adds to every text included",
            space=", the space before it included" if lead else "",
            end=self.tokenizer.decode([end]),
            length=self.info.max_length,
            encoder=" (each, in an encoder-decoder)" if self.encoder_decoder else "",
        )

    def _is_chat(self, template: PromptTemplate | None) -> bool:
        return template is None and bool(self.tokenizer.chat_template) and not self.encoder_decoder

    def _form(self, template: PromptTemplate | None) -> str:
        if template is not None:
            without = SKIPPED if template.takes_instruction else NO_INSTRUCTION
            return TEMPLATE.substitute(template=template.text, without=without)
        return CHAT if self._is_chat(template) else PLAIN

    def _text(self, example: Example, template: PromptTemplate | None, ids: list[int]) -> str:
        """The prompt as a text that the tokenizer makes into these ids."""
        if template is not None:
            return template.prompt(example.instruction, example.input)
        if self._is_chat(template):
            return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return "\n\n".join(part for part in (example.instruction, example.input) if part) + "\n"
