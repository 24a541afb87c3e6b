"""Tokens to text while they come: whole characters only, up to the first stop string."""

import re
from collections.abc import Sequence

from colora.tasks.tokenizer import Tokenizer

__all__ = ["TextStream"]

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
HALF = "\ufffd"  # what decoders put in place of bytes that are no character, or not yet


class TextStream:
    """The text of one output as it grows.

    What is given out never has to be taken back: half a character waits for its other half, and what may be the
    beginning of a stop string waits until it is none. All pieces together are the output as `generate_outputs` has it,
    or with `strip=False` what follows the prompt, byte for byte.

    Args:
        tokenizer: a fast transformers tokenizer.
        stop: strings that end the output.
        strip: leave out white space at either end.
        prompt: token ids that the output follows; some decoders drop the space before the first token they see, so
            without a prompt the first space may be missing.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), strip: bool = True, prompt: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stop, self._strip = stop, strip
        # Of `_tokens` those before `_read` are in the text that was given out, or in the prompt. Those before them that
        # decide how the next ones are written are kept; the others are let go.
        self._tokens = list(prompt)
        self._read = len(self._tokens)
        self._waiting = ""
        self._begun = False
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be given out once this token has come. Sets `stopped` at a stop string."""
        self._tokens.append(token)
        return self._give(self._decode_new(whole=True))

    def end(self) -> str:
        """The rest, when no token comes any more; half a character is then given as U+FFFD."""
        if self.stopped:
            return ""
        ready = self._give(self._decode_new(whole=False))
        rest, self._waiting = self._waiting, ""
        if self._strip:
            rest = rest.rstrip() if self._begun else rest.strip()
        return ready + rest

    def _decode_new(self, whole: bool) -> str:
        """The text of the tokens that came since the last text; none if `whole` and they end in half a character."""
        if whole and self._ends_in_bytes():
            return ""
        before, after = self._decode(self._tokens[: self._read]), self._decode(self._tokens)
        if whole and (after.endswith(HALF) or before.startswith(after)):
            return ""
        if not after.startswith(before):
            before = before.rstrip(HALF)  # the prompt ended in half a character, and here is the other half
        # Some decoders change earlier characters where bytes follow that are none: what was given out stays.
        text = after[len(before) :] if after.startswith(before) else self._decode(self._tokens[self._read :])
        del self._tokens[: self._read]
        self._read = len(self._tokens)
        return text

    def _ends_in_bytes(self) -> bool:
        """Whether the new tokens end in some that stand for a byte each, as where a vocabulary lacks a character.

        Decoders take a run of them as a whole: one byte that fits no character spoils all characters of the run. So its
        text is not known before another token ends it; special tokens do not.
        """
        new = self._tokens[self._read :]
        last = next((at for at in reversed(range(len(new))) if self._is_byte(new[at])), None)
        return last is not None and not self._decode(new[last + 1 :])

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(self._tokenizer.id_to_token(token) or "") is not None

    def _decode(self, tokens: list[int]) -> str:
        try:
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's code, which would end the thread
            raise RuntimeError(f"the tokenizer's decoder failed: {error}") from error
        return text

    def _give(self, text: str) -> str:
        self._waiting += text
        stops = [start for stop in self._stop if (start := self._waiting.find(stop)) >= 0]
        if stops:
            self.stopped = True
            ready, self._waiting = self._waiting[: min(stops)], ""
            if self._strip:
                ready = ready.rstrip()
        else:
            held = max((_overlap(self._waiting, stop) for stop in self._stop), default=0)
            ready = self._waiting[: len(self._waiting) - held]
            if self._strip:
                ready = ready.rstrip()  # white space waits: at the end it is left out
            self._waiting = self._waiting[len(ready) :]
        if self._strip and not self._begun:
            ready = ready.lstrip()
        self._begun = self._begun or bool(ready)
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with.

    Examples:
        >>> _overlap("a line.\\n\\n", "\\n\\nQ:")
        2
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
