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
    `at_positions` one token of each of the first rows.

    Args:
        layers: number of the model's layers.
        rows: most rows at once.
        positions: longest row.
    """

    def __init__(self, layers: int, rows: int, positions: int) -> None:
        self.rows, self.positions = rows, positions
        self.first = 0
        self.token_positions: Tensor | None = None
        self.longest = 0
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def at_rows(self, first: int) -> None:
        """The next pass writes whole prompts, into the rows from `first` on."""
        self.first, self.token_positions = first, None

    def at_positions(self, positions: Sequence[int], device: torch.device) -> Tensor:
        """The next pass writes one token of each of the first rows, at these positions.

        Returns:
            the mask of that pass, (rows, 1, 1, longest): what each token may look at, itself included.
        """
        self.token_positions = torch.tensor(positions, device=device)
        self.longest = max(positions) + 1
        return (torch.arange(self.longest, device=device) <= self.token_positions[:, None])[:, None, None]

    def move(self, source: int, target: int) -> None:
        """Give `target` what row `source` holds."""
        for layer in self.layers:
            layer.move(source, target)

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
        rows = torch.arange(count, device=key_states.device)
        self.keys[rows, :, cache.token_positions] = key_states[:, :, 0]
        self.values[rows, :, cache.token_positions] = value_states[:, :, 0]
        return self.keys[:count, :, : cache.longest], self.values[:count, :, : cache.longest]

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

    def move(self, source: int, target: int) -> None:
        if self.is_initialized:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]

    def reset(self) -> None:
        if self.is_initialized and self.keys.shape[2] > FIRST_CAPACITY:
            self.is_initialized = False
            self.keys = self.values = None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # asked for prompts only: for single tokens the mask is given

    def get_seq_length(self) -> int:
        return 0

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
    window = getattr(text, "sliding_window", None)
    if kinds <= {"full_attention", "sliding_attention"} and (
        window is None or window >= positions or ("sliding_attention" not in kinds and hasattr(text, "layer_types"))
    ):
        return
    found = ", ".join(sorted(kinds - {"full_attention"})) or "sliding windows"
    raise ConfigError(
        f"expected layers with full attention over {positions} positions, found {found}"
        + (f" of {window} positions: choose a length of at most {window}" if window else f" ({text.model_type})")
    )
