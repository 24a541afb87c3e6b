"""Flower's commands: keys and certificates, arguments that survive its parser, settings as TOML, and processes."""

import ipaddress
import os
import stat
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime, timedelta

import psutil
import pytest

pytest.importorskip("flwr")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import parse_config_args

from colora.errors import ConfigError, FederationError
from colora.federated import launch, processes
from colora.federated.keys import client_key, make_credentials
from colora.federated.processes import stop

HARD = [
    "plain",
    "",
    "two words",
    'say "it"',
    "it's",
    "C:\\new\\table",
    '\\"',
    "a=b c='d'",
    "line\nand\ttab",
    "é 😀 \x7f\x00",
    '{"a": "b\\n"}',
    "ends in.toml",
]


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "tls"
    make_credentials(folder, ["first", "second one"], ["localhost", "127.0.0.1", "::1"])
    return folder


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_server_certificate_is_valid_for_its_hosts_alone(tls):
    store = Store([certificate(tls / "ca.pem")])
    names = x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(host)) for host in ("127.0.0.1", "::1"))
    for name in names:
        PolicyBuilder().store(store).build_server_verifier(name).verify(certificate(tls / "server.pem"), [])
    stranger = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("example.org"))
    with pytest.raises(x509.verification.VerificationError):
        stranger.verify(certificate(tls / "server.pem"), [])


def test_certificates_are_valid_for_a_year(tls):
    for name in ("ca.pem", "server.pem"):
        left = certificate(tls / name).not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=364) < left <= timedelta(days=365)


def test_make_credentials_gives_each_client_its_own_key_pair(tls):
    public = []
    for name in ("first", "second one"):
        key = load_ssh_private_key(client_key(tls, name).read_bytes(), None)
        public.append(load_ssh_public_key((tls / "clients" / f"{name}.pub").read_bytes()))
        assert isinstance(key.curve, ec.SECP384R1)
        assert key.public_key() == public[-1]
    assert public[0] != public[1]


def test_private_keys_are_readable_by_the_owner_alone(tls):
    keys = sorted(tls.rglob("*.key"))
    assert len(keys) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize("name", ["ca.pem", "server.key", "clients/a.key", "clients/a.pub"])
def test_make_credentials_refuses_to_overwrite(tmp_path, name):
    existing = tmp_path / name
    existing.parent.mkdir(exist_ok=True)
    existing.write_text("old")
    with pytest.raises(ConfigError, match=existing.name):
        make_credentials(tmp_path, ["a"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [existing]
    assert existing.read_text() == "old"


def test_make_credentials_refuses_names_that_windows_has_no_file_for(tmp_path, monkeypatch):
    monkeypatch.setattr("colora.common.systems.WINDOWS", True)
    with pytest.raises(ConfigError, match="no file can be called 'aux'"):
        make_credentials(tmp_path, ["aux"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("clients", "hosts"),
    [(["../a"], ["localhost"]), (["a", "a"], ["localhost"]), (["a"], []), (["a"], ["localhost:80"]), (["a"], [""])],
)
def test_make_credentials_refuses_invalid_names_and_hosts(tmp_path, clients, hosts):
    with pytest.raises(ConfigError):
        make_credentials(tmp_path, clients, hosts)
    assert list(tmp_path.iterdir()) == []


def after(command, flag):
    return command[command.index(flag) + 1]


def test_server_command_with_tls(tls, tmp_path):
    command = launch.server_command("127.0.0.1", 8001, tmp_path / "state.db", tls)
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "8001")
    assert after(command, "--database") == str(tmp_path / "state.db")
    assert after(command, "--ssl-ca-certfile") == str(tls / "ca.pem")
    assert after(command, "--ssl-certfile") == str(tls / "server.pem")
    assert after(command, "--ssl-keyfile") == str(tls / "server.key")
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


def test_server_command_without_tls(tmp_path):
    command = launch.server_command("127.0.0.1", 8001, tmp_path / "state.db")
    assert "--insecure" in command
    assert not [word for word in command if "ssl" in word or "auth" in word]


def test_client_command_with_tls_and_key(tls):
    key = client_key(tls, "first")
    command = launch.client_command("127.0.0.1:8001", 9001, {}, tls / "ca.pem", key)
    assert after(command, "--superlink") == "127.0.0.1:8001"
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "9001")
    assert after(command, "--root-certificates") == str(tls / "ca.pem")
    assert after(command, "--auth-supernode-private-key") == str(key)
    assert "--insecure" not in command


def test_client_command_refuses_a_key_without_tls(tls):
    assert "--insecure" in launch.client_command("127.0.0.1:8001", 9001, {})
    with pytest.raises(ConfigError, match="root certificate"):
        launch.client_command("127.0.0.1:8001", 9001, {}, key=client_key(tls, "first"))


def test_node_config_survives_flowers_parser():
    flags = {f"key-{index}": text for index, text in enumerate(HARD)}
    flags |= {"whole": -3, "share": 1e-07, "yes": True, "no": False, "last": HARD[-1]}
    read = parse_config_args([after(launch.client_command("127.0.0.1:1", 2, flags), "--node-config")])
    assert read == flags
    assert [type(value) for value in read.values()] == [type(value) for value in flags.values()]


@pytest.mark.parametrize("settings", [{"a b": 1}, {"a.b": 1}, {"a": None}, {"a": float("nan")}, {"a": 2**63}])
def test_settings_that_are_not_toml_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError):
        launch.client_command("127.0.0.1:1", 2, settings)
    with pytest.raises(ConfigError):
        launch.write_app(tmp_path, settings)


def test_register_run_and_status_commands(tmp_path):
    key = tmp_path / "a.pub"
    assert launch.register_command(key, "here")[1:] == ["supernode", "register", str(key), "here"]
    assert launch.run_command(tmp_path, "here")[1:] == ["run", str(tmp_path), "here", "--stream"]
    assert launch.run_command(tmp_path, "here", stream=False)[1:] == ["run", str(tmp_path), "here"]
    assert launch.status_command("here", 12)[1:] == ["list", "here", "--run-id", "12", "--format", "json"]


def test_write_connection_keeps_the_others(tmp_path, tls):
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "old"\n[superlink.old]\naddress = ":local:"\n')
    launch.write_connection(tmp_path, "open", "127.0.0.1:1")
    launch.write_connection(tmp_path, "safe", "127.0.0.1:2")
    launch.write_connection(tmp_path, "safe", "127.0.0.1:3", tls / "ca.pem")
    assert tomllib.loads((tmp_path / "config.toml").read_text())["superlink"] == {
        "default": "old",
        "old": {"address": ":local:"},
        "open": {"address": "127.0.0.1:1", "insecure": True},
        "safe": {"address": "127.0.0.1:3", "root-certificates": str(tls / "ca.pem")},
    }


def test_write_connection_refuses_a_bad_name_or_file(tmp_path):
    with pytest.raises(ConfigError):
        launch.write_connection(tmp_path, "a.b", "127.0.0.1:1")
    (tmp_path / "config.toml").write_text("[superlink")
    with pytest.raises(ConfigError, match=r"config\.toml"):
        launch.write_connection(tmp_path, "a", "127.0.0.1:1")


def test_write_app_writes_one_file_that_flower_accepts(tmp_path):
    config = {f"key-{index}": text for index, text in enumerate(HARD)} | {"whole": 3, "share": 2.5, "yes": True}
    launch.write_app(tmp_path / "app", config)
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    read, warnings = load_and_validate(tmp_path / "app" / "pyproject.toml", check_module=False)
    assert read["tool"]["flwr"]["app"]["config"] == config
    assert not warnings


def test_flower_environment_sets_home_and_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = launch.flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    first, *rest = environment["PATH"].split(os.pathsep)
    assert first == os.path.dirname(sys.executable)
    assert rest == os.environ["PATH"].split(os.pathsep)


def test_wait_until_ready_ends_with_the_process_or_the_time():
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(FederationError, match="exit code 3"):
        launch.wait_until_ready("http://127.0.0.1:9", 20, process=ended)
    with pytest.raises(FederationError, match=r"did not answer within 0\.2 seconds"):
        launch.wait_until_ready("http://127.0.0.1:9", 0.2)


IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {IGNORES_SIGTERM!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_stop_kills_processes_that_ignore_sigterm():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert psutil.pid_exists(child)
        stop(process, seconds=0.3)
    assert process.returncode is not None
    assert gone(child)


def test_stop_ends_the_children_of_a_dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    orphan = subprocess.Popen(
        [sys.executable, "-c", IGNORES_SIGTERM, "--parent-pid", str(process.pid)], stdout=subprocess.PIPE
    )
    orphan.stdout.readline()
    stop(process, seconds=0.2)
    assert gone(orphan.pid)
    orphan.communicate()


def gone(pid):
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_keep_running_restarts_a_failing_program(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "RETRY_PAUSE", 0.01)
    tried = tmp_path / "tried"
    code = f"import sys; f = open({str(tried)!r}, 'a+'); f.write('x'); f.seek(0); sys.exit(len(f.read()) < 3)"
    assert processes.keep_running([sys.executable, "-c", code], dict(os.environ), retry=30) == 0
    assert tried.read_text() == "xxx"


def test_keep_running_returns_the_exit_code_without_retries(monkeypatch):
    monkeypatch.setattr(processes, "RETRY_PAUSE", 0.01)
    assert processes.keep_running([sys.executable, "-c", "raise SystemExit(7)"], dict(os.environ), retry=0) == 7


def test_keep_running_ends_its_program_on_sigterm(tmp_path):
    started = tmp_path / "pid"
    inner = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import os, sys\nfrom colora.federated.processes import keep_running\n"
        f"sys.exit(keep_running([sys.executable, '-c', {inner!r}], dict(os.environ), retry=60))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    while not (started.is_file() and started.read_text()):
        time.sleep(0.05)
    pid = int(started.read_text())
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert not psutil.pid_exists(pid)
