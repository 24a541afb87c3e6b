"""Saved banks whose tasks have cores of several sizes: `--extend` costs what the newcomer takes, and nobody else."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_tuner
from colora.bank.core_file import extract_core, read_core
from colora.bank.edit import forget_tasks, merge_tasks
from colora.bank.export import export_loras, export_merged
from colora.bank.layout import BankInfo
from colora.bank.load import load_bank, save_bank
from colora.bank.part import write_part
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, ConfigError
from colora.models.base import load_base
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.many import onboard_many
from colora.transfer.onboarding.onboard import onboard
from colora.transfer.onboarding.update import update
from colora.transfer.similarity import bank_similarity
from tests.helpers.run_files import cli, content, refusal, save_base, write_task
from tests.helpers.tiny import VOCAB, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["legal", "billing", "sales"]
RANK, EXTRA = 3, 2
IDS = torch.randint(6, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
QUICK = {"steps": 2, "rows": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def small(tmp_path_factory, base):
    """A bank of one size, in stacks."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), CoLoRAConfig(r=RANK, lora_alpha=5, tasks=TASKS, init_weights=False))
    folder = tmp_path_factory.mktemp("banks") / "small"
    save_bank(model, folder, BankInfo(base=base, max_length=96, examples=dict.fromkeys(TASKS, 3)))
    return folder


def newcomer(folder: Path, name: str) -> Path:
    return folder / write_task(folder, name, 5)


@pytest.fixture(scope="module")
def extended(small):
    """The same with a newcomer for whom A and B were extended."""
    output = small.parent / "extended"
    settings = Settings(**QUICK, extend=EXTRA)
    onboard(small, newcomer(small.parent, "new"), output=output, settings=settings)
    return output


def logits(folder, tasks, dtype=torch.float64):
    model, _, _ = load_bank(folder, dtype=dtype)
    with torch.no_grad():
        return {task: model(input_ids=IDS, task_ids=[task] * 3).logits for task in tasks}


def ranks(folder):
    saved = SavedBank(folder)
    return {name: saved.core_rank(number) for number, name in enumerate(saved.tasks)}


def cores(folder):
    saved = SavedBank(folder)
    return {name: saved.core(number) for number, name in enumerate(saved.tasks)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_after_extending_the_others_bytes_are_what_they_were_and_their_outputs_equal(small, extended):
    before, after = SavedBank(small), SavedBank(extended)
    assert ranks(extended) == dict.fromkeys(TASKS, RANK) | {"new": RANK + EXTRA}
    was, now = cores(small), cores(extended)
    for name in TASKS:
        assert same(was[name], now[name])
        assert {one.numel() * one.element_size() for one in now[name].values()} == {4 * RANK**2}
    for key in before:
        if "core" not in key:
            own = after[key][tuple(slice(size) for size in before[key].shape)]
            assert torch.equal(before[key], own)
    assert after.config.scaling == pytest.approx(before.config.scaling, rel=1e-12)
    for task, expected in logits(small, TASKS).items():
        torch.testing.assert_close(logits(extended, TASKS)[task], expected, atol=1e-9, rtol=0)


def test_files_of_rows_have_the_bytes_of_their_ranks(extended):
    saved = SavedBank(extended)
    found = {}
    for file in (extended / "cores").glob("*.safetensors"):
        if file.name != "tasks.safetensors":
            (rows,) = load_file(file).values()
            found[rows.shape[-1]] = rows.shape
    layers = len(saved.layers)
    assert found == {3: (3, layers, 3, 3), 5: (1, layers, 5, 5)}


def test_extending_again_leaves_the_files_of_the_others_as_they_are(extended, tmp_path):
    output = tmp_path / "twice"
    onboard(extended, newcomer(tmp_path, "second"), output=output, settings=Settings(**QUICK, extend=1))
    assert ranks(output) == dict.fromkeys(TASKS, 3) | {"new": 5, "second": 6}
    before, after = ({path.name: path.read_bytes() for path in (one / "cores").iterdir()} for one in (extended, output))
    shared = before.keys() - {"tasks.safetensors"}
    assert shared < after.keys()
    assert all(before[name] == after[name] for name in shared)
    tasks = [*TASKS, "new"]
    for task, expected in logits(extended, tasks).items():
        torch.testing.assert_close(logits(output, tasks)[task], expected, atol=1e-9, rtol=0)
    onboard(output, newcomer(tmp_path, "plain"), settings=Settings(**QUICK))
    assert ranks(output)["plain"] == 3  # that of the bank as it was trained
    assert SavedBank(output).config.r == 6


def test_a_later_newcomer_may_ask_for_the_directions_of_another(extended, tmp_path):
    for rank in (4, 5):
        found = onboard(
            extended,
            newcomer(tmp_path, f"rank-{rank}"),
            output=tmp_path / str(rank),
            settings=Settings(**QUICK, rank=rank),
        )
        assert ranks(tmp_path / str(rank))[f"rank-{rank}"] == rank
        assert found.start.nll.keys() >= {"identity", "mean", "core of new", "core of legal"}
    with pytest.raises(ConfigError, match="a core of rank 6: expected 1 to 5"):
        onboard(extended, newcomer(tmp_path, "large"), output=tmp_path / "6", settings=Settings(**QUICK, rank=6))
    assert not (tmp_path / "6").exists()
    with pytest.raises(ConfigError, match="rank: expected at least 1, found 0"):
        Settings(rank=0)


def test_several_newcomers_have_the_size_of_the_bank_as_it_was_trained(extended, small, tmp_path):
    files = [newcomer(tmp_path, name) for name in ("one", "two")]
    for rank in (None, 1, 5):  # of the bank as it was trained; smaller; of the one that extended it
        settings, (many, alone) = Settings(**QUICK, rank=rank), (tmp_path / f"{kind}-{rank}" for kind in "ab")
        found = onboard_many(extended, files, output=many, settings=settings, dtype="float32").done[1]
        assert ranks(many) == ranks(extended) | dict.fromkeys(["one", "two"], rank or 3)
        other = onboard(extended, files[1], output=alone, settings=settings)
        assert (found.task, found.start.name) == (other.task, other.start.name) == ("two", other.start.name)
        for figure in ("before", "at_start", "after"):
            assert getattr(found, figure) == pytest.approx(getattr(other, figure), abs=1e-4)
        assert found.coverage.relative == pytest.approx(other.coverage.relative, abs=1e-4)
        one, two = cores(many)["two"], cores(alone)["two"]
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
        assert all(same(cores(extended)[name], cores(many)[name]) for name in cores(extended))
    with pytest.raises(ConfigError, match="rank: expected 1 to 5, found 6"):
        onboard_many(extended, files, output=tmp_path / "d", settings=Settings(**QUICK, rank=6))
    with pytest.raises(ConfigError, match="has cores of one size, 3 × 3"):
        onboard_many(small, files, output=tmp_path / "d", settings=Settings(**QUICK, rank=2))
    with pytest.raises(ConfigError, match="A and B grow with each"):
        onboard_many(extended, files, output=tmp_path / "d", settings=Settings(**QUICK, extend=1))


def test_a_newcomer_with_a_smaller_core_than_the_bank(small, tmp_path):
    onboard(small, newcomer(tmp_path, "tiny"), output=tmp_path / "b", settings=Settings(**QUICK, rank=1))
    assert ranks(tmp_path / "b") == dict.fromkeys(TASKS, 3) | {"tiny": 1}
    assert SavedBank(tmp_path / "b").config.r == 3
    assert all(same(cores(small)[name], cores(tmp_path / "b")[name]) for name in TASKS)
    logits(tmp_path / "b", [*TASKS, "tiny"])


def test_the_core_of_a_newcomer_is_the_one_that_was_trained(small, tmp_path):
    examples = newcomer(tmp_path, "new")
    found = onboard(small, examples, output=tmp_path / "b", settings=Settings(steps=8, rows=4, extend=2))
    assert found.after < found.start.nll[found.start.name]
    core = cores(tmp_path / "b")["new"]
    assert any(bool(one[3:, 3:].any()) for one in core.values())


def test_forgetting_the_last_larger_task_takes_its_directions_away(small, extended, tmp_path):
    twice = tmp_path / "twice"
    onboard(extended, newcomer(tmp_path, "second"), output=twice, settings=Settings(**QUICK, extend=1))
    forget_tasks(twice, ["new"])
    assert SavedBank(twice).config.r == 6  # the second one's core has the first one's directions too
    forget_tasks(twice, ["second"])
    before, after = SavedBank(small), SavedBank(twice)
    assert (after.config.r, after.config.core_rank) == (3, None)
    assert all(torch.equal(before[key], after[key]) for key in before if "core" not in key)
    assert all(same(cores(small)[name], cores(twice)[name]) for name in TASKS)
    assert after.config.scaling == pytest.approx(before.config.scaling, rel=1e-12)
    after.check()
    for task, expected in logits(small, TASKS).items():
        torch.testing.assert_close(logits(twice, TASKS)[task], expected, atol=1e-9, rtol=0)


def test_a_sum_of_tasks_of_several_sizes_has_the_largest(extended, tmp_path):
    for parts, rank in (({"legal": 0.5, "new": 2.0}, 5), ({"legal": 1.0, "sales": -1.0}, 3)):
        output = merge_tasks(extended, "sum", parts, tmp_path / f"sum-{rank}")
        assert ranks(output)["sum"] == rank
        padded, found = SavedBank(extended).cores([0, 1, 2, 3]), cores(output)["sum"]
        for layer, stack in padded.items():
            weights = torch.tensor([parts.get(name, 0.0) for name in [*TASKS, "new"]], dtype=torch.float64)
            expected = torch.einsum("k,kij->ij", weights, stack.double())[:rank, :rank]
            assert torch.allclose(found[layer].double(), expected, atol=1e-6)


def test_a_task_is_exported_with_the_rank_of_its_core(small, extended, tmp_path):
    """Not with that of A and B: its LoRA is the one that it had before others' directions were added, to rounding."""
    export_loras(load_bank(extended, dtype=torch.float64)[0], tmp_path / "loras")
    for task, rank in ranks(extended).items():
        tensors = load_file(tmp_path / "loras" / task / "adapter_model.safetensors")
        assert {len(one) for key, one in tensors.items() if "lora_A" in key} == {rank}
        assert {one.shape[1] for key, one in tensors.items() if "lora_B" in key} == {rank}
        expected = logits(extended, [task])[task]
        plain, _ = load_base(SavedBank(extended).info.base, dtype=torch.float64)
        plain = PeftModel.from_pretrained(plain, tmp_path / "loras" / task, autocast_adapter_dtype=False)
        with torch.no_grad():
            torch.testing.assert_close(plain(input_ids=IDS).logits, expected, atol=1e-9, rtol=0)
    export_loras(load_bank(small, dtype=torch.float64)[0], tmp_path / "before", ["legal"])
    one, two = (load_file(tmp_path / name / "legal" / "adapter_model.safetensors") for name in ("before", "loras"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], rtol=1e-12, atol=0) for key in one)


@pytest.mark.parametrize("task", ["legal", "new"])
def test_a_task_is_merged_into_the_base(extended, tmp_path, task):
    expected = logits(extended, [task])[task]
    model, tokenizer, _ = load_bank(extended, dtype=torch.float64)
    export_merged(model, task, tmp_path / "merged", tokenizer)
    merged, _ = load_base(str(tmp_path / "merged"), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, atol=1e-9, rtol=0)


def test_similarity_is_that_of_the_padded_cores(small, extended):
    before, after = bank_similarity(small, angles=False), bank_similarity(extended)
    assert after.names == [*TASKS, "new"]
    torch.testing.assert_close(after.overall()[:3, :3], before.overall(), atol=1e-6, rtol=0)


def test_more_examples_for_a_task_keep_its_size(extended, tmp_path):
    for task in ("legal", "new"):
        update(extended, newcomer(tmp_path, task), output=tmp_path / task, settings=Settings(**QUICK), force=True)
        assert ranks(tmp_path / task) == ranks(extended)
        was, now = cores(extended), cores(tmp_path / task)
        assert {name for name in was if not same(was[name], now[name])} == {task}


def test_a_bank_of_several_sizes_is_loaded_and_saved_as_it_is(extended, tmp_path):
    model, _, info = load_bank(extended, trainable=True)
    assert {name: len(next(iter(model.core(name).values()))) for name in model.tasks} == ranks(extended)
    save_bank(model, tmp_path / "again", info)
    one, two = (dict(content(folder)) for folder in (extended, tmp_path / "again"))
    for name in one.keys() - {"adapter_config.json", "README.md"}:
        assert one[name][0] == two[name][0], name
    assert ranks(tmp_path / "again") == ranks(extended)
    model, _, _ = load_bank(extended, tasks=["sales", "new"])
    assert {name: len(next(iter(model.core(name).values()))) for name in model.tasks} == {"sales": 3, "new": 5}


def test_a_core_is_a_file_of_its_own_size(extended, tmp_path):
    saved = SavedBank(extended)
    shape = dict.fromkeys(saved.layers, (5, 5))
    for task in ("legal", "new"):
        header = extract_core(extended, task, tmp_path / task)
        core, _ = read_core((tmp_path / task).read_bytes(), shape, header.shared, least=3)
        assert same(core, cores(extended)[task])
    with pytest.raises(BankFileError, match=r"expected shape \(5, 5\), found \(3, 3\)"):
        read_core((tmp_path / "legal").read_bytes(), shape, header.shared)
    with pytest.raises(BankFileError, match=r"expected matrices of one size from 4 × 4 to 5 × 5"):
        read_core((tmp_path / "legal").read_bytes(), shape, header.shared, least=4)


def test_stock_peft_is_refused_by_name(extended):
    with pytest.raises(BankFileError, match=r"colora\.load_bank"):
        PeftModel.from_pretrained(tiny_llama(), extended)


def test_the_command_takes_a_rank(extended, tmp_path):
    examples = newcomer(tmp_path, "ranked")
    options = ("--output", tmp_path / "b", "--steps", 2, "--rows", 2, "--rank", 5)
    result = cli("onboard", extended, examples, *options)
    assert result.exit_code == 0, result.stderr
    assert ranks(tmp_path / "b")["ranked"] == 5
    assert "expected 1 to 5" in refusal("onboard", extended, examples, "--output", tmp_path / "c", "--rank", 7)
    assert bank_tuner(load_bank(tmp_path / "b")[0]).tasks[-1] == "ranked"


# ---- banks that were extended when all cores grew --------------------------------------------------------------------


@pytest.fixture
def padded(extended, tmp_path):
    """The extended bank as earlier versions wrote it: in stacks, every core as large as the largest."""
    saved, names = SavedBank(extended), [*TASKS, "new"]
    write_part(saved, names, saved.cores(range(4)), saved.info.of_tasks(names), tmp_path / "padded")
    config = tmp_path / "padded" / "adapter_config.json"
    fields = json.loads(config.read_text())
    del fields["core_rank"]
    config.write_text(json.dumps(fields))
    return tmp_path / "padded"


def test_a_bank_that_was_extended_before_loads_as_it_is(extended, padded):
    assert ranks(padded) == dict.fromkeys([*TASKS, "new"], 5)
    tasks = [*TASKS, "new"]
    for task, expected in logits(extended, tasks).items():
        torch.testing.assert_close(logits(padded, tasks)[task], expected, atol=1e-9, rtol=0)


def test_padded_cores_shrink_to_what_they_need(extended, padded, tmp_path):
    result = cli("shrink", padded, "--output", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    assert "cores: 3 of 3 × 3, 1 of 5 × 5" in result.stderr
    assert ranks(tmp_path / "b") == ranks(extended)
    assert all(same(one, cores(extended)[name]) for name, one in cores(tmp_path / "b").items())
    after = SavedBank(tmp_path / "b")
    assert (after.config.r, after.config.core_rank) == (5, 3)
    assert after.info.examples == SavedBank(padded).info.examples
    after.check()
    onboard(tmp_path / "b", newcomer(tmp_path, "plain"), settings=Settings(**QUICK))
    assert ranks(tmp_path / "b")["plain"] == 3
    before = content(tmp_path / "b")
    assert "every core already has the size that it needs" in refusal("shrink", tmp_path / "b")
    assert content(tmp_path / "b") == before


def test_shrinking_takes_directions_away_that_no_core_has(small, padded, tmp_path):
    forget_tasks(padded, ["new"])
    assert SavedBank(padded).config.r == 5  # as before: nothing is known of whose they were
    assert cli("shrink", padded).exit_code == 0
    after, before = SavedBank(padded), SavedBank(small)
    assert (after.config.r, after.config.core_rank) == (3, None)
    assert all(torch.equal(before[key], after[key]) for key in before if "core" not in key)
    assert all(same(cores(small)[name], cores(padded)[name]) for name in TASKS)
