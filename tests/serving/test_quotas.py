"""What one tenant may take: tasks, bytes, onboardings, uploads, rows; and two keys of one tenant at once."""

import threading
import time

import pytest

from colora.bank.core_file import extract_core, read_core_header
from colora.errors import ColoraError, ConfigError
from colora.models.decoding.sampling import Sampling
from colora.serving.access import Access, Tenant, WrongKeyError, add_tenant, read_tenants, renew_key, retire_key
from colora.serving.jobs import MOST_EXAMPLES, MOST_REMEMBERED, MOST_TOGETHER, MOST_WAITING, Jobs
from colora.serving.onboarding import Onboarded
from colora.serving.quotas import Limits, QuotaError, Uploads, WaitError, rows_of
from colora.serving.store import CoreStore
from tests.helpers.run_files import cli, refusal
from tests.helpers.servers import serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def tenant(name, digit, **limits):
    return Tenant(name=name, key_sha256=digit * 64, limits=Limits(**limits))


@pytest.fixture(scope="module")
def core(bank):
    extract_core(bank, "billing", bank.with_name("core"))
    return bank.with_name("core").read_bytes()


# ---- tasks and bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_a_tenant_has_its_tasks_and_no_more(bank, core, tmp_path, kept):
    state = tmp_path / "state" if kept else None
    keys = tmp_path / "keys.json"
    key = {name: add_tenant(keys, name, [f"{name}-*", "common"], limits=Limits(tasks=2)) for name in ("acme", "globex")}
    with serving(bank, read_tenants(keys), state=state) as server:

        def put(name, task):
            headers = {"Authorization": f"Bearer {key[name]}"}
            return server.http.put(f"/v1/tasks/{task}/core", content=core, headers=headers)

        assert [put("acme", f"acme-{number}").status_code for number in (1, 2, 1)] == [201, 201, 200]
        refused = put("acme", "acme-3")
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "quota_exceeded")
        assert "limit of 2 tasks" in refused.json()["error"]["message"]
        onboarding = {
            "headers": {"Authorization": f"Bearer {key['acme']}"},
            "content": b'{"input": "a", "output": "b"}',
        }
        assert server.http.post("/v1/tasks/acme-3/examples", **onboarding).status_code == 507
        assert [put("globex", task).status_code for task in ("globex-1", "common")] == [
            201,
            201,
        ]  # others have their own
        assert put("acme", "common").status_code == 507  # it would be acme's then
        headers = {"Authorization": f"Bearer {key['acme']}"}
        assert server.http.delete("/v1/models/acme-1", headers=headers).status_code == 200
        assert put("acme", "common").status_code == 200
        assert put("globex", "globex-2").status_code == 201  # "common" is not globex's any more
    if kept:
        store = CoreStore(bank, state)  # who has what outlives a restart
        with pytest.raises(QuotaError, match="2 tasks"):
            store.put("acme-9", core, "acme", Limits(tasks=2))
        assert {read_core_header(path).tenant for path in state.glob("cores/*")} == {"acme", "globex"}


def test_bytes_of_a_tenant_are_bounded(bank, core):
    store = CoreStore(bank)
    limits = Limits(bytes=2 * len(core) + 200)
    for number in (1, 2, 2, 1):
        store.put(f"a-{number}", core, "a", limits)
    with pytest.raises(QuotaError, match=f"may have {limits.bytes} bytes of cores, and would need"):
        store.put("a-3", core, "a", limits)
    assert "a-3" not in store
    store.put("b-1", core, "b", limits)
    store.remove("a-1")
    store.put("a-3", core, "a", limits)


def test_names_that_come_and_go_leave_nothing(bank, core):
    store = CoreStore(bank)
    before = store.version("legal")
    seen = set()
    for number in range(50):
        store.put(f"name-{number}", core, "a")
        seen.add(store.version(f"name-{number}"))
        store.remove(f"name-{number}")
    store.put("name-1", core, "a")
    assert store.version("name-1") not in seen | {before}  # whoever holds an old core sees that it is old
    assert len(store._versions) == len(store.holdings._of) == 1


# ---- onboardings -----------------------------------------------------------------------------------------------------


class HeldJobs(Jobs):
    """Jobs that wait for the test instead of training."""

    def __init__(self, store, tenants):
        self.free, self.order, self.together = threading.Semaphore(0), [], []
        super().__init__(lambda: store, lambda *_: None, None, lambda: tenants)

    def _onboard(self, jobs, folder):
        self.together.append([job.task for job in jobs])
        for job in jobs:
            self.order.append(job.task)
            self.free.acquire()
            self._end(job, ColoraError("x" * 10_000) if job.task == "bad" else Onboarded("y" * 10_000, b""))


@pytest.fixture
def jobs(bank):
    held = HeldJobs(CoreStore(bank), 3)
    yield held
    for _ in range(1000):
        held.free.release()
    held.close()


def settled(jobs, count):
    end = time.monotonic() + 20
    while len(jobs.order) < count:
        assert time.monotonic() < end, jobs.order
        time.sleep(0.01)


def test_onboardings_of_tenants_alternate_and_none_takes_the_queue(jobs):
    many, few = tenant("many", "0", jobs=None), tenant("few", "1")
    jobs.submit(many, "many-0", b"")
    settled(jobs, 1)
    for number in range(1, 1 + MOST_WAITING // 2):
        jobs.submit(many, f"many-{number}", b"")
    with pytest.raises(WaitError, match=f"{MOST_WAITING // 2} of this key"):
        jobs.submit(many, "one too many", b"")
    for number in range(4):
        jobs.submit(few, f"few-{number}", b"")
    with pytest.raises(WaitError, match="limit of 4 unfinished onboardings"):
        jobs.submit(few, "few-4", b"")
    for _ in range(8):
        jobs.free.release()
    settled(jobs, 9)
    assert jobs.order == [f"{name}-{number}" for number in range(4) for name in ("many", "few")] + ["many-4"]
    # What waited when the first had ended is taken together, at most so much of it.
    for _ in range(8):
        jobs.free.release()
    settled(jobs, 13)
    assert [len(tasks) for tasks in jobs.together] == [1, MOST_TOGETHER, 4]


def test_an_onboarding_counts_as_a_task_while_it_is_under_way(jobs):
    one = tenant("one", "0", tasks=2)
    jobs.submit(one, "one-0", b"")
    jobs.submit(one, "one-1", b"")
    with pytest.raises(QuotaError, match="2 tasks"):
        jobs.submit(one, "one-2", b"")
    with pytest.raises(ConfigError, match="'one-1' is being onboarded already"):
        jobs.submit(one, "one-1", b"")


def test_many_jobs_of_a_tenant_make_others_forgotten_by_nobody_else(jobs):
    few, many = tenant("few", "0"), tenant("many", "1", tasks=None)
    kept = jobs.submit(few, "bad", b"")
    first = jobs.submit(many, "many", b"")
    for count in range(2, MOST_REMEMBERED + 10):
        jobs.free.release()
        settled(jobs, count)
        while jobs.get(kept.id, "few").state in ("waiting", "running"):
            time.sleep(0.01)
        jobs.submit(many, f"many-{count}", b"")
    assert jobs.get(first.id, "many") is None
    assert (jobs.get(kept.id, "few").state, len(jobs.get(kept.id, "few").message)) == ("failed", 4000)
    assert jobs.get(kept.id, "many") is None


def test_examples_without_end_are_refused(bank):
    with serving(bank) as server:
        line = b'{"input": "a", "output": "b"}\n'
        answer = server.http.post("/v1/tasks/new/examples", content=line * (MOST_EXAMPLES + 1))
        assert answer.status_code == 413
        assert f"at most {MOST_EXAMPLES} examples" in answer.json()["error"]["message"]
        answer = server.http.post("/v1/tasks/a%1bb/examples", content=line)
        assert (answer.status_code, "task name" in answer.json()["error"]["message"]) == (400, True)


# ---- uploads and rows ------------------------------------------------------------------------------------------------


def test_uploads_at_once_are_bounded():
    uploads = Uploads(most=3, of_tenant=2)
    with uploads.one("a"), uploads.one("a"):
        with pytest.raises(WaitError, match="2 uploads of this key"), uploads.one("a"):
            pass
        with uploads.one("b"), pytest.raises(WaitError, match="3 in all"), uploads.one("c"):
            pass
    with uploads.one("a"):
        assert uploads._now == {"a": 1}
    assert not uploads._now


def test_rows_of_a_tenant():
    assert [rows_of(None, 16, tenants) for tenants in (0, 1, 2, 9)] == [16, 16, 12, 12]
    assert [rows_of(None, rows, 2) for rows in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert rows_of(5, 16, 2) == rows_of(5, 16, 1) == 5


def test_a_tenant_has_its_rows_and_others_go_before_it(bank):
    tenants = [tenant("many", "0", rows=2), tenant("few", "1")]
    with serving(bank, tenants, rows=4) as server:
        scheduler, most, ended = server.service.scheduler, [], threading.Event()
        order = []

        def submit(name, number, rows):
            def deliver(piece):
                most.append(sum(ticket.tenant == "many" for ticket in scheduler._running.values()))
                if isinstance(piece, Exception) or piece.finish is not None:
                    order.append(name)
                    if len(order) == 9:
                        ended.set()

            sampling = Sampling(max_tokens=6 + number, temperature=1.0, seed=number)
            scheduler.submit(name, "legal", [7, 8, 9], sampling, deliver, rows)

        blocked, free = threading.Event(), threading.Event()
        scheduler.call(lambda: blocked.set() or free.wait(30))
        blocked.wait(30)
        for number in range(6):
            submit("many", number, 2)
        for number in range(3):
            submit("few", number, None)
        free.set()
        assert ended.wait(60)
    assert max(most) == 2
    assert order.index("few") < 3
    assert order.count("many") == 6


def test_long_prompts_of_one_tenant_leave_time_to_the_rows_of_others(bank):
    """After one has been read, the rows that run have as long before the next; short prompts do not wait."""
    with serving(bank, [tenant("many", "0"), tenant("few", "1")], rows=8) as server:
        scheduler, ended = server.service.scheduler, threading.Event()
        joined, join = [], scheduler.engine.batch.join

        def slow(rows):
            others = any(ticket.tenant == "few" and ticket.row not in rows for ticket in scheduler._running.values())
            joined.append((len(rows[0].prompt), others and scheduler._owed > 0))
            time.sleep(0.05)
            return join(rows)

        finished = []

        def deliver(piece):
            if isinstance(piece, Exception) or piece.finish is not None:
                finished.append(piece)
                if len(finished) == 7:
                    ended.set()

        scheduler.engine.batch.join = slow
        sampling = Sampling(max_tokens=100, temperature=2.0, seed=1)
        blocked, free = threading.Event(), threading.Event()
        scheduler.call(lambda: blocked.set() or free.wait(30))
        blocked.wait(30)
        scheduler.submit("few", "legal", [7, 8, 9], sampling, deliver)
        for _ in range(5):
            scheduler.submit("many", "legal", [9] * 400, Sampling(max_tokens=2), deliver)
        scheduler.submit("few", "legal", [7, 8, 9], Sampling(max_tokens=2), deliver)
        free.set()
        assert ended.wait(60)
    assert joined[0][0] == 3
    assert 400 not in [length for length, owed in joined if owed]  # nothing is owed to a row that has ended


# ---- two keys --------------------------------------------------------------------------------------------------------


def test_a_key_is_changed_without_a_gap(tmp_path):
    path = tmp_path / "keys.json"
    old = add_tenant(path, "acme", ["acme-*"])
    other = add_tenant(path, "globex", ["*"])
    access = Access.of_file(path)
    new = renew_key(path, "acme")
    for key in (old, new):
        assert access.tenant(f"Bearer {key}").name == "acme"
    with pytest.raises(ConfigError, match="has two keys already"):
        renew_key(path, "acme")
    retire_key(path, "acme")
    assert access.tenant(f"Bearer {new}").name == "acme"
    with pytest.raises(WrongKeyError):
        access.tenant(f"Bearer {old}")
    with pytest.raises(ConfigError, match="has one key"):
        retire_key(path, "acme")
    assert access.tenant(f"Bearer {other}").name == "globex"
    assert not [key for key in (old, new, other) if key.removeprefix("colora-") in path.read_text()]


def test_both_keys_of_a_tenant_share_its_rate(tmp_path):
    path = tmp_path / "keys.json"
    keys = [add_tenant(path, "acme", ["*"], requests_per_minute=3), renew_key(path, "acme")]
    access = Access.of_file(path)
    found = [access.tenant(f"Bearer {key}") for key in keys]
    for number in range(3):
        access.count(found[number % 2])
    with pytest.raises(ColoraError, match="too many requests"):
        access.count(found[1])


def test_one_key_of_two_tenants_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    add_tenant(path, "acme", ["*"])
    text = path.read_text()
    (acme,) = read_tenants(path)
    path.write_text(text.replace("acme", "globex"))
    add_tenant(path, "acme", ["*"])
    path.write_text(path.read_text().replace(read_tenants(path)[1].key_sha256, acme.key_sha256))
    with pytest.raises(ConfigError, match="found the same key for globex, acme"):
        read_tenants(path)


def test_keys_commands_renew_retire_and_limit(tmp_path):
    path = tmp_path / "keys.json"
    limits = ("--most-tasks", 5, "--most-megabytes", 1.5, "--most-jobs", 1, "--most-rows", 3)
    first = cli("keys", "add", path, "acme", "--tasks", "*", *limits).stdout.strip()
    (acme,) = read_tenants(path)
    assert acme.limits == Limits(tasks=5, bytes=3 * 2**19, jobs=1, rows=3)
    second = cli("keys", "renew", path, "acme").stdout.strip()
    assert "has two keys" in refusal("keys", "renew", path, "acme")
    assert len(read_tenants(path)[0].digests) == 2
    assert cli("keys", "retire", path, "acme").exit_code == 0
    (acme,) = read_tenants(path)
    assert Access([acme]).tenant(f"Bearer {second}") == acme
    with pytest.raises(WrongKeyError):
        Access([acme]).tenant(f"Bearer {first}")
    assert "no tenant 'nobody'" in refusal("keys", "renew", path, "nobody")
    cli("keys", "add", path, "plain", "--tasks", "*")
    assert read_tenants(path)[1].limits == Limits()


def test_guessed_keys_are_told_to_the_log_and_no_more_than_that(tmp_path, caplog):
    path = tmp_path / "keys.json"
    add_tenant(path, "acme", ["*"])
    access = Access.of_file(path)
    for number in range(500):
        with pytest.raises(WrongKeyError):
            access.tenant(f"Bearer guess-{number}\n")
    assert [record.message for record in caplog.records] == ["requests with keys that nobody has: 1"]
