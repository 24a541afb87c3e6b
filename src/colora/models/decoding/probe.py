"""A check at start: rows in a batch, alone and in company, must have the logits of the model's plain forward pass.

It knows nothing of architectures. Whatever a model does that keys and values kept by row cannot follow (positions that
it counts itself, layers with a state, layers that look at a part of what went before, a mask that is ignored) shows in
the logits, and the model is refused by name.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from colora.errors import ConfigError
from colora.models.decoding.limits import check_scaling, spans
from colora.models.decoding.passes import MASKS, Mask, Passes

__all__ = ["checked_mask"]

# The difference between logits, as a part of their own spread, that rounding may make, by the coarsest type among the
# weights; in float64 too, as many models take softmax and norms in float32. Faults make 0.01 to 1.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
COARSEST = 1e-2  # of weights with fewer bits
EXCUSED = 30  # so many times that, at most, where the model rounds as much without a batch: `_own_noise`
STRAY = 8  # from float16 down one token in so many may differ by more: a mixture may choose another expert
# A longer probe, at a length where the configuration says that something may change, takes at most this many products
# of a token and a weight: two or three seconds of a core.
MOST_WORK = {"cpu": 1.2e11}
MOST_WORK_ELSEWHERE = 1e14
ONE_THREAD = 10**9  # weights of a model that is checked with one thread: its passes are short
_LENGTHS = ((9, 1), (12, 8), (7, 3), (5, 2), (9, 6))  # of the short probes: with what follows, the prompt alone


class _Refusal(Exception):
    """Why a way of running the model does not do."""


@dataclass(frozen=True)
class _Probe:
    """A row of the check: its prompt and what follows, token by token.

    Attributes:
        logits: of the plain forward pass after the prompt and after each token that follows.
    """

    ids: list[int]
    prompt: int
    task: int
    logits: Tensor

    def expected(self, length: int) -> Tensor:
        """The logits after so many tokens."""
        return self.logits[length - self.prompt]


def checked_mask(model: PreTrainedModel, positions: int, tasks: Sequence[int]) -> Mask:
    """The kind of mask with which rows in a batch have the logits of the plain forward pass.

    Reads some 70 tokens in 20 passes, over a cache of its own, and draws no random number of the process.

    Args:
        model: the base model with its adapter, in evaluation mode.
        positions: longest row.
        tasks: ids of tasks to check with, taken in turn.

    Raises:
        ConfigError: the model cannot run in such a batch; with its name, the reason and what to do.
    """
    check_scaling(model.config, positions)
    with _few_threads(model):
        return _tried_masks(model, positions, tasks)


@contextmanager
def _few_threads(model: PreTrainedModel) -> Iterator[None]:
    """One thread for a small model: several are many times slower beside other work, as each of many small products
    waits for the last of its threads."""
    before = torch.get_num_threads()
    if sum(weight.numel() for weight in model.parameters()) < ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tried_masks(model: PreTrainedModel, positions: int, tasks: Sequence[int]) -> Mask:
    """The first kind of mask that does. Raises ConfigError if none does."""
    named = inspect.signature(model.forward).parameters
    names_no_cache = "its forward pass takes no past_key_values, so it keeps no keys and values by row"
    reasons = []
    try:
        if "past_key_values" in named:
            names_no_cache = ""
        elif not any(one.kind is one.VAR_KEYWORD for one in named.values()):
            raise _Refusal(names_no_cache)
        short, hint = _short_probes(model, positions, tasks), _hint(model, positions)
        for mask in MASKS:
            try:
                _run(model, mask, positions, short, _short_script, hint)
                _check_spans(model, mask, positions, tasks)
                return mask
            except _Refusal as refusal:
                reasons.append(str(refusal))
    except _Refusal as refusal:
        reasons.append(str(refusal))
    reason = names_no_cache or reasons[0]
    raise ConfigError(
        f"{type(model).__name__} cannot run in continuous batches: {reason}. An answer would depend "
        "on the other requests in the batch: use model.generate, or export the tasks as plain LoRAs "
        "for a server that knows this model"
    )


# ---- probes ----------------------------------------------------------------------------------------------------------


def _short_probes(model: PreTrainedModel, positions: int, tasks: Sequence[int]) -> list[_Probe]:
    probes = []
    for number, ((length, prompt), task) in enumerate(zip(_LENGTHS, cycle(tasks), strict=False)):
        length = max(2, min(length, positions))
        probes.append(_probe(model, _ids(model, length, number), min(prompt, length - 1), task))
    return probes


def _probe(model: PreTrainedModel, ids: list[int], prompt: int, task: int) -> _Probe:
    """A probe with the logits of the plain forward pass: no cache, no company."""
    keep = len(ids) - prompt + 1
    options = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = _logits(model, "its plain forward pass", [ids], task, use_cache=False, **options)[0, -keep:]
    if not logits.isfinite().all():
        raise _Refusal("its plain forward pass gives logits that are NaN or infinite")
    return _Probe(ids, prompt, task, logits)


def _ids(model: PreTrainedModel, count: int, seed: int) -> list[int]:
    """Token ids without special ones, which may stand for an image or for padding."""
    size = int(model.get_input_embeddings().weight.shape[0])
    special = set(_special_ids(model.config.to_dict()))
    drawn = torch.randint(size, (count + 64,), generator=torch.Generator().manual_seed(seed)).tolist()
    plain = [token for token in drawn if token not in special] or drawn
    return list(islice(cycle(plain), count))


def _special_ids(config: dict[str, Any]) -> list[int]:
    found: list[int] = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += _special_ids(value)
        elif "token" in str(name):
            found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
    return found


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """Rows that join, go on and leave as those of a batch do; how far their logits are from the expected ones."""

    passes: Passes
    running: list[tuple[_Probe, int]] = field(default_factory=list)
    differences: list[tuple[float, str, _Probe]] = field(default_factory=list)

    def join(self, *probes: _Probe) -> None:
        prompts, tasks = [probe.ids[: probe.prompt] for probe in probes], [probe.task for probe in probes]
        first = len(self.running)
        logits = self.passes.prompts(prompts, tasks, first)
        self.running += [(probe, probe.prompt) for probe in probes]
        self._compare(self.running[first:], logits)

    def step(self) -> None:
        for probe in [probe for probe, length in self.running if length == len(probe.ids)]:
            self.leave(probe)
        if not self.running:
            return
        tokens = [probe.ids[length] for probe, length in self.running]
        lengths = [length for _, length in self.running]
        logits = self.passes.tokens(tokens, lengths, [probe.task for probe, _ in self.running])
        self.running = [(probe, length + 1) for probe, length in self.running]
        self._compare(self.running, logits)

    def leave(self, probe: _Probe) -> None:
        """Take a row out, whether it has ended or not; the last one moves into its place."""
        index = next((index for index, (one, _) in enumerate(self.running) if one is probe), None)
        if index is None:
            return
        last = self.running.pop()
        if index < len(self.running):
            self.running[index] = last
            self.passes.cache.move(len(self.running), index)
        else:
            self.passes.cache.wipe(index)

    def _compare(self, rows: Sequence[tuple[_Probe, int]], logits: Tensor) -> None:
        longest = max(length for _, length in self.running)
        for (probe, length), found in zip(rows, logits, strict=True):
            company = f"with {len(self.running) - 1} other rows" if len(self.running) > 1 else "alone"
            where = f"after {length} tokens, {company}, of which the longest had {longest}"
            self.differences.append((_difference(found, probe.expected(length)), where, probe))


def _short_script(run: _Run, probes: Sequence[_Probe]) -> None:
    """Alone and in company, longer and shorter than others, and in places that longer rows have left."""
    first, long, third, short, other = probes
    run.join(first)
    run.step()
    run.join(long)
    run.step()
    run.join(third)
    run.step()
    run.leave(first)  # the third row moves there
    run.step()
    run.leave(long)
    run.join(short, other)  # one of them where the long row was
    while run.running:
        run.step()


def _span_script(run: _Run, probes: Sequence[_Probe]) -> None:
    for probe in probes:
        run.join(probe)
    while run.running:
        run.step()


def _run(
    model: PreTrainedModel,
    mask: Mask,
    positions: int,
    probes: Sequence[_Probe],
    script: Callable[[_Run, Sequence[_Probe]], None],
    hint: str,
) -> None:
    run = _Run(Passes(model, 3, positions, mask))
    try:
        script(run, probes)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _Refusal(f"its forward pass over rows in slots raises {_told(error)}") from error
    if not any(layer.is_initialized for layer in run.passes.cache.layers):
        raise _Refusal("it leaves past_key_values empty, so it keeps no keys and values by row")
    least = tolerance = max(_tolerance(weight) for weight in model.parameters())
    off = sorted((one for one in run.differences if not one[0] <= least), key=lambda one: -one[0])
    if off:
        tolerance = max(least, min(EXCUSED * least, 3 * _own_noise(model, off[0][2])))
        off = [one for one in off if not one[0] <= tolerance]
    if not off or (least >= TOLERANCE[torch.float16] and len(off) * STRAY <= len(run.differences)):
        return
    worst, where, _ = off[0]
    raise _Refusal(
        f"the logits of {len(off)} of {len(run.differences)} probes differ from those of its plain forward pass, by up "
        f"to {worst:.1g} of their spread ({where}), where rounding makes at most {tolerance:.0e}{hint}"
    )


def _check_spans(model: PreTrainedModel, mask: Mask, positions: int, tasks: Sequence[int]) -> None:
    """Probes on both sides of each length at which the configuration says that something may change."""
    size = sum(weight.numel() for weight in model.parameters())
    for name, span in sorted(spans(model.config, positions).items(), key=lambda item: item[1]):
        hint = f": choose a length of at most {span}, its {name}"
        if 4 * span * size > MOST_WORK.get(model.device.type, MOST_WORK_ELSEWHERE):
            raise _Refusal(f"its layers may look no further than {span} positions, and a probe takes too long{hint}")
        length = min(span + 3, positions)
        ids = _ids(model, length, span)
        before = _probe(model, ids, span - 1, tasks[0])
        beyond = _Probe(ids, length - 1, tasks[0], before.logits[length - span :])
        short = _probe(model, _ids(model, min(6, length), 0), 1, tasks[-1])
        _run(model, mask, positions, (before, short, beyond), _span_script, hint)


def _hint(model: PreTrainedModel, positions: int) -> str:
    """What to try where short probes already go beyond a length that the configuration names."""
    found = {span: name for name, span in spans(model.config, positions).items() if span < max(_LENGTHS)[0]}
    return f": a length of at most {min(found)}, its {found[min(found)]}, may do" if found else ""


def _own_noise(model: PreTrainedModel, probe: _Probe) -> float:
    """How far the model's logits with its own cache, alone, are from those without; 0 if it takes none of this kind."""
    cache, start, worst = DynamicCache(config=model.config), 0, 0.0
    with suppress(_Refusal):
        for stop in range(probe.prompt, len(probe.ids) + 1):
            options = {"past_key_values": cache, "use_cache": True}
            found = _logits(model, "its forward pass with a cache", [probe.ids[start:stop]], probe.task, **options)
            start, worst = stop, max(worst, _difference(found[0, -1], probe.expected(stop)))
    return worst if cache.get_seq_length() else 0.0  # a model that ignores the cache is off by more than noise


def _logits(model: Any, what: str, ids: list[list[int]], task: int, **options: object) -> Tensor:
    device = model.device
    try:
        logits: Tensor = model(
            input_ids=torch.tensor(ids, device=device), task_ids=torch.tensor([task], device=device), **options
        ).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _Refusal(f"{what} raises {_told(error)}") from error
    return logits


def _difference(found: Tensor, expected: Tensor) -> float:
    """Root of the mean square of the difference, as a part of the spread of what was expected; NaN if one is."""
    expected = expected.double()
    spread = float(expected.std()) or 1.0
    return float((found.double() - expected).square().mean().sqrt()) / spread


def _tolerance(weight: Tensor) -> float:
    return TOLERANCE.get(weight.dtype, COARSEST)


def _told(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
