"""Tokens to text while they come: whole characters only, up to the first stop string."""

from tokenizers.decoders import DecodeStream

from colora.tasks.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """The text of one output as it grows.

    What is given out never has to be taken back: half a character waits for its other half, what may be the beginning
    of a stop string waits until it is none, and white space at either end is not given out at all. All pieces together
    are the output as `generate_outputs` has it, but for half a character that the last token leaves.

    Args:
        tokenizer: a fast transformers tokenizer.
        stop: strings that end the output.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._waiting = ""
        self._begun = False
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be given out once this token has come. Sets `stopped` at a stop string."""
        return self._give(self._stream.step(self._tokenizer, token) or "")

    def end(self) -> str:
        """The rest, when no token comes any more."""
        rest, self._waiting = self._waiting.rstrip(), ""
        return rest if self._begun else rest.lstrip()

    def _give(self, text: str) -> str:
        self._waiting += text
        stops = [start for stop in self._stop if (start := self._waiting.find(stop)) >= 0]
        if stops:
            self.stopped = True
            ready, self._waiting = self._waiting[: min(stops)].rstrip(), ""
        else:
            held = max((_overlap(self._waiting, stop) for stop in self._stop), default=0)
            ready = self._waiting[: len(self._waiting) - held].rstrip()
            self._waiting = self._waiting[len(ready) :]
        if not self._begun:
            ready = ready.lstrip()
        self._begun = self._begun or bool(ready)
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with.

    Example:
        >>> _overlap("a line.\\n\\n", "\\n\\nQ:")
        2
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
