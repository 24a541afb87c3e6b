"""What a federation keeps on disk: safetensors files, whole or not there, each with what it belongs to in its header.

server: FOLDER/server.safetensors                          A, B and the optimiser's moments after the last round
client: FOLDER/FEDERATION/before-round-N.safetensors       the client's core and what it knows, the last two of them

A client keeps two, for a server that crashed and took up an earlier round again asks for the same update once more.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from colora.common.files import write_bytes
from colora.errors import CheckpointError, FederationError
from colora.federated.state import ClientState, ServerState, Tensors, digests

__all__ = ["client_folder", "load_client", "load_server", "message_bytes", "save_client", "save_server"]

SERVER_FILE = "server.safetensors"
FEDERATION = re.compile(r"[0-9a-f]{32}")
KEPT = 2


def message_bytes(tensors: Tensors) -> int:
    """Length of a message of these tensors on the wire."""
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def save_server(folder: Path, state: ServerState) -> None:
    """Write the server's state atomically. Raises CheckpointError if that fails."""
    header = {
        "federation": state.federation,
        "round": state.round,
        "base": state.base,
        "holders": {client: dict(held) for client, held in state.holders.items()},
    }
    _write(folder / SERVER_FILE, {"shared": state.shared, "moments": state.moments}, header)


def load_server(folder: Path) -> ServerState | None:
    """The server's state, or None if there is none yet. Raises CheckpointError if the file is damaged."""
    if not (folder / SERVER_FILE).is_file():
        return None
    parts, header = _read(folder / SERVER_FILE)
    return ServerState(
        header["federation"], header["round"], parts.get("shared", {}), header["base"], parts.get("moments", {}),
        header["holders"],
    )  # fmt: skip


def client_folder(root: Path, federation: str) -> Path:
    """Where a client keeps what belongs to a federation.

    Raises:
        FederationError: if its name, which comes over the network, is not one that a server makes.
    """
    if not FEDERATION.fullmatch(federation):
        raise FederationError(f"expected a federation of 32 hexadecimal digits, found {federation!r}")
    return root / federation


def save_client(folder: Path, state: ClientState, with_shared: bool = True) -> None:
    """Write a client's state atomically, with the digests of the A and B it was trained against.

    Raises:
        CheckpointError: if that fails; the states before are still there.
    """
    header: dict[str, Any] = {"round": state.round, "position": state.position, "steps": state.steps}
    header["digests"] = digests(state.shared)
    parts = {"cores": state.cores, "moments": state.moments, "residual": state.residual}
    _write(_client_file(folder, state.round), parts | ({"shared": state.shared} if with_shared else {}), header)
    rounds = _rounds(folder)
    for number in rounds:
        # Those of later rounds belong to a server that has crashed and begun again further back.
        if number > state.round or number in [one for one in rounds if one <= state.round][:-KEPT]:
            _client_file(folder, number).unlink(missing_ok=True)


def load_client(folder: Path, round_number: int, shared: Tensors | None = None) -> ClientState | None:
    """A client's latest state from before `round_number` ended, or None for a newcomer.

    Args:
        shared: the factors, where they were saved elsewhere.

    Raises:
        CheckpointError: if the file is damaged.
        FederationError: if all that is there is later: a new core would end in the loss of this one.
    """
    known = _rounds(folder)
    numbers = [number for number in known if number <= round_number]
    if not numbers:
        first = len(known) == 1 or known[:1] == [1]  # of its first round a client has the state after it only
        if not known or (first and known[0] == round_number + 1):
            return None
        raise FederationError(
            f"{folder}: has the core before round {known[0]} and later, but the server asks for round {round_number}; "
            "it was restored from long before. Move this folder away to begin with a new core"
        )
    parts, header = _read(_client_file(folder, numbers[-1]))
    state = ClientState(
        header["round"], parts.get("cores", {}), parts.get("shared", {}), header["position"],
        parts.get("moments", {}), header["steps"], parts.get("residual", {}),
    )  # fmt: skip
    return state if shared is None else replace(state, shared=shared)


def _client_file(folder: Path, round_number: int) -> Path:
    return folder / f"before-round-{round_number}.safetensors"


def _rounds(folder: Path) -> list[int]:
    found = (re.fullmatch(r"before-round-(\d+)\.safetensors", path.name) for path in folder.glob("before-round-*"))
    return sorted(int(match[1]) for match in found if match)


def _write(path: Path, parts: Mapping[str, Tensors], header: Mapping[str, Any]) -> None:
    tensors = {f"{part}:{name}": tensor.contiguous() for part, found in parts.items() for name, tensor in found.items()}
    # Factors that did not move are one tensor under several names, which safetensors refuses to keep twice.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(tensors, {"colora": json.dumps(header)}))


def _read(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    parts: dict[str, Tensors] = {}
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["colora"])
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, name = key.partition(":")
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore a copy, or remove it to start anew") from error
    return parts, header
