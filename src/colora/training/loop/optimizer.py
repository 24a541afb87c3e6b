"""`TaskAdamW`: AdamW for the shared factors, and AdamW task by task for the cores.

A dense AdamW moves the cores of tasks that are absent from the batch, by momentum and weight decay. Here task k has
its own step count t_k and moments, and a step changes only the tasks present:

    t_k ← t_k + 1,  m_k ← β1 m_k + (1 − β1) g_k,  v_k ← β2 v_k + (1 − β2) g_k²
    Λ_k ← Λ_k − lr · (m_k / (1 − β1^t_k) / (√(v_k / (1 − β2^t_k)) + ε) + decay · Λ_k)

(Loshchilov and Hutter, arXiv:1711.05101, applied per task.) A task is present if any of its cores has a gradient that
is not zero. So presence is read off the gradients: with data parallelism these are summed over the ranks, and a task
present on any rank is present on all; with accumulation, present in any micro-batch is present in the step.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from colora.adapter.tasklist import task_uids
from colora.errors import ConfigError
from colora.training.rates import LR

__all__ = ["TaskAdamW", "parameter_groups", "shared_parameters", "unwrapped"]


def parameter_groups(
    model: nn.Module,
    lr: float,
    core_lr: float,
    weight_decay: float = 0.0,
    core_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: role "shared" (A, B and any `modules_to_save`) and role "core".

    Cores need a learning rate of their own: with Adam an entry moves by about its learning rate per step, so at the
    rate that suits A and B, cores that start at the identity hardly become their task's.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    cores = [parameter for name, parameter in named if "colora_core" in name]
    shared = [parameter for name, parameter in named if "colora_core" not in name]
    groups: list[dict[str, Any]] = []
    if shared:
        groups.append({"params": shared, "lr": lr, "weight_decay": weight_decay, "role": "shared"})
    if cores:
        groups.append({"params": cores, "lr": core_lr, "weight_decay": core_weight_decay, "role": "core"})
    return groups


def shared_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What all tasks share and is trained, by name: A, B, and modules that are trained whole."""
    named = model.named_parameters()
    return {name: one.detach() for name, one in named if one.requires_grad and "colora_core" not in name}


class TaskAdamW(torch.optim.AdamW):
    """AdamW whose groups of role "core" hold stacks of cores (K, r, r) and are updated task by task.

    Args:
        params: groups as `parameter_groups` makes them. A group without a role is a shared one.
        lr, betas, eps, weight_decay: as for `torch.optim.AdamW`, where a group does not say otherwise.

    A group with `frozen=True` is left out of the step: neither its parameters nor its moments change. Tasks may be
    added to or removed from the bank between steps; the state of the other tasks moves along with them.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]] | Iterable[nn.Parameter],
        lr: float = LR,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._uids: dict[Tensor, list[int]] = {}
        self._expected: Tensor | None = None
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def freeze(self, roles: Iterable[str]) -> None:
        """Leave the groups of these roles out of the coming steps, and take all others in."""
        roles = set(roles)
        for group in self.param_groups:
            group["frozen"] = group.get("role", "shared") in roles

    def expect(self, tasks: Int[Tensor, " n"]) -> None:
        """Say which tasks, LongTensor (n,) without repeats, the next step may find present: it then looks at no others.

        Saves reading the gradients of all K tasks. A task left out here is not updated, whatever its gradient; a step
        that expects none does nothing.
        """
        self._expected = tasks

    def drop_frozen_gradients(self) -> None:
        """Drop the gradients of frozen groups, so that they do not count when the others' are clipped."""
        for group in self.param_groups:
            if group.get("frozen"):
                for parameter in group["params"]:
                    parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. It computes on the tasks present alone, found by reading all gradients once or by `expect`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._expected is not None and self._expected.numel() == 0:
            self._expected = None
            return loss  # every row of this step is of a task that has stopped: not even momentum moves
        # torch's AdamW skips parameters without gradient: hide from it what is frozen and what is updated below.
        hidden = {
            parameter: parameter.grad
            for group in self.param_groups
            if group.get("frozen") or group.get("role") == "core"
            for parameter in group["params"]
            if parameter.grad is not None
        }
        for parameter in hidden:
            parameter.grad = None
        try:
            super().step()
        finally:
            for parameter, grad in hidden.items():
                parameter.grad = grad
        for group in self.param_groups:
            if group.get("role") == "core" and not group.get("frozen"):
                stacks: dict[tuple[Any, ...], list[Tensor]] = {}
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        key = (parameter.shape, parameter.dtype, parameter.device)
                        stacks.setdefault(key, []).append(parameter)
                for parameters in stacks.values():
                    self._step_cores(parameters, group)
        self._expected = None
        return loss

    def _step_cores(self, cores: list[Float[Tensor, "K r r"]], group: dict[str, Any]) -> None:
        """Update the present tasks in all layers at once; `cores` share shape (K, r, r), dtype and device."""
        grads = [core.grad for core in cores if core.grad is not None]
        if self._expected is None:
            rows = torch.stack([grad.flatten(1).any(1) for grad in grads]).any(0).nonzero().squeeze(1)
        else:
            rows = self._expected.to(grads[0].device)
            rows = rows[torch.stack([grad.index_select(0, rows).flatten(1).any(1) for grad in grads]).any(0)]
        if rows.numel() == 0:
            return
        states = [self.core_state(core) for core in cores]
        beta1, beta2 = group["betas"]
        # (layers, tasks present, r, r)
        g = torch.stack([grad.index_select(0, rows) for grad in grads])
        m = torch.stack([state["exp_avg"].index_select(0, rows) for state in states]).lerp_(g, 1 - beta1)
        v = torch.stack([state["exp_avg_sq"].index_select(0, rows) for state in states])
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        value = torch.stack([core.index_select(0, rows) for core in cores])
        t = torch.stack([state["step"].index_select(0, rows) for state in states]).add_(1)
        denominator = (v / _bias_correction(beta2, t, v.dtype)).sqrt_().add_(group["eps"])
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.sub_((m / _bias_correction(beta1, t, m.dtype)).div_(denominator).mul_(group["lr"]).to(value.dtype))
        for layer, (core, state) in enumerate(zip(cores, states, strict=True)):
            core.index_copy_(0, rows, value[layer])
            state["exp_avg"].index_copy_(0, rows, m[layer])
            state["exp_avg_sq"].index_copy_(0, rows, v[layer])
            state["step"].index_copy_(0, rows, t[layer])

    def core_state(self, core: Float[Tensor, "K r r"]) -> dict[str, Tensor]:
        """The state of one stack of cores, its rows moved to where the tasks are now; new tasks start at zero."""
        state: dict[str, Tensor] = self.state[core]
        now = task_uids(core)
        if not state:
            state["step"] = torch.zeros(core.shape[0], device=core.device)
            state["exp_avg"] = torch.zeros_like(core)
            state["exp_avg_sq"] = torch.zeros_like(core)
        elif (before := self._uids.get(core, now)) is not now and before != now:
            rows = {uid: row for row, uid in enumerate(before)}
            kept = [(row, rows[uid]) for row, uid in enumerate(now) if uid in rows]
            to, source = torch.tensor(kept, dtype=torch.long, device=core.device).view(-1, 2).unbind(1)
            for key, old in list(state.items()):
                state[key] = old.new_zeros(len(now), *old.shape[1:]).index_copy_(0, to, old.index_select(0, source))
        self._uids[core] = now
        return state

    def has_state(self, stacks: Iterable[Tensor]) -> bool:
        """Whether it keeps anything of one of these stacks of cores."""
        return any(bool(self.state.get(stack)) for stack in stacks)

    def state_dict(self) -> dict[str, Any]:
        """As for any optimiser; the rows of the cores' state are in the order of the bank's tasks."""
        for core in [key for key in self.state if key in self._uids]:
            self.core_state(core)
        return super().state_dict()

    def shared_state_dict(self) -> dict[str, Any]:
        """The same without what is kept of cores, for banks that have most of them in a store."""
        state = super().state_dict()
        cores = {one for group in state["param_groups"] if group.get("role") == "core" for one in group["params"]}
        return state | {"state": {key: one for key, one in state["state"].items() if key not in cores}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any optimiser. The bank must have the tasks it had when the state was saved, in the same order.

        Raises:
            ConfigError: if it has another number of tasks.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            if group.get("role") == "core":
                for core in group["params"]:
                    found = self.state[core]["exp_avg"].shape if core in self.state else core.shape
                    if found != core.shape:
                        raise ConfigError(f"expected the state of {core.shape[0]} tasks, found that of {found[0]}")
                    if core in self.state:  # torch leaves whatever is called "step" where it was, on the CPU
                        self.state[core]["step"] = self.state[core]["step"].to(core.device)
                self._uids.update({core: task_uids(core) for core in group["params"] if core in self.state})


def unwrapped(optimizer: Optimizer) -> TaskAdamW:
    """The optimiser that accelerate has wrapped for the Trainer and its callbacks; or itself, if it is not wrapped."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, TaskAdamW)
    return inner


def _bias_correction(
    beta: float, steps: Float[Tensor, "layers n"], dtype: torch.dtype
) -> Float[Tensor, "layers n 1 1"]:
    """1 − beta^t, shaped (layers, tasks, 1, 1), in `dtype` or float32 if that is finer.

    Through expm1: with beta2 = 0.999 the subtraction would leave four digits of the first step in float32.
    """
    exponents = steps.to(torch.promote_types(dtype, torch.float32)) * (math.log(beta) if beta else -math.inf)
    return -torch.expm1(exponents)[..., None, None]
