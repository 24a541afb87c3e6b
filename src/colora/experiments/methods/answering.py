"""What a base model makes of questions with examples before them: nats of the right answers, and answers of its own.

Every prompt is read once: its keys and values serve the likelihood and the generated answer. Where all questions of a
task have the same examples before them, as they do unless the nearest are chosen, these are read once for the task.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StoppingCriteria, StoppingCriteriaList

from colora.experiments.methods.in_context import Question, Questions
from colora.models.batching import device_of, pad, pad_token_id
from colora.models.generate import GREEDY
from colora.models.likelihood import label_logits, row_nll
from colora.models.modes import eval_mode
from colora.tasks.encode import IGNORED
from colora.tasks.prompting.prompts import end_token_ids
from colora.tasks.tokenizer import Tokenizer

__all__ = ["answer_logits", "answer_questions"]

ROWS = 12  # of a batch: each holds the keys and values of a whole context


def answer_questions(
    model: nn.Module, tokenizer: Tokenizer, asked: Questions, generate: int, max_new_tokens: int
) -> tuple[list[float], list[str]]:
    """Nats of each right answer, its end included, and the greedy answers to the first `generate` questions.

    A generated answer ends where `asked.end` begins, with the end token, or after `max_new_tokens`.
    """
    nats: list[float] = []
    texts: list[str] = []
    with eval_mode(model):
        shared = _read(model, None, [asked.items[0].context]) if asked.share_context else None
        for begin in range(0, len(asked.items), ROWS):
            batch = asked.items[begin : begin + ROWS]
            wanted = max(0, min(generate - begin, len(batch)))
            read = _prompts(model, tokenizer, batch, shared)
            later = copy.deepcopy(read) if wanted else None
            nats += _nats(model, batch, read)
            if later is not None:
                texts += _generated(model, tokenizer, later.first(wanted), asked.end, max_new_tokens)
    return nats, texts


def answer_logits(model: nn.Module, tokenizer: Tokenizer, asked: Questions) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Batch by batch of questions: the row in the batch of every answer token, its logits (answer tokens, vocabulary),
    and how many questions there are."""
    with eval_mode(model):
        shared = _read(model, None, [asked.items[0].context]) if asked.share_context else None
        for begin in range(0, len(asked.items), ROWS):
            batch = asked.items[begin : begin + ROWS]
            row, logits, _ = label_logits(model, *_inputs(batch, _prompts(model, tokenizer, batch, shared)))
            yield row, logits, len(batch)


class _Read:
    """Rows of tokens (rows, length), their 0/1 mask, and the keys and values of all but the last column."""

    def __init__(self, ids: Tensor, mask: Tensor, cache: Cache) -> None:
        self.ids, self.mask, self.cache = ids, mask, cache

    def first(self, rows: int) -> "_Read":
        """The first rows alone; this object is spent."""
        self.cache.batch_select_indices(torch.arange(rows, device=self.ids.device))
        return _Read(self.ids[:rows], self.mask[:rows], self.cache)


def _prompts(model: nn.Module, tokenizer: Tokenizer, batch: Sequence[Question], shared: Cache | None) -> _Read:
    """The prompts of a batch, read up to their last token. Padding stands before the prompts, all end together."""
    device, filler = device_of(model), pad_token_id(tokenizer)
    if shared is None:
        ids, mask = pad([question.context + question.prompt for question in batch], filler, device, left=True)
        cache = None
    else:
        ids, mask = pad([question.prompt for question in batch], filler, device, left=True)
        context = torch.tensor([batch[0].context] * len(batch), dtype=torch.long, device=device)
        ids, mask = torch.cat([context, ids], dim=1), torch.cat([torch.ones_like(context), mask], dim=1)
        cache = copy.deepcopy(shared)
        if context.shape[1]:
            cache.batch_repeat_interleave(len(batch))
    known = 0 if cache is None else cache.get_seq_length()
    if ids.shape[1] - 1 > known:
        cache = _forward(model, cache, ids[:, known:-1], mask[:, :-1])
    return _Read(ids, mask, cache if cache is not None else _empty(model))


def _read(model: nn.Module, cache: Cache | None, rows: Sequence[Sequence[int]]) -> Cache:
    if not rows[0]:
        return _empty(model)
    ids = torch.tensor([list(row) for row in rows], dtype=torch.long, device=device_of(model))
    return _forward(model, cache, ids, torch.ones_like(ids))


def _empty(model: nn.Module) -> Cache:
    return DynamicCache(config=model.config)


def _forward(model: nn.Module, cache: Cache | None, ids: Tensor, mask: Tensor) -> Cache:
    """The cache, grown by `ids` (rows, new); the mask is of all columns so far, (rows, known + new)."""
    cache = _empty(model) if cache is None else cache
    decoder = model.get_decoder()  # type: ignore[operator]
    decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _nats(model: nn.Module, batch: Sequence[Question], read: _Read) -> list[float]:
    return row_nll(model, *_inputs(batch, read)).tolist()


def _inputs(batch: Sequence[Question], read: _Read) -> tuple[dict[str, object], Tensor]:
    """What the model is given for the answers after what it has read, and the labels."""
    answers, mask = pad([question.answer for question in batch], 0, read.ids.device)
    labels, _ = pad([question.answer for question in batch], IGNORED, read.ids.device)
    whole = torch.cat([read.mask, mask], dim=1)
    ids = torch.cat([read.ids[:, -1:], answers], dim=1)
    inputs = {
        "input_ids": ids,
        "attention_mask": whole,
        "position_ids": _positions(whole)[:, -ids.shape[1] :],
        "past_key_values": read.cache,
        "use_cache": True,
    }
    return inputs, torch.cat([torch.full_like(ids[:, :1], IGNORED), labels], dim=1)


def _generated(model: nn.Module, tokenizer: Tokenizer, read: _Read, end: str, max_new_tokens: int) -> list[str]:
    ends, width = end_token_ids(tokenizer), read.ids.shape[1]
    produced = model.generate(  # type: ignore[operator]
        input_ids=read.ids,
        attention_mask=read.mask,
        past_key_values=read.cache,
        max_new_tokens=max_new_tokens,
        stopping_criteria=StoppingCriteriaList([_AtEnd(tokenizer, width, end)]),
        **GREEDY | {"eos_token_id": sorted(ends), "pad_token_id": pad_token_id(tokenizer)},
    )
    texts = []
    for tokens in produced[:, width:].tolist():
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(_text(tokenizer, tokens[:stop]).partition(end)[0].strip())
    return texts


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _AtEnd(StoppingCriteria):
    """A row is done once its new text contains `end`."""

    def __init__(self, tokenizer: Tokenizer, prompt: int, end: str) -> None:
        self.tokenizer, self.prompt, self.end = tokenizer, prompt, end

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        done = [self.end in _text(self.tokenizer, row) for row in input_ids[:, self.prompt :].tolist()]
        return torch.tensor(done, device=input_ids.device)
