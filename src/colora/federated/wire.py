"""Messages of the protocol as Flower's records, and back. What comes over the network is believed in nothing.

to a client     factors: ArrayRecord     round: ConfigRecord
to the server   payload: ArrayRecord     metrics: MetricRecord     reply: ConfigRecord
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from colora.common.files import fits_name_rule
from colora.errors import FederationError
from colora.federated.history import ALL
from colora.federated.state import Broadcast, Reply, Tensors

__all__ = ["broadcast_record", "read_broadcast", "read_name", "read_reply", "reply_record"]

FILE = "safetensors"


def broadcast_record(message: Broadcast) -> RecordDict:
    """What the server sends."""
    about = ConfigRecord(
        {
            "federation": message.federation,
            "round": message.round,
            "base": json.dumps(message.base),
            "digest-A": message.digests["A"],
            "digest-B": message.digests["B"],
        }
    )
    return RecordDict({"factors": _arrays(message.factors), "round": about})


def read_broadcast(record: RecordDict) -> Broadcast:
    """What a client received. Raises FederationError if it is not what a server sends."""
    try:
        about = record.config_records["round"]
        base = json.loads(str(about["base"]))
        if not isinstance(base, dict):
            raise FederationError(f"base: expected a mapping, found {base!r}")
        return Broadcast(
            str(about["federation"]), _whole(about, "round"), base,
            {which: str(about[f"digest-{which}"]) for which in "AB"}, _tensors(record.array_records["factors"]),
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FederationError(f"not a message of a CoLoRA server: {error!r}") from error


def reply_record(reply: Reply, name: str = "") -> RecordDict:
    """What a client sends; `name` is what it wants to be called, if anything."""
    metrics = MetricRecord({"num-examples": reply.examples, "missing": int(reply.missing)})
    if reply.loss is not None:
        metrics["loss"] = reply.loss
    about = ConfigRecord({"federation": reply.federation, "round": reply.round, "name": name})
    return RecordDict({"payload": _arrays(reply.payload), "metrics": metrics, "reply": about})


def read_reply(record: RecordDict, client: str) -> Reply:
    """What the server received from the node `client`. Raises FederationError if it is not what a client sends."""
    try:
        metrics, about = record.metric_records["metrics"], record.config_records["reply"]
        loss = metrics.get("loss")
        return Reply(
            client, str(about["federation"]), _whole(about, "round"), _tensors(record.array_records["payload"]),
            _whole(metrics, "num-examples"), None if loss is None else float(loss), bool(metrics["missing"]),  # type: ignore[arg-type]
        )  # fmt: skip
    except FederationError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise FederationError(f"not a message of a CoLoRA client: {error!r}") from error


def read_name(record: RecordDict) -> str | None:
    """What a client wants to be called, if it can be shown and taken for nobody else: no node's number, not all."""
    about = record.config_records.get("reply")
    name = "" if about is None else str(about.get("name", ""))
    return name if fits_name_rule(name) and not name.isdecimal() and name != ALL else None


def _whole(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int):
        raise FederationError(f"{key}: expected a whole number, found {value!r}")
    return value


def _arrays(tensors: Tensors) -> ArrayRecord:
    """All tensors as the bytes of one safetensors file in one array: Flower fetches each array by requests of its own,
    and the hundreds of a model's factors would take minutes."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return ArrayRecord({FILE: Array(np.frombuffer(content, dtype=np.uint8))})


def _tensors(record: ArrayRecord) -> Tensors:
    try:
        content = record[FILE]
        if (content.stype, content.dtype) != ("numpy.ndarray", "uint8"):
            raise FederationError(f"expected bytes, found {content.dtype} of {content.stype}")
        return dict(safetensors.torch.load(content.numpy().tobytes()))
    except FederationError:
        raise
    except Exception as error:  # forged bytes fail in numpy's reader in a dozen ways, and none may end the server
        raise FederationError(f"expected tensors as a safetensors file: {error!r}") from error
