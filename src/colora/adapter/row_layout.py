"""Where the rows of the batch lie in what a layer of the base model sees.

Nearly all layers see the batch in the first dimension: (batch, seq, d), or flattened (batch · seq, d). Some models
turn it round inside, and a batch that is as long as it is wide would then take the tasks of its tokens' places,
without a word. So the layers of those models are listed here. A layer of another model that turns the batch round is
refused as soon as a batch comes that is not square (`Routing.rows`).
"""

import re

__all__ = ["is_time_first"]

_TIME_FIRST = {
    "fsmt": r".*\.layers\.\d+\..*",
    "xlnet": r".*\.ff\.layer_[12]",
    "longformer": r".*\.self\.(query|key|value)(_global)?",
    "led": r".*\.longformer_self_attn\.(query|key|value)(_global)?",
}
"""For a model type, the names of the layers that see (seq, batch, d)."""


def is_time_first(model_type: str | None, layer_name: str) -> bool:
    """Whether this layer of a model of this type sees (seq, batch, d) rather than (batch, seq, d)."""
    pattern = _TIME_FIRST.get(model_type or "")
    return pattern is not None and re.fullmatch(pattern, layer_name) is not None
