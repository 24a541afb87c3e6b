"""What revision ffcb695 wrote is still read, with the same values, and what it began is gone on with.

The files are in tests/data/revision_ffcb695; its README tells what they are. In them @DATA@ stands for that folder.
"""

import json
import random
import re
import shutil
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from colora.bank.core_file import read_core
from colora.bank.layout import find_bank, read_bank_info
from colora.bank.load import load_bank
from colora.bank.overview import bank_overview
from colora.bank.tensors import SavedBank, write_bank
from colora.errors import BankFileError
from colora.evaluation.records import read_records
from colora.experiments.load import load_experiment
from colora.experiments.plan import planned_trials
from colora.experiments.report.gather import read_experiments
from colora.experiments.store import Store
from colora.experiments.trial import read_trial_records
from colora.federated.server import serve
from colora.federated.storage import load_client, load_server
from colora.models.base import load_base
from colora.serving.access import Access, WrongKeyError, read_tenants
from colora.theory.experiments.config import load_recovery
from colora.theory.experiments.measure import measure
from colora.theory.experiments.records import read_recovery_records
from colora.theory.experiments.run import run_recovery
from colora.training.config import FederationSpec
from colora.training.config_file import load_federation
from colora.training.loop.checkpoint import load_random_state, load_state
from tests.helpers.local_grid import LocalGrid
from tests.helpers.run_files import bank_tensors, cli, content, refusal
from tests.helpers.servers import ask, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

FOLDER = Path(__file__).parent / "data" / "revision_ffcb695"
PLACE = b"@DATA@"
VALUES = json.loads((FOLDER / "expected" / "values.json").read_text(encoding="utf-8"))
BANKS = [name for name in VALUES["logits"] if name != "base"]
NETWORK = (
    "federation.compression=int8", "federation.server=adam", "federation.server_lr=0.01",
    "federation.factor_moments=fresh", "training.core_lr=0.06",
)  # fmt: skip
# Of logits and losses; of tensors after further steps of Adam, which differ on other processors; of updates in 8 bits,
# where such a difference may fall on either side of a rounding.
CLOSE, TRAINED, ROUNDED = 1e-5, 1e-4, 2e-3


@pytest.fixture
def data(tmp_path):
    """A copy of the folder in which the placeholder is the copy's own place."""
    folder = tmp_path.resolve() / "data"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("make.py", "README.md", "__pycache__"))
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            path.write_bytes(path.read_bytes().replace(PLACE, str(folder).encode()))
    return folder


def logits(model, **task):
    with torch.no_grad():
        return model(input_ids=torch.tensor([VALUES["prompt"]]), **task).logits[0, -1]


def check_logits(found, expected, tolerance=CLOSE):
    assert found[: len(expected)].tolist() == pytest.approx(expected, abs=tolerance)


def check_tensors(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert (found[name].shape, found[name].dtype) == (one.shape, one.dtype), name
        torch.testing.assert_close(found[name], one, rtol=0, atol=tolerance)


def check_norms(found, expected):
    assert {name: float(one.double().norm()) for name, one in found.items()} == pytest.approx(expected, rel=1e-6)


def check_records(found, expected):
    """The same in every field, the numbers up to rounding; `expected` are records."""
    for one, other in zip_longest(found, expected):
        assert vars(one) == vars(other) | {"value": pytest.approx(other.value, abs=CLOSE)}


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ---- the folder ---------------------------------------------------------------------------------------------------


def test_the_files_are_small_and_name_no_folder_of_a_machine():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 400_000
    place = re.compile(rb"(?<![\w.@-])/(home|root|Users|tmp|work|private|mnt)/\w")
    assert not [path.name for path in files if place.search(path.read_bytes())]
    environment = json.loads((FOLDER / "finished" / "environment.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"ffcb695[0-9a-f]{33}", environment["git_revision"])  # no edited sources


# ---- models and banks ---------------------------------------------------------------------------------------------


def test_the_base_model(data):
    model, tokenizer = load_base(str(data / "base"))
    check_logits(logits(model), VALUES["logits"]["base"][""])
    assert tokenizer.decode(tokenizer("rot 3").input_ids) == "rot 3"


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_gives_its_logits(data, name):
    model, _, info = load_bank(data / name)
    expected = VALUES["logits"][name]
    assert model.base_model.tasks == list(expected)
    for task, values in expected.items():
        check_logits(logits(model, task_ids=[task]), values)
    assert (info.base, info.max_length, info.chat_template) == (str(data / "base"), 96, True)
    assert list(info.examples) == list(info.seen) == [task for task in expected if task != "half"]


def test_the_overview_of_a_bank_with_a_newcomer_and_a_mixture(data):
    overview = bank_overview(data / "extended")
    assert (overview.tasks, overview.r, overview.per_task.parameters) == (["red", "blue", "rot", "half"], 3, 14 * 9)
    assert overview.info.examples == {"red": 7, "blue": 7, "rot": 10}
    shown = cli("tasks", data / "extended")
    assert shown.exit_code == 0, shown.stderr
    assert "rot" in shown.stdout


def test_modules_trained_in_full_are_in_the_bank(data):
    saved = {name: one for name, one in bank_tensors(data / "modules").items() if "norm" in name}
    assert len(saved) == 5
    assert all(not torch.equal(one, torch.ones_like(one)) for one in saved.values())
    state = load_bank(data / "modules")[0].state_dict()
    for name, one in saved.items():
        place = name.removesuffix(".weight") + ".modules_to_save.default.weight"
        assert torch.equal(state[place], one), name


@pytest.mark.parametrize("name", ["finished", "modules", "extended"])
def test_a_bank_is_written_again_as_it_was(data, name):
    before, after = find_bank(data / name), data / "again"
    write_bank(SavedBank(before).load(), after)
    written = {path: one for path, (one, _) in content(after).items()}
    assert written.pop("README.md")  # the card, which there was none of
    assert {path: one for path, (one, _) in content(before).items()} == written


def test_a_mixture_is_known_as_one_and_tasks_are_forgotten(data):
    before = SavedBank(data / "extended").load().cores
    for cores in before.values():
        torch.testing.assert_close(cores[3], 0.75 * cores[0] + 0.5 * cores[1])
    assert "half: merged from blue" in refusal("forget", data / "extended", "blue")
    done = cli("forget", data / "extended", "blue", "half")
    assert done.exit_code == 0, done.stderr
    after = SavedBank(data / "extended").load()
    assert after.tasks == ["red", "rot"]
    for name, cores in before.items():
        assert torch.equal(after.cores[name], cores[[0, 2]])


def test_an_exported_lora(data):
    expected = VALUES["logits"]["finished"]["blue"]
    base, _ = load_base(str(data / "base"))
    check_logits(logits(PeftModel.from_pretrained(base, str(data / "lora"))), expected)
    done = cli("import", data / "lora", "--output", data / "imported", "--name", "blue")
    assert done.exit_code == 0, done.stderr
    check_logits(logits(load_bank(data / "imported")[0], task_ids=["blue"]), expected, 10 * CLOSE)


def test_a_core(data):
    stored = (FOLDER / "cores" / "red.safetensors").read_bytes()
    written = data / "red.safetensors"
    assert cli("core", FOLDER / "finished", "red", written).exit_code == 0  # of the bank that names the placeholder
    assert written.read_bytes() == stored
    bank = SavedBank(data / "finished")
    core, header = read_core(stored, dict.fromkeys(bank.core(0), (2, 2)), bank.shared_sha256)
    assert (header.task, header.base, header.format) == ("red", "@DATA@/base", 1)
    stacks = load_file(data / "finished" / "bank" / "adapter_model.safetensors")
    assert len(core) == 14
    for name, one in core.items():
        assert torch.equal(one, stacks[f"base_model.model.{name}.colora_core"][0])


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_known_and_measured_again(data):
    before = content(data / "finished")
    told = cli("train", data / "finished.yaml")
    assert told.exit_code == 0, told.stderr
    assert "has ended before; nothing to train" in told.stderr
    assert content(data / "finished") == before
    old = read_records(data / "finished" / "records.jsonl")
    assert [vars(one) for one in old] == lines(FOLDER / "finished" / "records.jsonl")
    again = cli("evaluate", data / "finished")
    assert again.exit_code == 0, again.stderr
    check_records(read_records(data / "finished" / "records.jsonl"), [*old, *old])


def test_the_digests_of_a_run_are_those_of_its_examples(data):
    file = data / "tasks" / "blue.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("blue 7", "blue 77"), encoding="utf-8")
    told = refusal("train", data / "finished.yaml")
    assert "the task files are no longer those of the run" in told
    assert "task 'red'" not in told


@pytest.mark.parametrize("task", ["red", "blue"])
def test_a_finished_run_writes_the_same_text(data, task):
    done = cli("generate", data / "finished", "red 3", "--task", task, "--max-new-tokens", 6)
    assert done.stdout == VALUES["text"][task]


def test_an_unfinished_run_goes_on_to_the_same_bank(data):
    run = data / "unfinished"
    done = cli("train", data / "finished.yaml", f"output={run}")
    assert done.exit_code == 0, done.stderr
    assert f"going on from {run / 'checkpoints' / 'checkpoint-24'}" in done.stderr.replace("\n", "")
    check_tensors(bank_tensors(run), bank_tensors(data / "finished"), TRAINED)
    assert read_bank_info(run / "bank") == read_bank_info(data / "finished" / "bank")
    found, expected = (read_records(one / "records.jsonl") for one in (run, data / "finished"))
    assert [(one.task, one.metric, one.n) for one in found] == [(one.task, one.metric, one.n) for one in expected]
    assert [one.value for one in found] == pytest.approx([one.value for one in expected], abs=1e-3)


def test_the_state_of_an_unfinished_run(data):
    checkpoint = data / "unfinished" / "checkpoints" / "checkpoint-24"
    load_random_state(checkpoint, 0)
    drawn = {"python": random.random(), "numpy": np.random.random(), "torch": float(torch.rand(()))}
    assert drawn == VALUES["drawn"]
    optimizer, scheduler = load_state(checkpoint, "optimizer"), load_state(checkpoint, "scheduler")
    assert scheduler["last_epoch"] == 24
    stored = load_file(checkpoint / "optimizer.safetensors")
    moments = [one for state in optimizer["state"].values() for one in state.values() if torch.is_tensor(one)]
    assert sum(float(one.double().norm()) > 0 for one in moments) > 80
    assert sorted(one.numpy().tobytes() for one in moments) == sorted(one.numpy().tobytes() for one in stored.values())


def test_a_run_in_groups_is_known_and_trained_again(data):
    run = data / "groups"
    found = json.loads((run / "grouping.json").read_text(encoding="utf-8"))
    assert found["groups"] == {"red": ["red", "rot"], "blue": ["blue"]}
    with pytest.raises(BankFileError, match="a run in groups"):
        find_bank(run)
    before = content(run)
    told = cli("train", data / "groups.yaml")
    assert told.exit_code == 0, told.stderr
    assert told.stderr.count("has ended before") == 2
    assert content(run) == before
    old = bank_tensors(run / "groups" / "red")
    shutil.rmtree(run / "groups" / "red")
    assert cli("train", data / "groups.yaml").exit_code == 0
    check_tensors(bank_tensors(run / "groups" / "red"), old, TRAINED)  # from the first step to the last


def test_groups_are_decided_as_they_were(data):
    before = json.loads((data / "groups" / "grouping.json").read_text(encoding="utf-8"))
    assert cli("train", data / "groups.yaml", f"output={data / 'new'}").exit_code == 0
    after = json.loads((data / "new" / "grouping.json").read_text(encoding="utf-8"))
    for one, other in zip(after.pop("cosine"), before.pop("cosine"), strict=True):
        assert one == pytest.approx(other, abs=2e-4)
    assert after == before


# ---- federations --------------------------------------------------------------------------------------------------


def test_a_simulated_federation_goes_on_to_the_same_bank(data):
    rounds = data / "simulated" / "rounds.jsonl"
    before = lines(rounds)
    done = cli("federate", "simulate", data / "simulated.yaml")
    assert done.exit_code == 0, done.stderr
    assert "going on after round 2 of 3" in done.stderr
    check_tensors(bank_tensors(data / "simulated"), load_file(FOLDER / "expected" / "simulated.safetensors"), TRAINED)
    found = lines(rounds)
    assert found[: len(before)] == before
    for one, other in zip_longest(found, VALUES["rounds"]):
        value = one["value"] if one["metric"] == "seconds" else pytest.approx(other["value"], abs=TRAINED)
        assert one == other | {"run": "simulated", "value": value}
    assert "has ended before" in cli("federate", "simulate", data / "simulated.yaml").stderr


def test_the_states_of_server_and_clients(data):
    expected = VALUES["network"]
    state = load_server(data / "network" / "server")
    assert (state.round, state.federation) == (2, expected["federation"])
    check_norms(state.shared, expected["shared"])
    check_norms(state.moments, expected["moments"])
    for name in ("red", "blue"):
        folder = data / "network" / "state" / name / state.federation
        own, client = expected[name], load_client(folder, 2)
        assert (client.round, client.position, client.steps) == (own["round"], own["position"], own["steps"])
        for part in ("cores", "shared", "moments", "residual"):
            check_norms(getattr(client, part), own[part])
        assert load_client(folder, 1).round == 1  # what a server that crashed would ask for again


def test_server_and_clients_go_on_to_the_same_banks(data):
    network = data / "network"
    config = load_federation(data / "simulated.yaml", NETWORK)
    grid = LocalGrid(config, network)
    grid.nodes = {10: "red", 11: "blue"}
    said = []
    serve(grid, config, network / "server", said.append)
    assert said[0] == "going on after round 2 of 3"
    assert said[-1] == "2 of 2 clients have the final factors"
    assert sum(message.metadata.message_type == "train" for message in grid.sent) == 2
    state = load_server(network / "server")
    check_tensors(state.shared, load_file(FOLDER / "expected" / "network_shared.safetensors"), ROUNDED)
    for name in ("red", "blue"):
        tensors = bank_tensors(network / "state" / name / state.federation)
        cores = {key: one for key, one in tensors.items() if "colora_core" in key}
        check_tensors(cores, load_file(FOLDER / "expected" / f"network_{name}.safetensors"), ROUNDED)
    records = read_records(network / "server" / "rounds.jsonl")
    assert [one.value for one in records if one.metric == "accepted"] == [2, 2, 2]


def test_what_privacy_has_been_spent(data):
    pytest.importorskip("dp_accounting")
    from colora.federated.privacy import PrivateMean

    private = PrivateMean(FederationSpec(clip=1.0, weights="uniform"), data / "privacy.json")
    assert private.epsilon == pytest.approx(VALUES["epsilon"], rel=1e-6)
    private([{"A/x": torch.ones(2, 2)}] * 2)
    assert private.epsilon > VALUES["epsilon"] + 0.5


# ---- servers ------------------------------------------------------------------------------------------------------


def test_keys_open_what_they_opened(data):
    tenants = read_tenants(data / "keys.json")
    access = Access(tenants)
    acme, root = (access.tenant(f"Bearer {VALUES['keys'][name]}") for name in ("acme", "root"))
    assert (acme.name, acme.tasks, acme.requests_per_minute, acme.admin) == ("acme", ("red", "guest-*"), 600, False)
    assert (root.name, root.tasks, root.requests_per_minute, root.admin) == ("root", ("*",), None, True)
    with pytest.raises(WrongKeyError):
        access.tenant(f"Bearer {VALUES['keys']['acme'][:-1]}")
    assert "has a key already" in refusal("keys", "add", data / "keys.json", "acme", "--tasks", "*")
    assert cli("keys", "remove", data / "keys.json", "root").exit_code == 0
    assert read_tenants(data / "keys.json") == tenants[:1]


def test_a_server_has_its_tasks_and_answers_as_before(data):
    with serving(data / "finished", read_tenants(data / "keys.json"), state=data / "serving") as server:

        def send(method, path, tenant="acme", **options):
            header = {"Authorization": f"Bearer {VALUES['keys'][tenant]}"}
            return server.http.request(method, path, headers=header, **options)

        for tenant in ("acme", "root"):  # "blue" was removed, and "guest-1" has come
            assert [one["id"] for one in send("GET", "/v1/models", tenant).json()["data"]] == ["red", "guest-1"]
        for task in ("red", "guest-1"):  # which has the core of "red"
            answer = send("POST", "/v1/chat/completions", json=ask(task, "red 3", max_tokens=6)).json()
            assert answer["choices"][0]["message"]["content"] == VALUES["text"]["red"].rstrip("\n")
        core = send("GET", "/v1/tasks/red/core").content
        assert send("PUT", "/v1/tasks/guest-2/core", content=core).status_code in (200, 201)
        assert send("GET", "/metrics").status_code == 404
        assert send("GET", "/metrics", "root").status_code == 200


# ---- studies ------------------------------------------------------------------------------------------------------


def test_the_cells_of_a_comparison(data, monkeypatch):
    monkeypatch.chdir(data)  # the experiment names its base by a relative path
    plan, store = load_experiment(Path("compared.yaml")), Store(Path("compared"))
    assert [store.state(cell) for cell in planned_trials(plan)] == ["finished", "finished", "failed"]
    assert {f"{cell.key}.json" for cell in planned_trials(plan)} == {path.name for path in store.folder.iterdir()}
    stored = lines(Path("compared/compared.jsonl"))
    assert [one.model_dump(mode="json") for one in read_trial_records(Path("compared/compared.jsonl"))] == stored
    assert [store.read(cell).model_dump(mode="json") for cell in planned_trials(plan)] == stored
    (experiment,) = read_experiments(Path("compared"))
    assert (len(experiment.records), len(experiment.failed)) == (2, 1)
    assert experiment.records[1].mean("token_nll") == pytest.approx(
        sum(sum(one["nll"]) / sum(one["tokens"]) for one in stored[1]["scores"].values()) / 2
    )
    before = Path("compared/compared.jsonl").read_bytes()
    assert cli("compare", "compared.yaml", "--output", "compared", "--collect", "--mixed").exit_code in (0, 1)
    assert Path("compared/compared.jsonl").read_bytes() == before


def test_a_comparison_goes_on(data, monkeypatch):
    pytest.importorskip("babel")
    monkeypatch.chdir(data)
    old = lines(Path("compared/compared.jsonl"))
    done = cli("compare", "compared.yaml", "--output", "compared", "--mixed", "--threads", 1)
    assert done.exit_code == 0, done.stderr
    assert "3/3 fedit" in done.stderr
    assert "2/3" not in done.stderr
    found = lines(Path("compared/compared.jsonl"))
    assert found[:2] == old[:2]
    assert (found[2]["cell"], found[2]["error"]) == (old[2]["cell"], None)
    # And what had ended gives the same numbers with these sources.
    (Path("compared") / "cells" / f"{planned_trials(load_experiment(Path('compared.yaml')))[1].key}.json").unlink()
    assert cli("compare", "compared.yaml", "--output", "compared", "--mixed", "--threads", 1).exit_code == 0
    again = lines(Path("compared/compared.jsonl"))[1]
    assert again["trainable"] == old[1]["trainable"]
    for task, scores in old[1]["scores"].items():
        assert again["scores"][task]["nll"] == pytest.approx(scores["nll"], abs=0.01)
        assert again["scores"][task]["tokens"] == scores["tokens"]


def test_the_trials_of_a_recovery(data):
    plan = load_recovery(data / "recovered.yaml")
    file = data / "recovered" / "recovered.jsonl"
    stored, records = lines(file), read_recovery_records(file)
    assert [one.trial for one in records] == plan.trials()
    assert [one.key for one in records] == VALUES["recovery"]  # of all settings, also those that lines leave out
    assert [one.model_dump(mode="json", exclude_defaults=True, by_alias=True) for one in records] == stored
    summary = run_recovery(plan, data / "recovered", mixed=True)
    assert (summary.ran, summary.failed, lines(file)) == (0, [], stored)
    for record in records:
        found = measure(record.trial)
        assert found.errors == pytest.approx(record.errors, rel=1e-5)
        assert found.bounds == pytest.approx(record.bounds, rel=1e-5)
        assert found.iterations == record.iterations
    assert sum(len(one.history) for one in records) == 4
