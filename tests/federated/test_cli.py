"""The commands of a federation: what they refuse before a program is started, and which programs they start."""

from pathlib import Path
from typing import Any

import pytest

from colora.federated import processes
from tests.helpers.run_files import cli, refusal, run_file, save_base, write_task


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Any, float]]:
    """The programs that commands would have started."""
    programs: list[tuple[list[str], Any, float]] = []

    def start(command: list[str], environment: Any, retry: float) -> int:
        programs.append((command, environment, retry))
        return 0

    monkeypatch.setattr(processes, "keep_running", start)
    return programs


def test_help_names_every_command():
    text = " ".join(cli("federate", "--help").stdout.split())
    assert "only the shared factors A and B travel" in text
    for command in ("simulate", "keys", "server", "register", "client", "run"):
        assert command in text
        assert cli("federate", command, "--help").exit_code == 0


def test_server_without_tls_stays_on_loopback(tmp_path: Path, started: list[Any]):
    message = refusal("federate", "server", "--host", "0.0.0.0", "--home", tmp_path)
    assert "without --tls, anybody who can reach 0.0.0.0 could join" in message
    assert not started
    assert cli("federate", "server", "--home", tmp_path).exit_code == 0
    (command, environment, _) = started[0]
    assert "--insecure" in command
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_client_checks_its_task_file_before_it_starts(tmp_path: Path, started: list[Any]):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "x"}\n', encoding="utf-8")
    message = refusal("federate", "client", "--task", bad, "--state", tmp_path / "state")
    assert "bad.jsonl:1" in message
    assert not started


def test_client_passes_its_flags_to_flower_and_retries(tmp_path: Path, started: list[Any]):
    task = tmp_path / write_task(tmp_path, "red")
    assert cli("federate", "client", "--task", task, "--state", tmp_path / "s", "--no-share-loss").exit_code == 0
    ((command, _, retry),) = started
    flags = command[command.index("--node-config") + 1]
    assert f'task="{task}"' in flags
    assert "share-loss=false" in flags
    assert retry == 120


def test_run_refuses_a_run_file_with_an_unknown_field(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("federation: {rounds: 3, schedul: alternating, replies: 9}\n", encoding="utf-8")
    message = refusal("federate", "run", path, tmp_path / "out", "--home", tmp_path / "home")
    assert "federation.schedul: no such field; did you mean 'schedule'?" in message
    assert not (tmp_path / "out").exists()


def test_keys_refuses_to_overwrite(tmp_path: Path):
    assert cli("federate", "keys", tmp_path / "keys", "a", "b").exit_code == 0
    assert "ca.key" in refusal("federate", "keys", tmp_path / "keys", "a")


def test_schema_lists_the_fields_of_a_federation():
    assert "federation.norm_ratio" in cli("schema").stdout


def test_simulate_reports_all_conflicting_fields_at_once(tmp_path: Path):
    path = run_file(tmp_path, save_base(tmp_path / "base"))
    message = refusal("federate", "simulate", path, "federation.clip=1.0", "federation.replies=3")
    assert "clip needs rule: mean, compression: none and weights: uniform" in message
    assert "replies (3) cannot be more than clients (2)" in message
