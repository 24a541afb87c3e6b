"""How the losses of a batch's rows add up to one number, with a stated weighting of the tasks.

The weights are computed once for a whole optimiser step, over all its micro-batches and ranks. So the loss does not
depend on how the rows are spread over devices or accumulation.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["WEIGHTINGS", "TaskWeighting", "row_weights"]

TaskWeighting = Literal["task", "token", "example"]
WEIGHTINGS: tuple[str, ...] = get_args(TaskWeighting)


def row_weights(
    task_ids: Int[Tensor, " rows"],
    tokens: Int[Tensor, " rows"],
    step_tokens: Float[Tensor, " K"],
    step_rows: Float[Tensor, " K"],
    active: Bool[Tensor, " K"],
    weighting: TaskWeighting = "task",
) -> Float[Tensor, " rows"]:
    """For each row the factor of its summed token loss, so that the sum over all rows of a step is the loss.

    Args:
        task_ids, tokens: LongTensor (rows,) of one micro-batch: each row's task and its number of label tokens.
        step_tokens, step_rows: (K,) label tokens and rows of each task in the whole step.
        active: bool (K,). Rows of inactive tasks (stopped early) get weight zero, hence a gradient of exactly zero.
        weighting: "task": the mean over the step's tasks of each task's mean token loss. "token": the mean over all
            tokens. "example": the mean over rows of each row's mean token loss.

    Examples:
        >>> rows = torch.tensor([0, 0, 1]), torch.tensor([3, 5, 2])
        >>> step = torch.tensor([8.0, 2.0]), torch.tensor([2.0, 1.0])
        >>> row_weights(*rows, *step, active=torch.tensor([True, True]))  # 1/(2·8), 1/(2·8), 1/(2·2)
        tensor([0.0625, 0.0625, 0.2500])
    """
    step_tokens, step_rows = step_tokens * active, step_rows * active
    if weighting == "task":
        tasks = (step_tokens > 0).sum().clamp(min=1)
        weights = (1 / (step_tokens.clamp(min=1) * tasks))[task_ids]
    elif weighting == "token":
        weights = (1 / step_tokens.sum().clamp(min=1)).expand(task_ids.shape)
    else:
        weights = 1 / (tokens.clamp(min=1) * step_rows.sum().clamp(min=1))
    return torch.where(active[task_ids], weights, 0.0).float()
