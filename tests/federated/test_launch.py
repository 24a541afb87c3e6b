"""What Flower's commands are told: keys that fit, arguments that survive its parser, settings that are TOML."""

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


def test_the_server_is_known_by_its_hosts_and_by_no_other(tls):
    store = Store([certificate(tls / "ca.pem")])
    names = x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(host)) for host in ("127.0.0.1", "::1"))
    for name in names:
        PolicyBuilder().store(store).build_server_verifier(name).verify(certificate(tls / "server.pem"), [])
    stranger = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("example.org"))
    with pytest.raises(x509.verification.VerificationError):
        stranger.verify(certificate(tls / "server.pem"), [])


def test_certificates_are_good_for_a_year(tls):
    for name in ("ca.pem", "server.pem"):
        left = certificate(tls / name).not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=364) < left <= timedelta(days=365)


def test_each_client_has_its_own_pair_of_keys(tls):
    public = []
    for name in ("first", "second one"):
        key = load_ssh_private_key(client_key(tls, name).read_bytes(), None)
        public.append(load_ssh_public_key((tls / "clients" / f"{name}.pub").read_bytes()))
        assert isinstance(key.curve, ec.SECP384R1)
        assert key.public_key() == public[-1]
    assert public[0] != public[1]


def test_only_the_owner_reads_private_keys(tls):
    keys = sorted(tls.rglob("*.key"))
    assert len(keys) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


@pytest.mark.parametrize("name", ["ca.pem", "server.key", "clients/a.key", "clients/a.pub"])
def test_keys_are_never_overwritten(tmp_path, name):
    there = tmp_path / name
    there.parent.mkdir(exist_ok=True)
    there.write_text("old")
    with pytest.raises(ConfigError, match=there.name):
        make_credentials(tmp_path, ["a"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [there]
    assert there.read_text() == "old"


@pytest.mark.parametrize(
    ("clients", "hosts"),
    [(["../a"], ["localhost"]), (["a", "a"], ["localhost"]), (["a"], []), (["a"], ["localhost:80"]), (["a"], [""])],
)
def test_names_and_hosts_that_cannot_be_meant(tmp_path, clients, hosts):
    with pytest.raises(ConfigError):
        make_credentials(tmp_path, clients, hosts)
    assert list(tmp_path.iterdir()) == []


def after(command, flag):
    return command[command.index(flag) + 1]


def test_a_server_with_tls_takes_only_registered_clients(tls, tmp_path):
    command = launch.server_command("127.0.0.1", 8001, tmp_path / "state.db", tls)
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "8001")
    assert after(command, "--database") == str(tmp_path / "state.db")
    assert after(command, "--ssl-ca-certfile") == str(tls / "ca.pem")
    assert after(command, "--ssl-certfile") == str(tls / "server.pem")
    assert after(command, "--ssl-keyfile") == str(tls / "server.key")
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command


def test_a_server_without_tls_says_so(tmp_path):
    command = launch.server_command("127.0.0.1", 8001, tmp_path / "state.db")
    assert "--insecure" in command
    assert not [word for word in command if "ssl" in word or "auth" in word]


def test_a_client_with_tls_shows_its_key(tls):
    key = client_key(tls, "first")
    command = launch.client_command("127.0.0.1:8001", 9001, {}, tls / "ca.pem", key)
    assert after(command, "--superlink") == "127.0.0.1:8001"
    assert (after(command, "--host"), after(command, "--port")) == ("127.0.0.1", "9001")
    assert after(command, "--root-certificates") == str(tls / "ca.pem")
    assert after(command, "--auth-supernode-private-key") == str(key)
    assert "--insecure" not in command


def test_a_client_without_tls_has_no_use_for_a_key(tls):
    assert "--insecure" in launch.client_command("127.0.0.1:8001", 9001, {})
    with pytest.raises(ConfigError, match="root certificate"):
        launch.client_command("127.0.0.1:8001", 9001, {}, key=client_key(tls, "first"))


def test_what_a_node_is_told_survives_flowers_parser():
    told = {f"key-{place}": text for place, text in enumerate(HARD)}
    told |= {"whole": -3, "share": 1e-07, "yes": True, "no": False, "last": HARD[-1]}
    read = parse_config_args([after(launch.client_command("127.0.0.1:1", 2, told), "--node-config")])
    assert read == told
    assert [type(value) for value in read.values()] == [type(value) for value in told.values()]


@pytest.mark.parametrize("settings", [{"a b": 1}, {"a.b": 1}, {"a": None}, {"a": float("nan")}, {"a": 2**63}])
def test_what_a_node_cannot_be_told(settings, tmp_path):
    with pytest.raises(ConfigError):
        launch.client_command("127.0.0.1:1", 2, settings)
    with pytest.raises(ConfigError):
        launch.write_app(tmp_path, settings)


def test_commands_of_a_user(tmp_path):
    assert launch.register_command(tmp_path / "a.pub", "here")[1:] == [
        "supernode", "register", str(tmp_path / "a.pub"), "here",
    ]  # fmt: skip
    assert launch.run_command(tmp_path, "here")[1:] == ["run", str(tmp_path), "here", "--stream"]
    assert launch.run_command(tmp_path, "here", stream=False)[1:] == ["run", str(tmp_path), "here"]
    assert launch.status_command("here", 12)[1:] == ["list", "here", "--run-id", "12", "--format", "json"]


def test_connections_are_added_and_changed_one_by_one(tmp_path, tls):
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


def test_a_connection_needs_a_simple_name_and_a_file_that_is_toml(tmp_path):
    with pytest.raises(ConfigError):
        launch.write_connection(tmp_path, "a.b", "127.0.0.1:1")
    (tmp_path / "config.toml").write_text("[superlink")
    with pytest.raises(ConfigError, match=r"config\.toml"):
        launch.write_connection(tmp_path, "a", "127.0.0.1:1")


def test_an_app_is_one_file_that_flower_accepts(tmp_path):
    config = {f"key-{place}": text for place, text in enumerate(HARD)} | {"whole": 3, "share": 2.5, "yes": True}
    launch.write_app(tmp_path / "app", config)
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    read, warnings = load_and_validate(tmp_path / "app" / "pyproject.toml", check_module=False)
    assert read["tool"]["flwr"]["app"]["config"] == config
    assert not warnings


def test_flower_keeps_to_its_home_and_to_this_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", "elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = launch.flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    first, *rest = environment["PATH"].split(os.pathsep)
    assert first == os.path.dirname(sys.executable)
    assert rest == os.environ["PATH"].split(os.pathsep)


def test_waiting_ends_when_the_server_does_or_the_time_is_up():
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(FederationError, match="exit code 3"):
        launch.wait_until_ready("http://127.0.0.1:9", 20, process=ended)
    with pytest.raises(FederationError, match=r"did not answer within 0\.2 seconds"):
        launch.wait_until_ready("http://127.0.0.1:9", 0.2)


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_nothing_is_left_of_a_process_that_will_not_listen():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert psutil.pid_exists(child)
        stop(process, seconds=0.3)
    assert process.returncode is not None
    assert gone(child)


def test_nothing_is_left_of_a_process_that_died_before():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    orphan = subprocess.Popen([sys.executable, "-c", DEAF, "--parent-pid", str(process.pid)], stdout=subprocess.PIPE)
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


def test_a_program_that_is_refused_is_started_again_until_it_is_let_in(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "RETRY_PAUSE", 0.01)
    tried = tmp_path / "tried"
    code = f"import sys; f = open({str(tried)!r}, 'a+'); f.write('x'); f.seek(0); sys.exit(len(f.read()) < 3)"
    assert processes.keep_running([sys.executable, "-c", code], dict(os.environ), retry=30) == 0
    assert tried.read_text() == "xxx"


def test_a_program_that_stays_refused_ends_with_its_own_code(monkeypatch):
    monkeypatch.setattr(processes, "RETRY_PAUSE", 0.01)
    assert processes.keep_running([sys.executable, "-c", "raise SystemExit(7)"], dict(os.environ), retry=0) == 7


def test_told_to_end_it_ends_what_it_started(tmp_path):
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
