"""The section `federation` of a run file: how clients train together."""

from typing import Literal

from pydantic import Field, model_validator

from colora.training.fields import Count, Rate, Share, Spec

__all__ = ["FederationSpec"]


class FederationSpec(Spec):
    """How clients train together without their text or cores leaving home. Learning rates are those of `training`."""

    rounds: Count = Field(30, description="Number of rounds.")
    schedule: Literal["simultaneous", "alternating"] = Field(
        "simultaneous",
        description=(
            "'simultaneous': train both shared factors in every round. 'alternating': train one "
            "factor per round, B and A in turns."
        ),
    )
    order: Literal["together", "core_first"] = Field(
        "together",
        description=(
            "'together': all local steps of a round train the core and the factors. 'core_first':"
            " core_steps steps train the core, then local_steps steps train the factors."
        ),
    )
    core_steps: int = Field(1, ge=0, description="Local steps of the core in a round. 0: cores stay at the identity.")
    local_steps: Count = Field(
        2,
        description=(
            "Local steps of the factors in a round. With order: together, a round has core_steps + local_steps steps."
        ),
    )
    rows: Count = Field(4, description="Rows in a local step.")
    factor_moments: Literal["fresh", "kept"] = Field(
        "fresh",
        description=(
            "Adam moments of the factors at each client. 'fresh': new in every round. 'kept': "
            "they continue from round to round and stay at the client."
        ),
    )
    onboard_steps: int = Field(20, ge=0, description="Further core steps of a client that joins late.")
    finish_steps: int = Field(5, ge=0, description="Core steps on the final A and B, after the last round.")
    weights: Literal["examples", "uniform"] = Field(
        "examples", description="Weights of the clients in the mean: by their numbers of examples, or uniform."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the clients that take part in a round.")
    rule: Literal["mean", "median", "trimmed"] = Field("mean", description="How the server combines the updates.")
    trim: float = Field(0.25, ge=0, lt=0.5, description="Share of the values that rule: trimmed cuts off at each end.")
    server: Literal["average", "momentum", "adam"] = Field("average", description="Optimiser of the server.")
    server_lr: Rate = Field(
        1.0, description="Learning rate of the server's optimiser. Use 1 with 'average', and 0.01 with 'adam'."
    )
    server_momentum: Share = Field(0.9, description="Momentum of the server's optimiser.")
    compression: Literal["none", "int8", "topk"] = Field(
        "none", description="Compression of uploads, with error feedback."
    )
    download: Literal["fp32", "fp16"] = Field(
        "fp32", description="Number format of A and B, as the server holds and sends them."
    )
    keep: float = Field(0.1, gt=0, le=1, description="Share of the numbers that compression: topk sends.")
    max_norm: float | None = Field(None, gt=0, description="Drop updates with a norm above this. Default: no limit.")
    norm_ratio: float = Field(
        10.0, gt=1, description="Drop updates whose norm is more than this many times the median of the round."
    )
    clients: Count = Field(2, description="Clients that must be connected before a round begins.")
    replies: Count = Field(1, description="Valid replies that a round needs to count.")
    wait: Rate = Field(300.0, description="Seconds to wait for the clients. After that the run ends.")
    deadline: Rate = Field(600.0, description="Seconds for a round. Later replies do not count.")
    void_rounds: Count = Field(3, description="The run ends after this many rounds in a row that do not count.")
    clip: float | None = Field(
        None, gt=0, description="Differential privacy: clip updates to this norm. Default: no differential privacy."
    )
    noise: Rate = Field(1.0, description="Differential privacy: the standard deviation of the noise is noise × clip.")
    delta: float = Field(1e-5, gt=0, lt=1, description="Differential privacy: report epsilon at this delta.")

    @model_validator(mode="after")
    def _consistent(self) -> "FederationSpec":
        faults = []
        if self.clip is not None and (self.rule, self.compression, self.weights) != ("mean", "none", "uniform"):
            faults.append("clip needs rule: mean, compression: none and weights: uniform")
        if self.replies > self.clients:
            faults.append(f"replies ({self.replies}) cannot be more than clients ({self.clients})")
        if faults:
            raise ValueError("; ".join(faults))
        return self
