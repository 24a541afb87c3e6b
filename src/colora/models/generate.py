"""Batched greedy generation for prompts of mixed tasks and lengths."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import LongTensor, nn

from colora.errors import ColoraError, ConfigError, TaskIdError
from colora.models.batching import device_of, length_batches, pad, pad_token_id
from colora.models.likelihood import is_encoder_decoder
from colora.models.modes import eval_mode
from colora.models.positions import most_positions
from colora.tasks.prompting.prompts import end_token_ids, fit_prompt
from colora.tasks.schema import Example
from colora.tasks.tokenizer import Tokenizer
from colora.tasks.vocabulary import beyond_embeddings

__all__ = ["fit_prompts", "generate_outputs"]

# Models ship generation settings of their own (sampling, temperature, penalties against repetition). They would make
# the result depend on the seed, or punish an answer that rightly repeats its input: each is set to neutral.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def generate_outputs(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    task_ids: LongTensor | None,
    max_new_tokens: int,
    batch_rows: int = 16,
    progress: Callable[[int], None] | None = None,
    batches: Sequence[list[int]] | None = None,
) -> list[str]:
    """The model's output for every prompt, in the order given.

    Prompts of similar length share a batch. Causal models get them padded on the left, so that every row's next token
    follows its prompt; encoder-decoders on the right. A row ends with the end token of the prompt format, with the
    tokenizer's end-of-sequence token, or after `max_new_tokens`. Neither the model's mode nor the tokenizer is changed.

    Args:
        model: a transformers model, causal or encoder-decoder, plain or wrapped by PEFT.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt, none empty.
        task_ids: LongTensor (len(prompts),), given to `model.generate` batch by batch; None: nothing is given.
        max_new_tokens: longest output in tokens.
        batch_rows: rows per batch.
        progress: called with the number of rows just generated.
        batches: which prompts share a batch, and their order in it; by default `batch_rows` of similar length.

    Returns:
        the decoded outputs, without special tokens and outer white space.

    Raises:
        ConfigError: if `max_new_tokens` or `batch_rows` is not positive.
        TaskIdError: if `task_ids` are not one integer for each prompt.
        ColoraError: if a prompt is empty.
    """
    _check(prompts, task_ids, max_new_tokens)
    encoder_decoder, device = is_encoder_decoder(model), device_of(model)
    ends, filler = end_token_ids(tokenizer), pad_token_id(tokenizer)
    settings = GREEDY | {"eos_token_id": sorted(ends), "pad_token_id": filler}
    outputs = [""] * len(prompts)
    with eval_mode(model):
        for batch in batches or length_batches([len(prompt) for prompt in prompts], batch_rows):
            input_ids, mask = pad([prompts[row] for row in batch], filler, device, left=not encoder_decoder)
            routed = {} if task_ids is None else {"task_ids": task_ids[batch].to(device)}
            produced = model.generate(  # type: ignore[operator]
                input_ids=input_ids, attention_mask=mask, max_new_tokens=max_new_tokens, **settings, **routed
            )
            # A decoder's row begins with its start token, which in some models is the end token too.
            new = produced[:, 1:] if encoder_decoder else produced[:, input_ids.shape[1] :]
            for row, tokens in zip(batch, new.tolist(), strict=True):
                outputs[row] = _text(tokenizer, tokens, ends)
            if progress is not None:
                progress(len(batch))
    return outputs


def fit_prompts(
    rows: Sequence[tuple[str, Example]], model: nn.Module, tokenizer: Tokenizer, max_length: int, max_new_tokens: int
) -> list[list[int]]:
    """The prompts of (task, example) rows in tokens, cut to `max_length` and to the model's positions.

    Raises:
        ConfigError: if the model has no more than `max_new_tokens` positions, or no embeddings for a token.

    Warns:
        UserWarning: once for each task whose prompts had to be cut.
    """
    encoder_decoder, room = is_encoder_decoder(model), max_length
    positions = most_positions(model)
    if positions is not None:
        room = min(room, positions if encoder_decoder else positions - max_new_tokens)
    if room < 1:
        raise ConfigError(
            f"expected room for a prompt, found {positions} positions and max_new_tokens={max_new_tokens}"
        )
    prompts, cut = [], Counter[str]()
    for name, example in rows:
        prompt, dropped = fit_prompt(example, tokenizer, room, encoder_decoder)
        if fault := beyond_embeddings(prompt, tokenizer):
            raise ConfigError(f"a prompt of task {name!r}: {fault}")
        prompts.append(prompt)
        cut[name] += dropped > 0
    for name, number in cut.items():
        if number:
            warnings.warn(f"task {name!r}: {number} prompts were cut to fit {room} tokens", stacklevel=3)
    return prompts


def _check(prompts: Sequence[Sequence[int]], task_ids: LongTensor | None, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
        raise ColoraError(f"expected prompts of at least one token, found empty ones at {empty}")
    if task_ids is not None and (task_ids.shape != (len(prompts),) or task_ids.is_floating_point()):
        raise TaskIdError(
            f"expected integer task_ids of shape ({len(prompts)},), found {task_ids.dtype} {tuple(task_ids.shape)}"
        )


def _text(tokenizer: Tokenizer, tokens: list[int], ends: set[int]) -> str:
    # Rows that ended early are filled up; cut here, because the filler need not be a special token.
    stop = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    decoded = tokenizer.decode(tokens[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(decoded).strip()
