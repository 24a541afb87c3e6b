"""A federation on disk: safetensors files, written atomically, each with the rest of its state in the header.

server: FOLDER/server.safetensors                          A, B and the optimiser's moments after the last round
client: FOLDER/FEDERATION/before-round-N.safetensors       the client's core and its A and B, the last two states

A client keeps two states: a server that crashed and resumed at an earlier round asks for the same update once more.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from colora.common.files import write_bytes
from colora.errors import CheckpointError, FederationError
from colora.federated.state import ClientState, ServerState, Tensors, digests

__all__ = ["client_folder", "load_client", "load_server", "save_client", "save_server"]

SERVER_FILE = "server.safetensors"
FEDERATION = re.compile(r"[0-9a-f]{32}")
KEPT = 2


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
        federation=header["federation"],
        round=header["round"],
        shared=parts.get("shared", {}),
        base=header["base"],
        moments=parts.get("moments", {}),
        holders=header["holders"],
    )


def client_folder(root: Path, federation: str) -> Path:
    """The folder of a client for one federation.

    Raises:
        FederationError: if the federation's name, which comes over the network, is not one that a server makes.
    """
    if not FEDERATION.fullmatch(federation):
        raise FederationError(f"expected a federation of 32 hexadecimal digits, found {federation!r}")
    return root / federation


def save_client(folder: Path, state: ClientState, with_shared: bool = True) -> None:
    """Write a client's state atomically, with the digests of the A and B it was trained against.

    Args:
        folder: of `client_folder`.
        state: the client.
        with_shared: whether to write A and B; not where they are saved elsewhere.

    Raises:
        CheckpointError: if that fails; the earlier states are kept.
    """
    header: dict[str, Any] = {"round": state.round, "position": state.position, "steps": state.steps}
    header["digests"] = dict(state.digests) or digests(state.shared)
    parts = {"cores": state.cores, "moments": state.moments, "residual": state.residual}
    _write(_client_file(folder, state.round), parts | ({"shared": state.shared} if with_shared else {}), header)
    rounds = _rounds(folder)
    outdated = [number for number in rounds if number <= state.round][:-KEPT]
    for number in rounds:
        # States of later rounds are of a server that has crashed and resumed at an earlier round.
        if number > state.round or number in outdated:
            _client_file(folder, number).unlink(missing_ok=True)


def load_client(folder: Path, round_number: int, shared: Tensors | None = None) -> ClientState | None:
    """A client's latest state from before `round_number` ended, or None for a new client.

    The state has no digests: they are computed anew, so that damaged factors are not taken for those of the server.

    Args:
        folder: of `client_folder`.
        round_number: the round that the server asks for.
        shared: the factors, where they were saved elsewhere.

    Raises:
        CheckpointError: if the file is damaged.
        FederationError: if all states are of later rounds: a new core would replace this one.
    """
    saved = _rounds(folder)
    numbers = [number for number in saved if number <= round_number]
    if not numbers:
        is_first = len(saved) == 1 or saved[:1] == [1]  # of its first round a client has only the state after it
        if not saved or (is_first and saved[0] == round_number + 1):
            return None
        raise FederationError(
            f"{folder}: has the cores from round {saved[0]} on, but the server asks for round "
            f"{round_number}: the server was restored from an old copy. Move this folder away to start "
            "with a new core"
        )
    parts, header = _read(_client_file(folder, numbers[-1]))
    return ClientState(
        round=header["round"],
        cores=parts.get("cores", {}),
        shared=parts.get("shared", {}) if shared is None else shared,
        position=header["position"],
        moments=parts.get("moments", {}),
        steps=header["steps"],
        residual=parts.get("residual", {}),
    )


def _client_file(folder: Path, round_number: int) -> Path:
    return folder / f"before-round-{round_number}.safetensors"


def _rounds(folder: Path) -> list[int]:
    """The rounds before which the client's saved states were, in order."""
    matches = (re.fullmatch(r"before-round-(\d+)\.safetensors", path.name) for path in folder.glob("before-round-*"))
    return sorted(int(match[1]) for match in matches if match)


def _write(path: Path, parts: Mapping[str, Tensors], header: Mapping[str, Any]) -> None:
    # Copies: one tensor may be there under several names, which safetensors refuses to store.
    tensors = {
        f"{part}:{name}": tensor.contiguous().clone() for part, named in parts.items() for name, tensor in named.items()
    }
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
