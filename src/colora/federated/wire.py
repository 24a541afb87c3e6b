"""Messages of the protocol as Flower's records, and back. Nothing that comes over the network is trusted.

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
from colora.federated.state import PARTS, Broadcast, Reply, Tensors, message_content

__all__ = ["broadcast_record", "read_broadcast", "read_name", "read_reply", "reply_record"]

FILE = "safetensors"


def broadcast_record(message: Broadcast) -> RecordDict:
    """A broadcast as the server sends it."""
    header = ConfigRecord({"federation": message.federation, "round": message.round, "base": json.dumps(message.base)})
    for part in PARTS:
        header[f"digest-{part}"] = message.digests[part]
    return RecordDict({"factors": _arrays(message.factors), "round": header})


def read_broadcast(record: RecordDict) -> Broadcast:
    """A broadcast as a client received it. Raises FederationError if it is not what a server sends."""
    try:
        header = record.config_records["round"]
        base = json.loads(str(header["base"]))
        if not isinstance(base, dict):
            raise FederationError(f"base: expected a mapping, found {base!r}")
        digests = {part: str(header[f"digest-{part}"]) for part in PARTS}
        factors = _tensors(record.array_records["factors"])
        return Broadcast(str(header["federation"]), _whole(header, "round"), base, digests, factors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise FederationError(f"not a message of a CoLoRA server: {error!r}") from error


def reply_record(reply: Reply, name: str = "") -> RecordDict:
    """A reply as a client sends it; `name` is the name that it asks for in the server's records, if any."""
    metrics = MetricRecord({"num-examples": reply.examples, "missing": int(reply.missing)})
    if reply.loss is not None:
        metrics["loss"] = reply.loss
    header = ConfigRecord({"federation": reply.federation, "round": reply.round, "name": name})
    return RecordDict({"payload": _arrays(reply.payload), "metrics": metrics, "reply": header})


def read_reply(record: RecordDict, client: str) -> Reply:
    """The reply that came from the node `client`. Raises FederationError if it is not what a client sends."""
    try:
        metrics, header = record.metric_records["metrics"], record.config_records["reply"]
        loss = metrics.get("loss")
        return Reply(
            client,
            str(header["federation"]),
            _whole(header, "round"),
            _tensors(record.array_records["payload"]),
            _whole(metrics, "num-examples"),
            loss=None if loss is None else float(loss),  # type: ignore[arg-type]
            missing=bool(metrics["missing"]),
        )
    except FederationError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise FederationError(f"not a message of a CoLoRA client: {error!r}") from error


def read_name(record: RecordDict) -> str | None:
    """The name that a client asks for, or None if it breaks the rule for names, or could be taken for a node or all."""
    header = record.config_records.get("reply")
    name = "" if header is None else str(header.get("name", ""))
    return name if fits_name_rule(name) and not name.isdecimal() and name != ALL else None


def _whole(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int):
        raise FederationError(f"{key}: expected a whole number, found {value!r}")
    return value


def _arrays(tensors: Tensors) -> ArrayRecord:
    """All tensors as the bytes of one safetensors file in one array.

    Flower fetches each array with a request of its own: hundreds of factors of a model would take minutes.
    """
    content = message_content(tensors)
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
