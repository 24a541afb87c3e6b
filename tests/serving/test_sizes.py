"""A server of a bank whose tasks have cores of several sizes: slots are as large as the largest."""

import pytest

from colora.bank.core_file import CoreHeader, core_bytes, extract_core
from colora.bank.generate import Request, generate_texts
from colora.bank.tensors import SavedBank
from colora.serving.onboarding import write_start_bank
from colora.serving.store import CoreStore
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import onboard
from tests.helpers.run_files import write_task
from tests.helpers.servers import TASKS, ask, make_bank, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Of the tasks with cores of 3 × 3, and "new" of 5 × 5."""
    folder = tmp_path_factory.mktemp("bank")
    bank = make_bank(folder)
    onboard(bank, folder / write_task(folder, "new", 5), settings=Settings(4, 2, extend=2))
    return bank


def answer(server, task):
    got = server.http.post("/v1/chat/completions", json=ask(task, "one", max_tokens=8))
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["message"]["content"]


def resized(saved, task, rank):
    core = {name: one[:rank, :rank] for name, one in saved.core(saved.index[task]).items()}
    return core_bytes(core, CoreHeader("x", saved.info.base, saved.shared_sha256))


def test_answers_are_those_of_the_bank_and_cores_go_from_one_to_another(bank, tmp_path):
    names = [*TASKS, "new"]
    expected = dict(zip(names, generate_texts(bank, [Request(name, "one") for name in names], 8), strict=True))
    assert len(set(expected.values())) > 1
    with serving(bank, resident=2) as server:
        for name in [*names, *reversed(names)]:  # slots are used again by cores of other sizes
            assert answer(server, name) == expected[name], name
        for name in ("legal", "new"):
            extract_core(bank, name, tmp_path / name)
            content = (tmp_path / name).read_bytes()
            assert server.http.get(f"/v1/tasks/{name}/core").content == content
            assert server.http.put(f"/v1/tasks/copy-of-{name}/core", content=content).status_code == 201
            assert answer(server, f"copy-of-{name}") == expected[name]


def test_a_core_of_a_size_that_the_bank_does_not_have_is_refused(bank):
    saved = SavedBank(bank)
    with serving(bank) as server:
        assert server.http.put("/v1/tasks/four/core", content=resized(saved, "new", 4)).status_code == 201
        for rank, task in ((2, "legal"), (1, "new")):
            refused = server.http.put("/v1/tasks/small/core", content=resized(saved, task, rank))
            assert refused.status_code == 400
            assert f"one size from 3 × 3 to 5 × 5, found ({rank}, {rank})" in refused.text
        assert "small" not in server.service.store


def test_the_bank_that_a_job_starts_from_leads_to_a_core_of_the_size_of_new_tasks(bank, tmp_path):
    store = CoreStore(bank)
    write_start_bank(store, ["newer"], tmp_path / "start")
    examples = tmp_path / write_task(tmp_path, "newer", 5)
    onboard(tmp_path / "start", examples, output=tmp_path / "after", settings=Settings(2, 2))
    after = SavedBank(tmp_path / "after")
    core = after.core(after.index["newer"])
    assert {tuple(one.shape) for one in core.values()} == {(3, 3)}
    header = CoreHeader("newer", after.info.base, store.shared)
    store.put("newer", core_bytes(core, header))
    assert "newer" in store
