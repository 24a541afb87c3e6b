"""Tenants: which tasks a key opens and how often it may ask; the file of keys; where a server may listen."""

import json
import time

import pytest

from colora.bank.layout import CONFIG_FILE, TENSORS_FILE
from colora.errors import ConfigError
from colora.serving.access import (
    Access,
    RateError,
    Tenant,
    WrongKeyError,
    add_tenant,
    read_tenants,
    remove_tenant,
)
from colora.serving.server import Listen, check_listen
from tests.helpers.run_files import cli, refusal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A file of keys, and the keys."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {
        "acme": add_tenant(path, "acme", ["acme-*"]),
        "globex": add_tenant(path, "globex", ["globex-*", "common"]),
        "hurried": add_tenant(path, "hurried", ["*"], requests_per_minute=2),
        "root": add_tenant(path, "root", ["*"], admin=True),
    }
    return path, made


def test_rate_recovers_with_time():
    tenant = Tenant(name="a", key_sha256="0" * 64, requests_per_minute=600)
    access = Access([tenant])
    for _ in range(600):
        access.count(tenant)
    with pytest.raises(RateError, match=r"try again in 0\.[01] seconds"):
        any(access.count(tenant) for _ in range(100))  # faster than ten a second
    time.sleep(0.15)
    access.count(tenant)


def test_file_of_keys_has_digests_alone(keys):
    path, made = keys
    text = path.read_text()
    assert not [key for key in made.values() if key in text or key.removeprefix("colora-") in text]
    access = Access(read_tenants(path))
    for name, key in made.items():
        assert access.tenant(f"Bearer {key}").name == name
        with pytest.raises(WrongKeyError):
            access.tenant(f"Bearer {key}x")
    assert len(set(made.values())) == 4


def test_access_rereads_the_file_of_keys(tmp_path, caplog):
    path = tmp_path / "keys.json"
    first = f"Bearer {add_tenant(path, 'first', ['*'])}"
    access = Access.of_file(path)
    assert access.tenant(first).name == "first"
    second = f"Bearer {add_tenant(path, 'second', ['*'])}"
    assert access.tenant(second).name == "second"
    remove_tenant(path, "first")
    with pytest.raises(WrongKeyError):
        access.tenant(first)
    for damage in (lambda: path.write_text("{"), path.unlink):
        damage()
        caplog.clear()
        assert [access.tenant(second).name for _ in range(3)] == ["second"] * 3
        assert [record.message.split(":")[0] for record in caplog.records] == ["the keys stay as they were"]
    add_tenant(path, "third", ["*"])
    with pytest.raises(WrongKeyError):
        access.tenant(second)


def test_keys_commands_add_and_remove(tmp_path):
    path = tmp_path / "keys.json"
    done = cli("keys", "add", path, "acme", "--tasks", "acme-*", "--tasks", "common", "--rate", 30)
    assert done.exit_code == 0, done.stderr
    (tenant,) = read_tenants(path)
    assert Access([tenant]).tenant(f"Bearer {done.stdout.strip()}") == tenant
    assert (tenant.tasks, tenant.requests_per_minute, tenant.admin) == (("acme-*", "common"), 30, False)
    assert "has a key already" in refusal("keys", "add", path, "acme", "--tasks", "*")
    assert "no tenant 'nobody'" in refusal("keys", "remove", path, "nobody")
    assert "requests_per_minute" in refusal("keys", "add", path, "b", "--tasks", "*", "--rate", -1)
    assert cli("keys", "remove", path, "acme").exit_code == 0
    assert read_tenants(path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"tenants": [{"name": "a"}]}', "tenants.0.key_sha256"),
        ('{"tenants": [{"name": "a", "key_sha256": "short"}]}', "key_sha256"),
        (json.dumps({"tenants": [{"name": "a", "key_sha256": "0" * 64}] * 2}), "appear twice: a"),
        (json.dumps({"tenants": [{"name": "a", "key_sha256": "0" * 64, "tusks": []}]}), "tusks"),
    ],
)
def test_read_tenants_refuses_a_damaged_file(tmp_path, content, message):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_tenants(tmp_path / "keys.json")


def test_check_listen_wants_keys_and_tls_beyond_loopback(tmp_path):
    file = tmp_path / "file"
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.3"):
        check_listen(Listen(host))
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match=r"keys .* and TLS"):
            check_listen(Listen(host))
        with pytest.raises(ConfigError, match="expected TLS"):
            check_listen(Listen(host, keys=file))
        with pytest.raises(ConfigError, match="expected keys"):
            check_listen(Listen(host, certificate=file, private_key=file))
        check_listen(Listen(host, keys=file, certificate=file, private_key=file))
    with pytest.raises(ConfigError, match="both a certificate"):
        check_listen(Listen(certificate=file))
    for name in (CONFIG_FILE, TENSORS_FILE):  # a bank, as far as it is looked at
        (tmp_path / name).touch()
    assert "can be reached from other machines" in refusal("serve", tmp_path, "--host", "0.0.0.0")
