"""The precision that a server on a CPU computes in where nobody says which.

bfloat16 halves what each step reads from memory. It is taken where the CPU multiplies it and where it changes nothing
that matters: on a few texts, with two of the bank's tasks, every token that it chooses is one that float32 finds nearly
as likely as its own choice.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from colora.bank.tensors import SavedBank
from colora.serving.resident import Resident, attach_slots, detach_slots
from colora.tasks.tokenizer import Tokenizer

__all__ = ["keeps_answers", "suitable_base"]

logger = logging.getLogger(__name__)
TEXTS = (
    "The parcel left the warehouse on Tuesday morning, and should have reached the customer two days later.",
    "Q: Write the date 2024-05-29 out in full.\nA: the twenty-ninth of May, two thousand and twenty-four",
)
MOST_LOST = 0.2  # nats; two tokens that are as likely as each other may change places
Loaded = tuple[PreTrainedModel, Tokenizer]


def suitable_base(load: Callable[[torch.dtype], Loaded], saved: SavedBank) -> Loaded:
    """A base model in bfloat16 with its tokenizer, or in float32 where bfloat16 would change its answers.

    Args:
        load: loads the base in a precision; it is called two or three times, so that it is in memory once.
        saved: the bank that will be on it.

    Raises:
        BaseMismatchError: the base is another model than the bank's.
    """
    exact = _probed(*load(torch.float32), saved)
    rounded, tokenizer = load(torch.bfloat16)
    if keeps_answers(exact, _probed(rounded, tokenizer, saved)):
        return rounded, tokenizer
    logger.warning("served in float32, because this model's answers differ in bfloat16 (--dtype chooses)")
    return load(torch.float32)


def keeps_answers(exact: Tensor, rounded: Tensor) -> bool:
    """Whether the tokens that are likeliest by the one are so, or nearly so, by the other.

    Args:
        exact: log probabilities, (positions, vocabulary).
        rounded: the same in another precision.
    """
    chosen = rounded.argmax(-1, keepdim=True)
    lost = exact.max(-1, keepdim=True).values - exact.gather(-1, chosen)
    return bool(torch.isfinite(rounded).all()) and float(lost.max()) <= MOST_LOST


def _probed(base: PreTrainedModel, tokenizer: Tokenizer, saved: SavedBank) -> Tensor:
    model = attach_slots(base, saved, 2)
    with Resident(model).sample(saved) as slots:
        found = _log_probabilities(model, tokenizer, slots)
    detach_slots(model)
    return found


@torch.inference_mode()
def _log_probabilities(model: PeftModel, tokenizer: Tokenizer, slots: Sequence[int]) -> Tensor:
    found = []
    for slot in slots:
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            logits = model.get_base_model()(input_ids=ids, task_ids=torch.tensor([slot])).logits
            found.append(logits[0].float().log_softmax(-1))
    return torch.cat(found)
