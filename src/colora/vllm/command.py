"""The command that starts vLLM's server with a bank, as `colora serve --engine vllm` runs it."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colora.bank.tensors import SavedBank
from colora.errors import ConfigError
from colora.vllm import BANK
from colora.vllm.settings import KEYS, STATE

__all__ = ["VllmOptions", "vllm_command"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM knows; nothing is made of that size
TEMPLATE = "{{ colora_prompt }}"


@dataclass(frozen=True)
class VllmOptions:
    """How the server is set up.

    Attributes:
        bank: folder of a bank or of a run.
        base: another path or name of the same base model.
        host, port: where it listens.
        keys: file of keys; None: every request may do everything.
        certificate, private_key: for TLS, PEM.
        state: folder for tasks that come while the server runs.
        resident: most cores on the device.
        own: further options of vLLM, as its command takes them.
    """

    bank: Path
    base: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    state: Path | None = None
    resident: int = 256
    own: tuple[str, ...] = ()


def vllm_command(options: VllmOptions, environment: Mapping[str, str] = os.environ) -> tuple[list[str], dict[str, str]]:
    """The command and its environment.

    Raises:
        BankFileError: no bank there, or a damaged one.
        ConfigError: vLLM is not installed, or an option of its own contradicts.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm: vLLM is not installed here; `make install-vllm`, or pip install 'colora[vllm]'"
        )
    saved = SavedBank(options.bank)
    saved.check()
    rank = next((rank for rank in RANKS if rank >= saved.config.r), RANKS[-1])
    template = Path(tempfile.mkdtemp(prefix="colora-vllm-")) / "prompt.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    base = options.base or saved.info.base
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", base, "--host", options.host, "--port", str(options.port)]
    command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(options.resident)]
    command += ["--chat-template", str(template), "--middleware", "colora.vllm.front.gate.BankGate"]
    command += ["--worker-extension-cls", "colora.vllm.worker.BankExtension"]
    if options.certificate is not None and options.private_key is not None:
        command += ["--ssl-certfile", str(options.certificate), "--ssl-keyfile", str(options.private_key)]
    told = {BANK: str(options.bank.resolve()), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    told |= {
        name: str(path.resolve()) for name, path in ((STATE, options.state), (KEYS, options.keys)) if path is not None
    }
    return _with(command, options.own), dict(environment) | told


def _with(command: Sequence[str], own: Sequence[str]) -> list[str]:
    """The command with a user's options, which must not set what is set already."""
    fixed = {name for name in command if name.startswith("--")} - {"--max-loras"}
    if taken := sorted(fixed & {name.partition("=")[0] for name in own}):
        raise ConfigError(f"--engine vllm: {', '.join(taken)}: set by colora serve; leave it out")
    return [*command, *own]
