"""The negative log-likelihood of a batch's labels: what training minimises and evaluation reports."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from jaxtyping import Float, Int
from torch import Tensor, nn

from colora.errors import ColoraError
from colora.tasks.encode import IGNORED

__all__ = ["is_encoder_decoder", "label_logits", "label_tokens", "row_nll"]


Labelled = tuple[Int[Tensor, " labels"], Float[Tensor, "labels vocabulary"], Int[Tensor, " labels"]]


def row_nll(model: nn.Module, inputs: Mapping[str, Any], labels: Int[Tensor, "rows seq"]) -> Float[Tensor, " rows"]:
    """Negative log-likelihood in nats of each row's labels, summed: (rows,), in float32 or the model's float64.

    Args:
        model: a causal LM or an encoder-decoder of transformers, plain, wrapped by PEFT, or in data parallel.
        inputs: all keywords of the model but the labels.
        labels: LongTensor (rows, length), `IGNORED` where nothing is to be said. A causal LM predicts the label at
            t + 1 from position t; an encoder-decoder shifts its labels itself. Those of a causal LM may be one longer
            than its inputs: after the last label nothing is predicted, so its token need not go through the model.

    Raises:
        ColoraError: if the model gives logits of another shape than the labels.
    """
    rows, logits, targets = label_logits(model, inputs, labels)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses.new_zeros(len(labels)).index_add(0, rows, losses)


def label_logits(model: nn.Module, inputs: Mapping[str, Any], labels: Int[Tensor, "rows seq"]) -> Labelled:
    """What a model makes of every place that has a label; arguments and errors as of `row_nll`.

    Returns:
        for each label, row by row and from left to right: its row, the logits (labels, vocabulary) in float32 or the
        model's float64, and the label.
    """
    if is_encoder_decoder(model):
        logits, targets = model(**inputs, labels=labels).logits, labels
    else:
        ids = inputs.get("input_ids")
        cut = ids is not None and ids.shape[1] == labels.shape[1] - 1
        targets = labels[:, 1:] if cut else F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        # A small model with a large vocabulary spends a fifth of its time and most of its memory on logits, and
        # prompts need none: ask for the columns in which some row has a label.
        columns = (targets != IGNORED).any(0).nonzero().squeeze(1)
        if len(columns) and _takes_logits_to_keep(model):
            logits, targets = model(**inputs, logits_to_keep=columns).logits, targets[:, columns]
        else:
            logits = model(**inputs).logits
    if logits.shape[:2] != targets.shape:
        raise ColoraError(
            f"expected logits of shape {(*targets.shape, 'vocabulary')} from the model, found {tuple(logits.shape)}"
        )
    targets = targets.to(logits.device)
    wanted = targets != IGNORED
    chosen = logits[wanted]
    return wanted.nonzero()[:, 0], chosen.to(torch.promote_types(chosen.dtype, torch.float32)), targets[wanted]


def label_tokens(labels: Int[Tensor, "rows seq"], encoder_decoder: bool) -> Int[Tensor, " rows"]:
    """Number of labels that count in each row: (rows,). A causal LM never predicts the first position."""
    return ((labels if encoder_decoder else labels[:, 1:]) != IGNORED).sum(1)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the (possibly wrapped) model is an encoder-decoder."""
    return bool(getattr(getattr(extract_model_from_parallel(model), "config", None), "is_encoder_decoder", False))


def _takes_logits_to_keep(model: nn.Module) -> bool:
    inner: Any = extract_model_from_parallel(model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(base.forward).parameters
