"""How alike tasks are: against dense float64, in any gauge; groups, figures, and the command."""

import itertools
import json

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from scipy.linalg import subspace_angles

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.algebra import canonical_gauge, compose
from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.errors import BankFileError, ColoraError, ConfigError
from colora.training.task_gradients import TaskGradients
from colora.transfer.clusters import cluster_tree
from colora.transfer.figure import draw_similarity
from colora.transfer.similarity import Similarity, bank_similarity, gradient_similarity, principal_angles
from tests.helpers.run_files import cli, refusal, run_file, save_base
from tests.helpers.tiny import tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["legal", "billing", "sales", "a:de:b"]


@pytest.fixture(scope="module")
def made():
    """A trained-looking bank in float64, and its layers."""
    model = tiny_llama(dtype=torch.float64)
    torch.manual_seed(1)
    model = get_peft_model(model, CoLoRAConfig(r=3, lora_alpha=5, tasks=TASKS, init_weights=False))
    return model, bank_layers(model, "default")


@pytest.fixture
def bank(made, tmp_path):
    save_bank(made[0], tmp_path / "b", BankInfo(base="nowhere"))
    return tmp_path / "b"


def cosines(matrices):
    flat = torch.stack([one.flatten() for one in matrices])
    flat = flat / flat.norm(dim=1, keepdim=True)
    return flat @ flat.T


def changed(bank, change):
    """The bank with its tensors changed and its digest taken off."""
    file, config = bank / "adapter_model.safetensors", bank / "adapter_config.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    text = json.loads(config.read_text())
    config.write_text(json.dumps(text | {"weights_sha256": None}))
    return bank


# ---- updates --------------------------------------------------------------------------------------------------------


def test_similarity_of_a_bank_is_the_cosines_of_full_updates(made, bank):
    found = bank_similarity(bank)
    assert (found.names, found.kind) == (TASKS, "cores")
    deltas = {
        name: [layer.get_delta_weight("default", k).detach() for k in range(4)] for name, layer in made[1].items()
    }
    assert found.layers.keys() == found.angles.keys() == deltas.keys()
    for name, own in deltas.items():
        torch.testing.assert_close(found.of_layer(name), cosines(own), atol=1e-12, rtol=0)
        inner = torch.tensor([[float((one * other).sum()) for other in own] for one in own], dtype=torch.float64)
        torch.testing.assert_close(found.layers[name], inner, atol=0, rtol=1e-9)
    whole = [torch.cat([deltas[name][k].flatten() for name in deltas]) for k in range(4)]
    torch.testing.assert_close(found.overall(), cosines(whole), atol=1e-12, rtol=0)


def test_similarity_with_transposed_weights(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(tiny_gpt2(dtype=torch.float64), CoLoRAConfig(r=2, tasks=TASKS, init_weights=False))
    save_bank(model, tmp_path / "b", BankInfo(base="nowhere"))
    found = bank_similarity(tmp_path / "b")
    for name, layer in bank_layers(model, "default").items():
        own = [layer.get_delta_weight("default", k).detach() for k in range(4)]
        torch.testing.assert_close(found.of_layer(name), cosines(own), atol=1e-12, rtol=0)


def test_the_gauge_changes_nothing(bank):
    before = bank_similarity(bank)
    generator = torch.Generator().manual_seed(3)

    def turn(tensors):
        for key in [key for key in tensors if key.endswith("core")]:
            name = key.removesuffix(".colora_core")
            P, Q = (torch.randn(3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
            tensors[f"{name}.colora_B"] = tensors[f"{name}.colora_B"] @ P
            tensors[f"{name}.colora_A"] = (Q @ tensors[f"{name}.colora_A"]).contiguous()
            tensors[key] = P.inverse() @ tensors[key] @ Q.inverse()

    after = bank_similarity(changed(bank, turn))
    torch.testing.assert_close(after.overall(), before.overall(), atol=1e-9, rtol=0)
    for name in before.angles:
        torch.testing.assert_close(after.angles[name], before.angles[name], atol=1e-4, rtol=0)


def test_nearest_sorts_the_other_tasks_by_cosine(bank):
    found = bank_similarity(bank, angles=False)
    assert not found.angles
    near = found.nearest("billing")
    assert {name for name, _ in near} == {"legal", "sales", "a:de:b"}
    assert [value for _, value in near] == sorted((value for _, value in near), reverse=True)


def test_as_json_holds_all_numbers(bank):
    value = json.loads(json.dumps(bank_similarity(bank).as_json(), allow_nan=False))
    assert value.keys() == {"kind", "tasks", "cosine", "layers", "principal angles, degrees"}
    assert np.allclose(np.array(value["cosine"]).diagonal(), 1)
    assert np.allclose(value["cosine"], bank_similarity(bank).overall(), atol=1e-4)


def test_a_task_without_an_update_has_cosine_zero(made, bank):
    def silence(tensors):
        for key in tensors:
            if key.endswith("core"):
                tensors[key][1] = 0

    found = bank_similarity(changed(bank, silence))
    assert not found.overall()[1].any()
    for name, angles in found.angles.items():
        assert angles[1].tolist() == pytest.approx([90, 0, 90, 90])
        parts = (getattr(made[1][name], f"colora_{part}")["default"].detach() for part in ("A", "B", "core"))
        others = [0, 2, 3]
        alone = principal_angles(canonical_gauge(*parts)[2][others])
        torch.testing.assert_close(angles[others][:, others], alone, atol=1e-5, rtol=0)
    json.dumps(found.as_json(), allow_nan=False)
    cluster_tree(found)


@pytest.mark.parametrize("rank", [1, 2])
def test_principal_angles_are_those_of_the_leading_directions(rank):
    """Of cores of exact rank the leading directions are all there are, and angles those of the full updates."""
    torch.manual_seed(2)
    cores = torch.randn(4, 5, rank, dtype=torch.float64) @ torch.linalg.qr(
        torch.randn(4, 5, rank, dtype=torch.float64)).Q.mT  # fmt: skip
    cores = torch.linalg.qr(cores[..., :rank]).Q @ torch.linalg.qr(torch.randn(4, 5, rank, dtype=torch.float64)).Q.mT
    A, B = torch.randn(5, 30, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64)
    A, B, own = canonical_gauge(torch.linalg.qr(A.T).Q.T, torch.linalg.qr(B).Q, cores)
    found = principal_angles(own)
    for i in range(4):
        for j in range(4):
            one, other = (torch.linalg.svd(compose(A, B, own[k])).U[:, :rank].numpy() for k in (i, j))
            assert float(found[i, j]) == pytest.approx(np.degrees(subspace_angles(one, other).max()), abs=1e-4)


def test_fewest_directions_that_hold_nine_tenths():
    cores = torch.diag_embed(torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]], dtype=torch.float64))
    assert principal_angles(cores, energy=0.89)[0, 1] == pytest.approx(90)
    assert principal_angles(cores, energy=0.91)[0, 1] == pytest.approx(0, abs=1e-5)


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_similarity_of_gradients_is_that_of_the_dense_ones():
    torch.manual_seed(0)
    factors = {name: (torch.randn(3, out, 4), torch.randn(3, 4, 7)) for name, out in (("x", 5), ("y", 9))}
    found = gradient_similarity(TaskGradients(["a", "b", "c"], factors, torch.zeros(3)))
    assert (found.kind, found.angles) == ("gradients", {})
    dense = {name: B.double() @ A.double() for name, (B, A) in factors.items()}
    for name, whole in dense.items():
        torch.testing.assert_close(found.of_layer(name), cosines(whole), atol=1e-12, rtol=0)
    whole = [torch.cat([dense["x"][k].flatten(), dense["y"][k].flatten()]) for k in range(3)]
    torch.testing.assert_close(found.overall(), cosines(whole), atol=1e-12, rtol=0)
    assert "principal angles, degrees" not in found.as_json()


# ---- groups ---------------------------------------------------------------------------------------------------------

FAMILIES = [["a1", "a2", "a3"], ["b1", "b2"], ["c1", "c2", "c3"]]


def planted(spread=0.3):
    """Cosines about 1 / (1 + spread²) within families, and about nothing between them, in mixed order."""
    generator = torch.Generator().manual_seed(0)
    names = [name for row in zip(*([*family, "-"] for family in FAMILIES), strict=False) for name in row if name != "-"]
    names += [name for family in FAMILIES for name in family if name not in names]
    centres = {letter: torch.randn(400, generator=generator).double() for letter in "abc"}
    rows = torch.stack([centres[name[0]] + spread * torch.randn(400, generator=generator).double() for name in names])
    return Similarity(names, "gradients", {"layer": rows @ rows.T}, {})


@pytest.mark.parametrize("how", [{}, {"count": 3}, {"cosine": 0.7}])
def test_planted_families_are_found(how):
    tree = cluster_tree(planted())
    assert sorted(sorted(group) for group in tree.groups(**how)) == FAMILIES
    assert sorted(tree.leaves) == sorted(tree.names)
    letters = "".join(name[0] for name in tree.leaves)
    assert "".join(dict.fromkeys(letters)) in {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert sum(one != other for one, other in itertools.pairwise(letters)) == 2  # families stay together


def test_all_alike_are_one_group_and_each_may_be_its_own():
    tree = cluster_tree(Similarity(["a", "b", "c"], "cores", {"x": torch.full((3, 3), 0.95) + 0.05 * torch.eye(3)}, {}))
    assert tree.groups() == [["a", "b", "c"]]
    assert tree.groups(count=3) == tree.groups(count=9) == tree.groups(cosine=0.99) == [["a"], ["b"], ["c"]]
    assert tree.groups(count=1) == [["a", "b", "c"]]


def test_the_widest_gap_cuts():
    near, far = 0.9, 0.2
    products = torch.tensor([[1, near, far], [near, 1, far], [far, far, 1]])
    assert cluster_tree(Similarity(["a", "b", "c"], "cores", {"x": products}, {})).groups() == [["a", "b"], ["c"]]


def test_two_tasks_are_one_group_or_two():
    tree = cluster_tree(Similarity(["a", "b"], "cores", {"x": torch.tensor([[1.0, -1.0], [-1.0, 1.0]])}, {}))
    assert tree.groups() == [["a", "b"]]
    assert tree.groups(cosine=0) == tree.groups(count=2) == [["a"], ["b"]]


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_one_task_is_refused(tmp_path):
    model = get_peft_model(tiny_llama(), CoLoRAConfig(r=2, tasks=["only"]))
    save_bank(model, tmp_path / "b", BankInfo(base="nowhere"))
    with pytest.raises(ConfigError, match="two tasks at least, found one: 'only'"):
        bank_similarity(tmp_path / "b")
    with pytest.raises(ConfigError, match="two tasks at least, found one: 'only'"):
        gradient_similarity(TaskGradients(["only"], {}, torch.zeros(1)))


KEY = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda bank: (bank / "adapter_model.safetensors").write_bytes(b"x" * 50), "truncated or no safetensors"),
        (lambda bank: (bank / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda bank: changed(bank, lambda t: t.pop(f"{KEY}.colora_A")), "rank 3, found none"),
        (lambda bank: changed(bank, lambda t: t.update({f"{KEY}.colora_B": torch.zeros(64, 2)})), "expected A and B"),
        (lambda bank: changed(bank, lambda t: t[f"{KEY}.colora_core"].fill_(float("nan"))), "up_proj holds NaN"),
    ],
)  # fmt: skip
def test_a_damaged_bank_is_refused(bank, damage, message):
    damage(bank)
    with pytest.raises(BankFileError, match=message):
        bank_similarity(bank)


# ---- the figure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_figure_is_the_same_for_the_same_numbers(tmp_path, kind, begins, monkeypatch):
    found = planted()
    draw_similarity(found, cluster_tree(found), tmp_path / "new" / f"one.{kind}")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # as if at another time
    draw_similarity(found, cluster_tree(found), tmp_path / f"two.{kind}")
    content = (tmp_path / "new" / f"one.{kind}").read_bytes()
    assert content.startswith(begins)
    assert content == (tmp_path / f"two.{kind}").read_bytes()


def test_a_figure_of_many_tasks(tmp_path):
    rows = torch.randn(30, 100, generator=torch.Generator().manual_seed(0))
    found = Similarity([f"task {k}" for k in range(30)], "cores", {"x": rows @ rows.T}, {})
    draw_similarity(found, cluster_tree(found), tmp_path / "many.svg")


def test_a_figure_of_an_unknown_kind_is_refused(tmp_path):
    found = planted()
    with pytest.raises(ColoraError, match=r"expected a name that ends in \.svg, \.png, \.pdf"):
        draw_similarity(found, cluster_tree(found), tmp_path / "x.jpg")
    assert not any(tmp_path.iterdir())


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_for_a_bank(bank, tmp_path):
    result = cli("similarity", bank, "--json", tmp_path / "s.json", "--groups", 2, "--figure", tmp_path / "s.svg")
    assert result.exit_code == 0, result.stderr
    assert "cosines of the tasks' updates" in result.stdout
    for name in TASKS:  # :de: is no flag
        assert name in result.stdout
    value = json.loads((tmp_path / "s.json").read_text())
    assert value["tasks"] == TASKS
    assert len(value["groups"]) == 2
    for number, names in enumerate(value["groups"], start=1):
        assert f"group {number}: {', '.join(names)}" in result.stdout
    assert (tmp_path / "s.svg").read_bytes().startswith(b"<?xml")
    assert f"written: {tmp_path / 's.json'}" in result.stderr


def test_names_with_brackets_are_shown(bank):
    names = ["x [red]", "[bold]", "y[/]", "z"]
    from colora.cli.similarity import _print_cosines

    found = bank_similarity(bank)
    with pytest.MonkeyPatch.context() as patch:
        shown = []
        patch.setattr("colora.cli.similarity.out.print", lambda table: shown.append(table))
        _print_cosines(Similarity(names, found.kind, found.layers, {}), names)
    assert [cell.plain for cell in shown[0].columns[0].cells] == [f"{k} {name}" for k, name in enumerate(names, 1)]


def test_many_tasks_are_shown_with_their_nearest(tmp_path):
    torch.manual_seed(0)
    names = [f"task {k}" for k in range(13)]
    model = get_peft_model(tiny_llama(), CoLoRAConfig(r=2, tasks=names, init_weights=False))
    save_bank(model, tmp_path / "b", BankInfo(base="nowhere"))
    result = cli("similarity", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    assert "nearest" in result.stdout
    assert all(name in result.stdout for name in names)


def test_the_command_for_a_run_file(tmp_path):
    base = save_base(tmp_path / "base")
    file = run_file(tmp_path, base, ("red", "blue", "green"))
    result = cli("similarity", file, "training.max_length=64", "--json", tmp_path / "s.json", "--rows", 2)
    assert result.exit_code == 0, result.stderr
    assert "cosines of the tasks' gradients" in result.stdout
    assert "group 1: " in result.stdout
    value = json.loads((tmp_path / "s.json").read_text())
    assert (value["kind"], value["tasks"]) == ("gradients", ["red", "blue", "green"])
    assert not (tmp_path / "out").exists()
    again = cli("similarity", file, "training.max_length=64", "--rows", 2)
    assert again.stdout == result.stdout
    one = refusal("similarity", run_file(tmp_path, base, ("red",)))
    assert "two tasks at least, found one: red" in one


def test_the_command_refuses_wrong_arguments(bank, tmp_path):
    # a wrong ending is told before the work is done, of which there is nothing here
    assert "expected a name that ends in" in refusal("similarity", tmp_path / "none.yaml", "--figure", "x.jpg")
    assert "so it has no fields to change; remove training.lr=1" in refusal("similarity", bank, "training.lr=1")
    assert "no such folder" in refusal("similarity", tmp_path / "none")


def test_centred_similarity_is_that_beyond_the_mean():
    rows = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 4.0
    half = Similarity(
        list("abcde"), "cores", {"one": rows[:, :10] @ rows[:, :10].mT, "two": rows[:, 10:] @ rows[:, 10:].mT}, {}
    )
    rest = rows - rows.mean(0)
    expected = torch.nn.functional.normalize(rest) @ torch.nn.functional.normalize(rest).mT
    torch.testing.assert_close(half.centred().overall(), expected, atol=1e-10, rtol=0)
    assert float(half.overall().min()) > 0.7 > float(half.centred().overall().min())
    with pytest.raises(ConfigError, match="at least three tasks"):
        Similarity(["a", "b"], "cores", {"one": torch.eye(2, dtype=torch.float64)}, {}).centred()
