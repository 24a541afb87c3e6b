"""Where the rows of the batch lie in what a layer of the base model sees.

Nearly all layers see the batch in the first dimension: (batch, seq, d), or flattened (batch · seq, d). Others would
take the tasks of whatever stands there instead, without a word, where it happens to be as long as the batch:

- Some models turn the batch round inside, to (seq, batch, d). Their layers are listed here. A layer of another model
  that does so is refused as soon as a batch comes that is not square (`Routing.rows`).
- A layer of one expert, where experts are a list of modules, sees the tokens that were sent to it.
- A layer of a vision or audio tower beside a text model sees images, patches or frames, of which a row may have any
  number.
"""

import re
from enum import Enum

__all__ = ["RowLayout", "is_listed_expert", "row_layout"]


class RowLayout(Enum):
    """What the first dimensions of a layer's input are."""

    BATCH_FIRST = "(batch, seq, d)"
    TIME_FIRST = "(seq, batch, d)"
    FOREIGN = "other rows than those of the batch"


_TIME_FIRST = {
    "fsmt": r".*\.layers\.\d+\..*",
    "xlnet": r".*\.ff\.layer_[12]",
    "longformer": r".*\.self\.(query|key|value)(_global)?",
    "led": r".*\.longformer_self_attn\.(query|key|value)(_global)?",
}
"""For a model type, the names of the layers that see (seq, batch, d)."""

_LISTED_EXPERT = re.compile(r"(^|\.)\w*experts\.(expert_)?\d+\.")


def is_listed_expert(layer_name: str) -> bool:
    """Whether this is a layer of one expert of a list, such as `mlp.experts.3.wi` or `mlp.experts.expert_3.wi`."""
    return _LISTED_EXPERT.search(layer_name) is not None


def row_layout(model_type: str | None, layer_name: str, in_tower: bool = False) -> RowLayout:
    """How the rows lie in this layer of a model of this type; `in_tower` says that it sees images or sounds."""
    if in_tower or is_listed_expert(layer_name):
        return RowLayout.FOREIGN
    pattern = _TIME_FIRST.get(model_type or "")
    return RowLayout.TIME_FIRST if pattern and re.fullmatch(pattern, layer_name) else RowLayout.BATCH_FIRST
