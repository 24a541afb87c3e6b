"""The command that starts vLLM's server with a bank, as `colora serve --engine vllm` runs it."""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from colora.bank.hub import is_hub_name
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.models.base import base_location
from colora.serving.access import Access
from colora.serving.server import GRACE_SECONDS, Listen, check_listen, listening_socket, url_of
from colora.vllm.front.template import TEMPLATE
from colora.vllm.settings import BANK, KEYS, PAGE, STATE

__all__ = ["VllmOptions", "serve_vllm", "vllm_command"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows; nothing is made of that size


@dataclass(frozen=True)
class VllmOptions:
    """How the server is set up. What is None is as vLLM has it.

    Attributes:
        bank: folder of a bank or of a run.
        base: another path or name of the same base model.
        state: folder for tasks that come while the server runs; several servers may share it.
        resident: most cores on the device.
        max_tokens: longest answer of requests that do not set it.
        temperature: of requests that do not set it.
        dtype: of the base.
        own: further options of vLLM, as its command takes them.
        rows: most requests that run at once.
        max_length: longest prompt and answer together, in tokens.
    """

    bank: Path
    base: str | None = None
    state: Path | None = None
    resident: int = 1000
    max_tokens: int = 256
    temperature: float = 1.0
    dtype: str | None = None
    own: tuple[str, ...] = ()
    rows: int | None = None
    max_length: int | None = None


def serve_vllm(options: VllmOptions, listen: Listen, log: Callable[[str], None]) -> NoReturn:
    """Become vLLM's server. Its signals and its exit code are this process's.

    Raises:
        as `vllm_command`; ConfigError: the address is taken.
    """
    with listening_socket(listen) as listening:  # before vLLM is loaded: a taken address fails at once
        found = replace(listen, port=listening.getsockname()[1])
    command, environment = vllm_command(options, found)
    log(f"vLLM is being started with {options.bank}, to answer at {url_of(found)}/v1 (Ctrl-C ends it)")
    if found.page:
        log(f"to try its tasks in a browser, once it has started: {url_of(found)}/")
    os.execvpe(command[0], command, environment)


def vllm_command(
    options: VllmOptions, listen: Listen, environment: Mapping[str, str] = os.environ
) -> tuple[list[str], dict[str, str]]:
    """The command and its environment.

    Raises:
        BankFileError: no bank there, or a damaged one.
        BaseModelError: the bank's base is nowhere.
        ConfigError: vLLM is not installed, a task has the base's name, an option of vLLM's own contradicts, or see
            `check_listen`.
    """
    check_listen(listen)
    if listen.keys is not None:
        Access.of_file(listen.keys)  # so that a damaged file is told now, and not at the first request
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("--engine vllm: vLLM is not installed here: `make install-vllm`, or pip install vllm")
    saved = SavedBank(options.bank)
    saved.check()
    name = options.base or saved.info.base
    if name in saved.index:
        raise ConfigError(
            f"{options.bank}: has a task named {name!r}, which is the name of the base; --base takes another name of it"
        )
    template = Path(tempfile.mkdtemp(prefix="colora-vllm-")) / "prompt.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    # Named even where nothing is to be kept: all processes of the server have to find the same.
    state = options.state or Path(tempfile.mkdtemp(prefix="colora-state-"))
    bank = saved.folder if is_hub_name(options.bank) else options.bank
    told = {BANK: bank, STATE: state, KEYS: listen.keys}
    paths = {name: str(path.resolve()) for name, path in told.items() if path is not None}
    paths[PAGE] = "on" if listen.page else "off"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", base_location(name)]
    command += ["--served-model-name", name]
    command += ["--chat-template", str(template), "--middleware", "colora.vllm.front.gate.BankGate"]
    command += ["--worker-extension-cls", "colora.vllm.worker.BankExtension"]
    command += ["--shutdown-timeout", str(GRACE_SECONDS)]
    command += [*_adapters(saved.config.r, options.resident), *_listening(listen), *_answers(options)]
    return _with(command, options.own), {**environment, **paths, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def _adapters(rank: int, resident: int) -> list[str]:
    known = next((one for one in RANKS if one >= rank), RANKS[-1])
    return ["--enable-lora", "--max-lora-rank", str(known), "--max-loras", str(resident)]


def _listening(listen: Listen) -> list[str]:
    found = ["--host", listen.host, "--port", str(listen.port)]
    if listen.certificate is not None:
        found += ["--ssl-certfile", str(listen.certificate), "--ssl-keyfile", str(listen.private_key)]
    # vLLM lets all pages ask unless it is told; ours lets none.
    return [*found, "--allowed-origins", json.dumps(list(listen.origins))]


def _answers(options: VllmOptions) -> list[str]:
    named = (("--max-num-seqs", options.rows), ("--max-model-len", options.max_length), ("--dtype", options.dtype))
    found = [text for name, value in named if value is not None for text in (name, str(value))]
    # Not what the base's generation_config.json says: a task was not trained for that.
    defaults = {"max_new_tokens": options.max_tokens, "temperature": options.temperature}
    return [*found, "--generation-config", "vllm", "--override-generation-config", json.dumps(defaults)]


def _with(command: Sequence[str], own: Sequence[str]) -> list[str]:
    """The command with a user's options, which must not set what is set already."""
    # The gate takes paths as they are.
    fixed = {name for name in command if name.startswith("--")} | {"--root-path"}
    if taken := sorted(fixed & {name.partition("=")[0].replace("_", "-") for name in own}):
        raise ConfigError(f"--engine vllm: {', '.join(taken)}: colora serve sets this itself; leave it out")
    return [*command, *own]
