"""Log probabilities in OpenAI's forms: tokens as texts and as bytes, whole and piece by piece."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from colora.models.decoding.logprobs import Logprobs
from colora.tasks.tokenizer import Tokenizer

__all__ = ["ChatLogprobs", "CompletionLogprobs", "TokenBytes"]

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"  # what stands for a space in vocabularies of SentencePiece


class TokenBytes:
    """The bytes that each token stands for; a character may be torn apart among several.

    Args:
        tokenizer: a fast transformers tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        decoder = json.loads(tokenizer.backend_tokenizer.decoder.__getstate__() or b"null")
        kinds = {one["type"] for one in [decoder, *(decoder or {}).get("decoders", [])] if one}
        self._bytes = {char: byte for byte, char in bytes_to_unicode().items()} if "ByteLevel" in kinds else None
        self._added = {number: str(one) for number, one in tokenizer.added_tokens_decoder.items()}

    def __getitem__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""  # beyond the vocabulary: some models have more embeddings than tokens
        if self._bytes is not None and all(char in self._bytes for char in name):
            return bytes(self._bytes[char] for char in name)
        if found := BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        return name.replace(SPACE, " ").encode()

    def text(self, token: int) -> str:
        """The same as text, with U+FFFD for what is no whole character."""
        return self[token].decode(errors="replace")


class ChatLogprobs:
    """`choices[].logprobs` of `/v1/chat/completions`, of one choice."""

    def __init__(self, names: TokenBytes) -> None:
        self.names = names

    def of(self, places: Sequence[Logprobs]) -> dict[str, Any]:
        """The object of the next tokens."""
        content = [
            self._token(one.token, one.logprob) | {"top_logprobs": [self._token(*each) for each in one.top]}
            for one in places
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.names.text(token), "logprob": logprob, "bytes": list(self.names[token])}


class CompletionLogprobs(ChatLogprobs):
    """`choices[].logprobs` of `/v1/completions`, of one choice. `text_offset` counts characters of its text."""

    def __init__(self, names: TokenBytes) -> None:
        super().__init__(names)
        self.offset = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, places: Sequence[Logprobs]) -> dict[str, Any]:
        offsets = []
        for one in places:
            offsets.append(self.offset + self._broken(self.names[one.token]))
            self.offset += len(self.decoder.decode(self.names[one.token]))
        return {
            "tokens": [self.names.text(one.token) for one in places],
            "token_logprobs": [one.logprob for one in places],
            "top_logprobs": [{self.names.text(token): value for token, value in reversed(one.top)} for one in places],
            "text_offset": offsets,
        }

    def _broken(self, token: bytes) -> bool:
        """Whether this token breaks off a character that tokens before began, which then is one sign of its own."""
        begun = self.decoder.getstate()[0]
        try:
            codecs.getincrementaldecoder("utf-8")().decode(begun + token[:1])
        except UnicodeDecodeError:
            return bool(begun)
        return False
