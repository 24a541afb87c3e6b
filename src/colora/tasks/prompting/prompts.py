"""How an example becomes a prompt, and which token ends the answer to it."""

from collections.abc import Sequence
from dataclasses import replace

from colora.errors import ConfigError
from colora.tasks.prompting.chat_template import chat_format, prompt_text
from colora.tasks.prompting.templates import PromptTemplate
from colora.tasks.schema import Example
from colora.tasks.tokenizer import Tokenizer

__all__ = [
    "answer_ids",
    "conversation_ids",
    "conversation_text",
    "end_token_id",
    "end_token_ids",
    "fit_prompt",
    "prompt_ids",
    "use_plain_prompts",
]


def prompt_ids(
    example: Example, tokenizer: Tokenizer, max_length: int | None = None, encoder_decoder: bool = False
) -> list[int]:
    """The token ids of the prompt, which a causal model continues and an encoder reads.

    Instruction and input stand in one user turn, a blank line between them, because not every chat template
    knows a system turn. Without a chat template, and for encoder-decoders, the prompt is the plain text with a
    newline after it, with the tokenizer's special tokens at its start; only encoder-decoders get the end token. An
    example's own template takes the place of both.
    The text stands in the prompt whole, whatever the template does, or it is an error.

    Args:
        example: its outputs are not looked at.
        tokenizer: a transformers tokenizer.
        max_length: cut the input from its left to this many tokens in all, exactly as in training; if template
            and instruction alone are longer, so is the result.
        encoder_decoder: whether the prompt is for an encoder.

    Raises:
        ConfigError: a chat template that raises or loses text, see `colora.tasks.prompting.chat_template`.
    """
    if max_length is None:
        return _render(example, tokenizer, encoder_decoder)
    return fit_prompt(example, tokenizer, max_length, encoder_decoder)[0]


def fit_prompt(
    example: Example, tokenizer: Tokenizer, room: int, encoder_decoder: bool = False
) -> tuple[list[int], int]:
    """The prompt in at most `room` tokens, if that can be, and how many tokens of the input it lost.

    Instruction and template stay whole. A conversation loses its oldest turns, two at a time; then the input loses its
    beginning. The prompt is longer than `room` only if it is so with an empty input.
    """
    ids = _render(example, tokenizer, encoder_decoder)
    dropped = 0
    while len(ids) > room and example.history:
        turns = example.history[:2]
        dropped += sum(len(tokenizer(turn, add_special_tokens=False, verbose=False)["input_ids"]) for turn in turns)
        example = replace(example, history=example.history[2:])
        ids = _render(example, tokenizer, encoder_decoder)
    if len(ids) <= room:
        return ids, dropped
    source = tokenizer(example.input, add_special_tokens=False, verbose=False)["input_ids"]
    start = 0
    # More than one turn only where the shortened text, tokenised again, has more tokens than were kept of it.
    while len(ids) > room and start < len(source):
        start = min(start + len(ids) - room, len(source))
        text = tokenizer.decode(source[start:], clean_up_tokenization_spaces=False)
        # A cut through the bytes of one character leaves a replacement character at the start.
        ids = _render(replace(example, input=text.lstrip("\ufffd")), tokenizer, encoder_decoder)
    return ids, dropped + start


def conversation_ids(
    instruction: str | None, turns: Sequence[str], tokenizer: Tokenizer, template: PromptTemplate | None = None
) -> list[int]:
    """The prompt after several turns; of a single one it is that of `prompt_ids`.

    Args:
        instruction: stands at the beginning of the first user turn, as in training.
        turns: what user and assistant said in turn, the user first and last.
        tokenizer: of a decoder-only model.
        template: of the task; the last turn fills its `{input}`.

    Raises:
        ConfigError: several turns without a chat template, or with a template of the task's; an instruction that this
            has no place for; a chat template that raises or loses text.
    """
    *history, text = turns
    return _render(Example(text, (), instruction, tuple(history), template), tokenizer, False)


def conversation_text(
    instruction: str | None, turns: Sequence[str], tokenizer: Tokenizer, template: PromptTemplate | None = None
) -> tuple[str, bool]:
    """The text of `conversation_ids`, and whether the tokenizer's own special tokens are put at its start.

    Raises:
        ConfigError: as `conversation_ids`.
    """
    *history, text = turns
    return _text(Example(text, (), instruction, tuple(history), template), tokenizer, False)


def answer_ids(example: Example, output: str, tokenizer: Tokenizer, encoder_decoder: bool = False) -> list[int]:
    """The token ids of an answer without its end token, as they follow the prompt.

    They are tokenised apart from the prompt, so that no token straddles the two: generation starts at that very border.
    Where a template gives the answer spaces to begin with, the ids are those that follow the prompt's in the whole
    text, if it begins with these; for some tokenizers put a space of their own before every text.

    Args:
        example: its outputs are not looked at.
        output: the answer.
        tokenizer: a transformers tokenizer.
        encoder_decoder: whether the answer is for a decoder with a beginning of its own.
    """
    template = example.template
    if template is None or not template.lead or encoder_decoder:
        return _tokens(output, tokenizer)
    before = template.prompt(example.instruction, example.input)
    prompt, whole = _tokens(before, tokenizer), _tokens(before + template.lead + output, tokenizer)
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    return _tokens(template.lead + output, tokenizer)


def _tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def use_plain_prompts(tokenizer: Tokenizer) -> None:
    """Switch the chat template off: prompts are then plain text, without the tokens of a template's system message."""
    tokenizer.chat_template = None


def end_token_id(tokenizer: Tokenizer, encoder_decoder: bool = False) -> int:
    """The token that ends an answer: training ends every output with it, and generation should stop at it.

    With a chat template it is the first special token that the template puts after an assistant's turn (such as
    <|im_end|>, which need not be the tokenizer's end of sequence); otherwise, and for encoder-decoders, the end of
    sequence.

    Raises:
        ConfigError: if there is neither, or a chat template that raises or loses text.
    """
    if tokenizer.chat_template and not encoder_decoder:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        for token in tokenizer(chat_format(tokenizer).tail, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise ConfigError("expected a tokenizer with an end-of-sequence token, found none: outputs could not end")
    return int(tokenizer.eos_token_id)


def end_token_ids(tokenizer: Tokenizer) -> set[int]:
    """All tokens at which generation stops: `end_token_id`, and the end of sequence if it is another."""
    ids = {end_token_id(tokenizer)}
    return ids if tokenizer.eos_token_id is None else ids | {tokenizer.eos_token_id}


def _render(example: Example, tokenizer: Tokenizer, encoder_decoder: bool) -> list[int]:
    text, special = _text(example, tokenizer, encoder_decoder)
    if not special:
        return _tokens(text, tokenizer)
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    eos = tokenizer.eos_token_id
    while ids and ids[-1] == eos:
        ids.pop()
    return [*ids, eos] if encoder_decoder and eos is not None else ids


def _text(example: Example, tokenizer: Tokenizer, encoder_decoder: bool) -> tuple[str, bool]:
    """The text of a prompt, and whether the tokenizer adds its special tokens: a chat template has written them."""
    first, *later = (*example.history, example.input)
    turns = ["\n\n".join(part for part in (example.instruction, first) if part), *later]
    if example.template is None and tokenizer.chat_template and not encoder_decoder:
        return prompt_text(turns, tokenizer), False
    if later:
        why = "without a chat template a prompt is one text"
        if encoder_decoder:
            why = "an encoder-decoder reads one text"
        elif example.template is not None:
            why = f"the prompt of this task, {example.template.text!r}, has a place for one text; give the last alone"
        raise ConfigError(f"expected one message of the user's, found a conversation of {len(turns)} turns: {why}")
    [content] = turns
    text = content + "\n" if example.template is None else example.template.prompt(example.instruction, first)
    return text, True
