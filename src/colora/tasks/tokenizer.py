"""What the project uses of a transformers tokenizer; transformers itself has no types that mypy could check."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

__all__ = ["Tokenizer"]

Conversation = Sequence[Mapping[str, str | list[dict[str, str]]]]
"""Turns with "role" ("user" or "assistant") and "content", a text or a list of parts."""


class Tokenizer(Protocol):
    """A tokenizer of `transformers.AutoTokenizer`, as `colora.models.base.load_base` returns it.

    Attributes:
        name_or_path: what the base model is called.
        chat_template: a Jinja template of the conversation, or several by name; None: prompts are plain text.
        pad_token: `load_base` sets the end-of-text token where a tokenizer has none of its own.
        pad_token_id: its id.
        bos_token_id: of the token that begins a text, if there is one.
        eos_token: ends a text.
        eos_token_id: its id, if the tokenizer has such a token.
        all_special_ids: ids of the tokens that stand for no text.
        added_tokens_decoder: tokens beyond the trained vocabulary, by id.
        backend_tokenizer: the `tokenizers.Tokenizer` of a fast tokenizer; slow ones lack it.
        embedding_rows: for how many tokens the base model has embeddings; `load_base` sets it.
    """

    name_or_path: str
    chat_template: str | dict[str, str] | None
    pad_token: str | None
    pad_token_id: int
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]
    backend_tokenizer: Any
    embedding_rows: int

    def __len__(self) -> int:
        """Size of the vocabulary, added tokens included."""

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> Mapping[str, Sequence[int]]:
        """Text to "input_ids"; `verbose` warns where they are longer than the model's positions."""

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Ids to text."""

    def get_chat_template(self) -> str:
        """The template that is used where there are several. Raises ValueError if none is the default."""

    def apply_chat_template(
        self, conversation: Conversation, *, tokenize: Literal[False], add_generation_prompt: bool, chat_template: str
    ) -> object:
        """A conversation as text."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write the tokenizer's files into a folder."""
