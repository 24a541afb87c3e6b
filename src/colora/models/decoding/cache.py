"""Keys and values of running rows, each row at its own length: a row joins and leaves while the others go on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from colora.errors import ConfigError

__all__ = ["SlotCache", "check_attention"]

FIRST_CAPACITY = 128  # positions; doubled whenever a row needs more


class SlotCache(Cache):
    """A transformers cache of `rows` rows. Row i holds positions 0 ≤ p < length of its own, so that nothing moves when
    another row comes or goes; what lies beyond is hidden by the mask.

    Before each forward pass it is told where that writes: by `at_rows` whole prompts, into rows from some row on, by
    `at_positions` one token of each of some rows. A row that leaves is wiped: a mask hides numbers, but a product with
    NaN or infinity that another row had left there would still be NaN.

    Args:
        layers: number of the model's layers.
        rows: most rows at once.
        positions: longest row.
    """

    def __init__(self, layers: int, rows: int, positions: int) -> None:
        self.rows, self.positions = rows, positions
        self.first = 0
        self.token_positions: Tensor | None = None
        self.slots: Tensor | None = None
        self.longest = 0
        self.filled = [0] * rows
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def at_rows(self, first: int, count: int, length: int) -> None:
        """The next pass writes `count` prompts, filled up to `length`, into the rows from `first` on."""
        self.first, self.token_positions, self.longest = first, None, length
        self.filled[first : first + count] = [length] * count

    def at_positions(self, positions: Sequence[int], device: torch.device, slots: Sequence[int] | None = None) -> None:
        """The next pass writes one token of each of the first rows, or of the rows `slots`, at these positions."""
        self.token_positions = torch.tensor(positions, device=device)
        self.slots = None if slots is None else torch.tensor(slots, device=device)
        self.longest = max(positions) + 1
        for slot, position in zip(range(len(positions)) if slots is None else slots, positions, strict=True):
            self.filled[slot] = max(self.filled[slot], position + 1)

    @property
    def visible(self) -> Tensor:
        """What each token of a pass after `at_positions` may look at, itself included: bool (rows, longest)."""
        assert self.token_positions is not None  # only such passes need a mask
        index = torch.arange(self.longest, device=self.token_positions.device)
        return index <= self.token_positions[:, None]

    def additive_mask(self, otherwise: torch.dtype) -> Tensor:
        """`visible` as eager attention adds it to the scores: 0 or the least finite number, (rows, 1, 1, longest).

        Never a boolean: some models would add that too, and so look at everything. Of the type of the keys, or of
        `otherwise` before the first pass.
        """
        dtype = next((layer.keys.dtype for layer in self.layers if layer.keys is not None), otherwise)
        visible = self.visible
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None, None]

    def move(self, source: int, target: int) -> None:
        """Give `target` what row `source` holds, and wipe `source`."""
        length = self.filled[source]
        for layer in self.layers:
            layer.move(source, target, length)
        self._wipe(target, length, self.filled[target])
        self.filled[target] = length
        self.wipe(source)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row that has gone."""
        self._wipe(row, 0, self.filled[row])
        self.filled[row] = 0

    def _wipe(self, row: int, start: int, stop: int) -> None:
        if start < stop:
            for layer in self.layers:
                layer.wipe(row, start, stop)

    def reset(self) -> None:
        """Give back the room that longer rows took; to be called while there are none."""
        for layer in self.layers:
            layer.reset()

    def bytes(self) -> int:
        """Memory of the keys and values of all layers."""
        return sum(part.nbytes for layer in self.layers for part in (layer.keys, layer.values) if part is not None)


class _SlotLayer(CacheLayerMixin):
    """One layer: keys and values of shape (rows, heads, capacity, head_dim)."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, width = states.shape
            setattr(self, name, states.new_zeros(self.cache.rows, heads, FIRST_CAPACITY, width))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, (count, _, length, _) = self.cache, key_states.shape
        if cache.token_positions is None:
            self._reserve(length)
            joined = slice(cache.first, cache.first + count)
            self.keys[joined, :, :length] = key_states
            self.values[joined, :, :length] = value_states
            return key_states, value_states  # a prompt looks at itself alone
        self._reserve(cache.longest)
        device = key_states.device  # a model's layers may lie on several
        rows = torch.arange(count, device=device) if cache.slots is None else cache.slots.to(device)
        positions = cache.token_positions.to(device)
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        of: slice | Tensor = slice(count) if cache.slots is None else rows
        return self.keys[of, :, : cache.longest], self.values[of, :, : cache.longest]

    def _reserve(self, length: int) -> None:
        capacity = self.keys.shape[2]
        if length <= capacity:
            return
        while capacity < length:
            capacity *= 2
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], min(capacity, max(length, self.cache.positions)), old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def move(self, source: int, target: int, length: int) -> None:
        if self.is_initialized:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]

    def wipe(self, row: int, start: int, stop: int) -> None:
        if self.is_initialized:
            self.keys[row, :, start:stop] = 0
            self.values[row, :, start:stop] = 0

    def reset(self) -> None:
        if self.is_initialized and self.keys.shape[2] > FIRST_CAPACITY:
            self.is_initialized = False
            self.keys = self.values = None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest, 0

    def get_seq_length(self) -> int:
        return 0 if self.cache.token_positions is None else self.cache.longest - 1

    def get_max_length(self) -> int:
        return self.cache.positions


def check_attention(config: PretrainedConfig, positions: int) -> None:
    """Refuse models whose layers do not all look at everything before them, within `positions`.

    Raises:
        ConfigError: naming what the model has instead.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"expected a decoder-only model, found an encoder-decoder ({config.model_type})")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    windows: dict[str, Any] = {
        "sliding_attention": getattr(text, "sliding_window", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    # Models without `layer_types` have the window in every layer.
    used = [kind for kind in windows if kind in kinds] if hasattr(text, "layer_types") else ["sliding_attention"]
    limits: dict[str, int] = {kind: windows[kind] for kind in used if windows[kind] and windows[kind] < positions}
    unknown = kinds - {"full_attention", *windows}
    if not limits and not unknown:
        return
    found = ", ".join(sorted(unknown | (kinds & limits.keys()))) or "sliding windows"
    width = None if unknown else min(limits.values())
    raise ConfigError(
        f"expected layers with full attention over {positions} positions, found {found}"
        + (f" of {width} positions" if width else "")
        + f" ({text.model_type})"
        + (f": choose a length of at most {width}" if width else "")
    )
