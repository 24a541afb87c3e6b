"""What is done with a bank in rows: generating, exporting, onboarding, updating, starting a run, serving, listing."""

import json

import pytest
import torch
from peft import PeftModel

from colora.adapter.lookup import only_bank
from colora.bank import growing
from colora.bank.generate import Request, generate_texts
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank, save_bank
from colora.bank.overview import task_page
from colora.bank.rows.read import SavedRows
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, ConfigError, TaskIdError
from colora.serving.onboarding import write_start_bank
from colora.serving.store import CoreStore
from colora.training.chosen import chosen_tasks
from colora.training.starts import in_store
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.many import onboard_many
from colora.transfer.onboarding.onboard import onboard
from colora.transfer.onboarding.update import update
from tests.helpers.dense_oracle import make_bank, make_inputs
from tests.helpers.row_banks import base_in, flip_byte, row_bank, same
from tests.helpers.run_files import cli, refusal, run_file, save_base, write_task
from tests.helpers.servers import serving
from tests.helpers.tiny import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NAMES = ["ada", "bo", "red", "cy", "blue"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return row_bank(tmp_path_factory.mktemp("rows"), NAMES)


@pytest.fixture
def bank(tmp_path):
    return row_bank(tmp_path, NAMES)


def in_stacks(folder):
    """The same bank with its cores in stacks."""
    base = base_in(folder)
    save_bank(make_bank(tiny_llama(), NAMES), folder / "stacks", BankInfo(base, chat_template=False, max_length=96))
    return folder / "stacks"


def test_generating_reads_the_tasks_of_the_prompts_alone(made, tmp_path, monkeypatch):
    folder, _ = made
    requests = [Request("cy", "hello"), Request("ada", "hello"), Request("cy", "more")]
    read = []
    row = SavedBank(folder).rows.__class__._run
    monkeypatch.setattr(
        "colora.bank.rows.read.SavedRows._run", lambda self, task, count: (read.append(task), row(self, task, count))[1]
    )
    found = generate_texts(folder, requests, 5)
    assert sorted(read) == [0, 3]
    assert found == generate_texts(in_stacks(tmp_path), requests, 5)
    with pytest.raises(TaskIdError, match="no task 'zed'"):
        generate_texts(folder, [Request("zed", "hello")], 5)
    with pytest.raises(TaskIdError, match="which task"):
        generate_texts(folder, [Request(None, "hello")], 5)


def test_some_tasks_are_exported_as_they_are_from_a_bank_in_stacks(made, tmp_path):
    folder, _ = made
    stacks = in_stacks(tmp_path)
    assert cli("export", folder, tmp_path / "a", "--task", "cy", "--task", "bo").exit_code == 0
    assert cli("export", stacks, tmp_path / "b").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["bo", "cy"]
    for task in ("bo", "cy"):
        one, other = (tmp_path / at / task / "adapter_model.safetensors" for at in "ab")
        assert one.read_bytes() == other.read_bytes()
    assert cli("export", folder, tmp_path / "merged", "--task", "cy", "--merged").exit_code == 0
    lora = PeftModel.from_pretrained(tiny_llama(), tmp_path / "b" / "cy")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.allclose(merged(**make_inputs()).logits, lora(**make_inputs()).logits, atol=1e-4)


def test_a_task_is_onboarded_and_updated_and_the_others_stay(bank, tmp_path):
    folder, cores = bank
    examples = tmp_path / write_task(tmp_path, "green", 6)
    done = onboard(folder, examples, settings=Settings(steps=2, rows=2))
    saved = SavedBank(folder)
    assert list(saved.tasks) == [*NAMES, "green"]
    assert saved.rows is not None
    assert all(same(saved.core(saved.index[name]), cores[name]) for name in NAMES)
    assert (saved.info.examples["green"], saved.info.seen["green"]) == (6, 4)
    before = saved.core(saved.index["green"])
    update(folder, examples, settings=Settings(steps=2, rows=2), force=True)
    saved = SavedBank(folder)
    assert not same(saved.core(saved.index["green"]), before)
    assert saved.info.seen["green"] == 8
    assert all(same(saved.core(saved.index[name]), cores[name]) for name in NAMES)
    assert done.task == "green"


def test_a_core_that_is_onboarded_is_that_of_a_bank_in_stacks(bank, tmp_path):
    folder, _ = bank
    examples = tmp_path / write_task(tmp_path, "green", 6)
    stacks = in_stacks(tmp_path)
    for one in (folder, stacks):
        onboard(one, examples, settings=Settings(steps=2, rows=2))
    assert same(SavedBank(folder).core(5), SavedBank(stacks).core(5))


def test_onboarding_reads_some_tasks_to_start_from(bank, tmp_path, monkeypatch):
    folder, cores = bank
    monkeypatch.setattr(growing, "START_TASKS", 2)
    saved = SavedBank(folder)
    assert growing.start_tasks(saved) == ["ada", "red"]
    flip_byte(folder / "cores" / saved.rows.index.form.shards[0], -1)  # of "blue", which is none of them
    files = [tmp_path / write_task(tmp_path, name, 4) for name in ("green", "white", "red")]
    done = onboard_many(folder, files, settings=Settings(steps=1, rows=2))
    saved = SavedBank(folder)
    assert list(saved.tasks) == [*NAMES, "green", "white"]
    assert (done.skipped, done.failed) == (["red"], {})
    assert all(same(saved.core(saved.index[name]), cores[name]) for name in NAMES[:-1])
    with pytest.raises(BankFileError, match="'blue'"):
        saved.core(4)


def test_a_bank_in_rows_is_extended_and_its_files_stay(bank, tmp_path):
    folder, _ = bank
    examples = tmp_path / write_task(tmp_path, "new", 4)
    after = onboard(folder, examples, output=tmp_path / "after", settings=Settings(steps=1, rows=2, extend=2)).bank
    before, larger = SavedBank(folder), SavedBank(after)
    names = {file.name for file in (folder / "cores").iterdir()} - {"tasks.safetensors"}
    assert all((folder / "cores" / name).samefile(after / "cores" / name) for name in names)
    assert larger.core_rank(larger.index["new"]) == larger.config.r == before.config.r + 2
    assert {larger.core_rank(task) for task in range(len(before.tasks))} == {before.config.r}


@pytest.mark.parametrize("most", [1024, 1])
def test_a_run_starts_from_the_cores_of_its_tasks(bank, tmp_path, monkeypatch, most):
    """With all cores on the model, and from the files one by one; a new task starts at the mean core."""
    folder, cores = bank
    monkeypatch.setattr(in_store, "ON_DEVICE", most)
    base = str(folder.parent / "base")
    file = run_file(
        tmp_path, base, ["blue", "green", "red"], start_from=str(folder), chat_template=False,
        training={"lr": 1e-12, "core_lr": 1e-12}, adapter={"r": 4, "lora_alpha": 8},
    )  # fmt: skip
    result = cli("train", file)
    assert result.exit_code == 0, result.output
    saved = SavedBank(tmp_path / "out")
    assert (saved.rows is None) == (most == 1024)
    assert list(saved.tasks) == ["blue", "green", "red"]
    mean = {key: torch.stack([cores[name][key] for name in NAMES]).mean(0) for key in cores["red"]}
    for name, expected in (("blue", cores["blue"]), ("green", mean), ("red", cores["red"])):
        found = saved.core(saved.index[name])
        assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)


def test_some_tasks_of_a_run_are_measured_as_in_the_whole_and_their_cores_alone_are_read(tmp_path, monkeypatch):
    base = save_base(tmp_path / "base")
    file = run_file(tmp_path, base, ["blue", "green", "red"], training={"cores": "memory"})
    assert cli("train", file).exit_code == 0
    records = tmp_path / "out" / "records.jsonl"
    whole = {one["task"]: one["value"] for one in map(json.loads, records.read_text().splitlines())}
    assert whole.keys() == {"blue", "green", "red"}
    read = []
    row = SavedRows._run

    def noted(self, task, count):
        read.extend(range(task, task + count))
        return row(self, task, count)

    monkeypatch.setattr(SavedRows, "_run", noted)
    for arguments, expected in (
        (["--task", "red"], 1),
        (["--sample", "2"], 2),
        (["--task", "red", "--sample", "9"], 1),
    ):
        records.unlink()
        read.clear()
        assert cli("evaluate", tmp_path / "out", *arguments).exit_code == 0
        found = {one["task"]: one["value"] for one in map(json.loads, records.read_text().splitlines())}
        assert len(found) == len(read) == expected
        assert found == pytest.approx({name: whole[name] for name in found}, rel=1e-5)
    assert "no task 'zed'; it has blue, green, red" in refusal("evaluate", tmp_path / "out", "--task", "zed")


def test_a_server_answers_from_single_cores(made, tmp_path):
    folder, cores = made
    with serving(folder) as rows, serving(in_stacks(tmp_path)) as stacks:
        for task in ("cy", "ada"):
            answers = [
                one.http.post("/v1/completions", json={"model": task, "prompt": "hi", "temperature": 0}).json()
                for one in (rows, stacks)
            ]
            assert answers[0]["choices"] == answers[1]["choices"]
    store = CoreStore(folder)
    version, core = store.read("blue")
    assert (version, same(core, cores["blue"])) == (0, True)
    write_start_bank(store, ["new"], tmp_path / "start")
    assert list(SavedBank(tmp_path / "start").tasks) == NAMES


def test_tasks_of_a_store_are_gone_through_from_any_of_them(made):
    folder, cores = made
    store = CoreStore(folder)
    content = store.core_file("bo")
    store.put("zoe", content)
    store.put("cy", content)  # replaces one of the bank
    store.remove("red")
    whole = ["ada", "bo", "cy", "blue", "zoe"]
    assert list(store) == whole
    assert len(store) == 5
    for number, name in enumerate(whole):
        assert list(store.after(name)) == whole[number + 1 :]
    assert list(store.after("red")) == []
    assert same(store.read("ada")[1], cores["ada"])


def test_the_list_of_models_goes_page_by_page(made):
    with serving(made[0]) as server:
        first = server.http.get("/v1/models", params={"limit": 2}).json()
        assert ([one["id"] for one in first["data"]], first["has_more"]) == (["ada", "bo"], True)
        rest = server.http.get("/v1/models", params={"limit": 3, "after": "bo"}).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["red", "cy", "blue"], False)


# ---- listing --------------------------------------------------------------------------------------------------------


def test_pages_hold_the_tasks_in_order():
    names = [f"user-{number}" for number in range(250)]
    assert task_page(names).names == names[:100]
    third = task_page(names, 3)
    assert (third.names, third.number, third.pages, third.found) == (names[200:], 3, 3, 250)
    some = task_page(names, 2, "user-1*", size=50)
    assert (some.names, some.pages, some.found) == ([f"user-{number}" for number in range(139, 189)], 3, 111)
    assert task_page(names, 1, "nobody*").names == []
    for number in (0, 4):
        with pytest.raises(ConfigError, match="from 1 to 3, because there are 250 tasks"):
            task_page(names, number)


def test_the_command_lists_a_page_and_writes_it(made, tmp_path):
    folder, _ = made
    told = cli("tasks", folder, "--matching", "b*", "--json", tmp_path / "page.json").output
    assert "bo" in told
    assert "ada" not in told
    page = json.loads((tmp_path / "page.json").read_text())
    assert (page["tasks"], page["found"], page["page"], page["pages"]) == (5, 2, 1, 1)
    assert [one["task"] for one in page["listed"]] == ["bo", "blue"]
    assert page["listed"][0]["parameters"] == 14 * 16
    assert "page 2: expected a page from 1 to 1" in refusal("tasks", folder, "--page", "2")


def test_some_tasks_of_a_run_are_chosen():
    class Named:
        def __init__(self, name):
            self.name = name

    tasks = [Named(f"t{number}") for number in range(10)]
    assert chosen_tasks(tasks) == tasks
    assert [one.name for one in chosen_tasks(tasks, ["t7", "t2"])] == ["t2", "t7"]
    drawn = chosen_tasks(tasks, sample=4, seed=3)
    assert len(drawn) == 4
    assert drawn == chosen_tasks(tasks, sample=4, seed=3)
    assert drawn != chosen_tasks(tasks, sample=4, seed=4)
    with pytest.raises(TaskIdError, match="no task 'nobody'"):
        chosen_tasks(tasks, ["nobody"])


def test_a_model_with_a_store_lists_its_tasks_without_making_them_all(made):
    model, _, _ = load_bank(made[0])
    tasks = model.base_model.tasks
    assert not isinstance(tasks, list)
    assert (tasks[4], list(tasks)) == ("blue", NAMES)
    assert only_bank(model)[1].resolve(["cy"], ["default"], None)["default"].tolist() == [3]
