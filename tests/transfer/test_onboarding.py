"""A new task in a trained bank: the others stay to the bit, its core trains, and a rank can be added for it."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import colora.bank.tensors
import colora.transfer.onboarding.fit
import colora.transfer.onboarding.onboard
from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.keys import split_key
from colora.bank.layout import BankInfo, read_bank_info
from colora.bank.load import load_bank, save_bank
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, CheckpointError, ConfigError, TaskFileError, TrainingDivergedError
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Example, Task, TaskSource
from colora.training.task_gradients import TaskGradients, task_gradients
from colora.transfer.onboarding.coverage import coverage
from colora.transfer.onboarding.extend import extend_rank
from colora.transfer.onboarding.fit import Settings
from colora.transfer.onboarding.onboard import add_new_task, onboard
from colora.transfer.onboarding.start import choose_start, core_gradient, evenly, gradient_at_zero, mean_nll
from tests.helpers.run_files import cli, content, refusal, run_file, save_base, write_task
from tests.helpers.tiny import VOCAB, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TASKS = ["legal", "billing", "sales"]
TOKENIZER = tiny_tokenizer()
IDS = torch.randint(6, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
QUICK = Settings(steps=6, rows=4)


def new_task(count=6, val=0, name="new"):
    rows = tuple(Example(f"{name} {i}", ("neu" * (1 + i % 2),)) for i in range(count + val))
    return Task(name, {"train": rows[:count], "val": rows[count:], "test": ()}, "", None)


def bank(make=tiny_llama, dtype=torch.float32, **options):
    model = make(dtype=dtype)
    torch.manual_seed(1)
    usual = {"r": 3, "lora_alpha": 5, "tasks": TASKS, "init_weights": False}
    return get_peft_model(model, CoLoRAConfig(**usual | options))


def batches_of(model, task=None, rows=4):
    data = encode_tasks([task or new_task()], TOKENIZER, "train", 96, model.config.is_encoder_decoder)
    items = [data[row] for row in range(len(data))]
    return data, [TaskCollator(0)(items[at : at + rows]) for at in range(0, len(items), rows)]


def tensors(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_others_unchanged(before, after, count):
    """Everything equal to the bit, of cores the first `count`."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        now = after[name]
        if "colora_core" in name:
            assert now.shape == (count + 1, *value.shape[1:])
            now = now[:count]
        assert value.dtype == now.dtype
        assert torch.equal(value, now), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def saved(base, tmp_path):
    model = bank()
    save_bank(model, tmp_path / "b", BankInfo(base=base, max_length=96, examples=dict.fromkeys(TASKS, 3)))
    return tmp_path / "b"


@pytest.fixture
def examples(tmp_path):
    return tmp_path / write_task(tmp_path, "new", 6)


# ---- in memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_t5])
@pytest.mark.parametrize("inference", [False, True])
def test_only_the_core_of_the_new_task_trains(make, inference):
    model = bank(make, inference_mode=inference, lora_dropout=0.2).train()
    before = tensors(model)
    asks = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    same, fit = add_new_task(model, TOKENIZER, new_task(), 96, Settings(20, 4))
    assert same is model
    assert bank_tuner(model).tasks == [*TASKS, "new"]
    assert_others_unchanged(before, tensors(model), 3)
    assert fit.after < fit.at_start
    assert fit.start.nll[fit.start.name] <= fit.before + 0.5
    assert 0 < fit.coverage.shared <= fit.coverage.own <= 1
    assert fit.validation is None
    assert asks == [parameter.requires_grad for parameter in model.parameters()]
    assert training == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert fit.after == pytest.approx(mean_nll(model, batches_of(model)[1], 3), rel=1e-5)


def test_before_is_of_all_examples_without_an_adapter():
    model, task = bank(), new_task(40, val=3)
    _, fit = add_new_task(model, TOKENIZER, task, 96, QUICK)
    _, batches = batches_of(model, task)
    assert fit.after == pytest.approx(mean_nll(model, batches, 3), rel=1e-5)
    with model.disable_adapter():
        assert fit.before == pytest.approx(mean_nll(model, batches, 3), rel=1e-5)
    assert fit.validation > 0


def test_the_same_seed_gives_the_same_core():
    cores = []
    for seed in (0, 0, 1):
        model = bank(lora_dropout=0.3)
        torch.manual_seed(len(cores))  # what others drew plays no part
        add_new_task(model, TOKENIZER, new_task(), 96, Settings(5, 4, seed=seed))
        cores.append(bank_tuner(model).core("new"))
    assert all(torch.equal(cores[0][name], cores[1][name]) for name in cores[0])
    assert not all(torch.equal(cores[0][name], cores[2][name]) for name in cores[0])


@pytest.mark.parametrize("place", ["task_gradients", "choose_start", "fit_core"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_the_bank_as_it_was(monkeypatch, place, error):
    def fail(*args, **options):
        raise error("full")

    model = bank()
    before = tensors(model)
    monkeypatch.setattr(colora.transfer.onboarding.onboard, place, fail)
    with pytest.raises(error, match="full"):
        add_new_task(model, TOKENIZER, new_task(), 96, QUICK)
    after = tensors(model)
    assert bank_tuner(model).tasks == TASKS
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_large_cores_have_a_lower_rate_and_proximal_regularisation():
    assert [Settings().rates(rank) for rank in (23, 24)] == [(0.12, 0), (0.06, 0.1)]
    assert Settings(lr=0.3).rates(24) == (0.3, 0.1)
    assert Settings(proximal=0).rates(24) == (0.06, 0)

    def core(r, **settings):
        model = bank(r=r, target_modules=["q_proj"])  # 32 × 32
        add_new_task(model, TOKENIZER, new_task(), 96, Settings(2, 4, **settings))
        return torch.stack([one[0, 0] for one in bank_tuner(model).core("new").values()])

    assert torch.equal(core(23), core(23, lr=0.12, proximal=0))
    assert torch.equal(core(24), core(24, lr=0.06, proximal=0.1))
    assert not torch.equal(core(24), core(24, lr=0.06, proximal=0))


def test_proximal_regularisation_goes_part_of_the_way_back():
    def core(proximal, steps):
        model = bank()
        _, fit = add_new_task(model, TOKENIZER, new_task(), 96, Settings(steps, 4, proximal=proximal))
        return bank_tuner(model).core("new"), fit.start.core

    free, start = core(0, 1)
    pulled, _ = core(0.25, 1)  # one step is at the peak rate
    for name, one in pulled.items():
        torch.testing.assert_close(one, free[name].lerp(start[name], 0.25))
        assert not torch.equal(one, free[name])
    far, near = (sum(float((one - start[name]).square().sum()) for name, one in core(proximal, 20)[0].items())
                 for proximal in (0, 0.25))  # fmt: skip
    assert 0 < near < far / 2


def test_divergence_is_an_error_and_leaves_the_bank_as_it_was(monkeypatch):
    model = bank()
    before = tensors(model)
    with pytest.raises(TrainingDivergedError, match="lower lr"):
        add_new_task(model, TOKENIZER, new_task(), 96, Settings(5, 4, lr=1e38))
    after = tensors(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setattr(
        colora.transfer.onboarding.fit, "row_nll", lambda model, inputs, labels: torch.tensor([float("nan")])
    )
    with pytest.raises(TrainingDivergedError, match="step 1"):
        add_new_task(model, TOKENIZER, new_task(), 96, QUICK)
    assert bank_tuner(model).tasks == TASKS


def test_tasks_that_cannot_be_added_are_refused():
    model = bank()
    with pytest.raises(ConfigError, match="'legal' is already a task"):
        add_new_task(model, TOKENIZER, new_task(name="legal"), 96, QUICK)
    with pytest.raises(TaskFileError, match="expected at most 4 tokens"):
        add_new_task(model, TOKENIZER, new_task(), 4, QUICK)
    bank_tuner(model).set_task("legal")
    model.merge_adapter()
    with pytest.raises(ConfigError, match="merged"):
        add_new_task(model, TOKENIZER, new_task(), 96, QUICK)
    assert bank_tuner(model).tasks == TASKS
    with pytest.raises(ConfigError, match=r"steps: expected at least 1, found 0\n.*lr: expected a number above 0"):
        Settings(steps=0, lr=float("nan"))
    with pytest.raises(ConfigError, match="proximal: expected 0 to 1, found 2"):
        Settings(proximal=2)


def test_modules_trained_in_full_stay_as_they_are():
    model = bank(modules_to_save=["lm_head"], target_modules=["q_proj", "up_proj"])
    before = tensors(model)
    add_new_task(model, TOKENIZER, new_task(), 96, QUICK)
    assert_others_unchanged(before, tensors(model), 3)


# ---- where it starts ------------------------------------------------------------------------------------------------


def at_zero(model, batches):
    zero = {name: torch.zeros_like(core) for name, core in bank_tuner(model).core("new").items()}
    return core_gradient(model, "new", batches, zero)


def test_a_start_is_chosen_on_examples_from_the_whole_file():
    assert evenly(40) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert evenly(3) == [0, 1, 2]
    for count in range(60):
        places = evenly(count)
        assert places == sorted(set(places))
        assert len(places) == min(count, 8)
        assert places[-1:] <= [count - 1]


def test_the_best_start_is_chosen():
    model = bank()
    tuner = bank_tuner(model)
    tuner.add_tasks(["new"])
    _, batches = batches_of(model)
    start = choose_start(model, "new", batches, at_zero(model, batches))
    names = {"identity", "mean", *(f"core of {name}" for name in TASKS), "gradient × 0.3", "gradient × 1"}
    assert start.nll.keys() == names
    assert start.nll[start.name] == min(start.nll.values())
    assert mean_nll(model, batches, 3) == pytest.approx(start.nll[start.name])
    assert all(torch.equal(one, start.core[name]) for name, one in tuner.core("new").items())
    for place, name in enumerate(TASKS):
        assert start.nll[f"core of {name}"] == pytest.approx(mean_nll(model, batches, place), rel=1e-6)


def test_the_gradient_start_goes_downhill():
    model = bank()
    tuner = bank_tuner(model)
    tuner.add_tasks(["new"])
    _, batches = batches_of(model)
    slope = at_zero(model, batches)
    values = []
    for step in (0.0, 1e-3):
        tuner.set_core("new", {name: -step * one for name, one in slope.items()})
        values.append(mean_nll(model, batches, 3))
    assert values[1] < values[0]


def test_a_start_that_is_nan_is_not_taken(monkeypatch):
    model = bank()
    bank_tuner(model).add_tasks(["new"])
    batches = batches_of(model)[1]
    slope = at_zero(model, batches)
    values = iter([float("nan"), 3.0, float("nan"), 4.0, 1.0, float("nan"), 2.0])
    monkeypatch.setattr("colora.transfer.onboarding.start.mean_nlls", lambda m, b, tasks: [next(values) for _ in tasks])
    assert choose_start(model, "new", batches, slope).name == "core of legal"


def test_of_many_tasks_the_likeliest_is_among_those_tried():
    names = [f"t{k}" for k in range(20)]
    model = bank(tasks=names)
    tuner = bank_tuner(model)
    tuner.add_tasks(["new"])
    _, batches = batches_of(model)
    mean = {n: layer.colora_core["default"].detach()[:20].mean(0) for n, layer in bank_layers(model, "default").items()}
    slope = core_gradient(model, "new", batches, mean)
    generator = torch.Generator().manual_seed(0)
    length = sum(float(one.square().sum()) for one in slope.values()) ** 0.5
    for name in names:  # others in any direction, t13 down the slope
        noise = {n: 0.02 * torch.randn(core.shape, generator=generator) for n, core in mean.items()}
        tuner.set_core(name, {n: mean[n] + (-0.5 / length * slope[n] if name == "t13" else noise[n]) for n in mean})
    start = choose_start(model, "new", batches, at_zero(model, batches))
    assert len(start.nll) == 4 + 8
    assert "core of t13" in start.nll
    best = min(range(20), key=lambda k: mean_nll(model, batches, k))
    assert best == 13


def test_the_core_gradient_is_that_by_finite_differences():
    model = bank(tiny_gpt2, torch.float64)  # Llama's norms compute in float32
    tuner = bank_tuner(model)
    tuner.add_tasks(["new"])
    _, batches = batches_of(model)
    core = tuner.core("legal")
    model.requires_grad_(False)
    with torch.no_grad():
        slope = core_gradient(model, "new", batches, core)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in core:
        direction = torch.randn_like(core[name])
        values = []
        for sign in (1, -1):
            tuner.set_core("new", core | {name: core[name] + sign * 1e-5 * direction})
            values.append(mean_nll(model, batches, 3))
        expected = (values[0] - values[1]) / 2e-5
        assert float((slope[name] * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_the_core_gradient_at_zero_is_the_gradient_seen_through_a_and_b():
    """s Bᵀ G Aᵀ, with G of `task_gradients`."""
    model = bank()
    tuner = bank_tuner(model)
    tuner.add_tasks(["new"])
    data, batches = batches_of(model)
    slope = at_zero(model, batches)
    tuner.set_core("new", {name: torch.zeros_like(core) for name, core in tuner.core("new").items()})
    found = task_gradients(model, data, ["new"], 0, task_index=[3], rank=64)
    seen = gradient_at_zero(model, found, 0)
    assert seen.keys() == slope.keys()
    for name, expected in slope.items():
        torch.testing.assert_close(seen[name], expected, atol=1e-5 * float(expected.norm()) + 1e-9, rtol=1e-4)


# ---- coverage -------------------------------------------------------------------------------------------------------


def gradients_of(dense, rank=6):
    """Dense matrices as `task_gradients` gives them."""
    factors = {}
    for name, whole in dense.items():
        U, values, V = torch.linalg.svd(whole, full_matrices=False)
        factors[name] = (U[None, :, :rank].float(), (values[:rank, None] * V[:rank])[None].float())
    return TaskGradients(["new"], factors, torch.zeros(1))


def test_coverage_against_dense_projections():
    torch.manual_seed(0)
    shapes = {"x": (9, 12), "y": (20, 6)}
    factors = {name: (torch.randn(2, d_in), torch.randn(d_out, 2)) for name, (d_out, d_in) in shapes.items()}
    dense = {name: torch.randn(d_out, d_in, dtype=torch.float64) for name, (d_out, d_in) in shapes.items()}
    dense = {name: one[:, :4] @ torch.randn(4, one.shape[1], dtype=torch.float64) for name, one in dense.items()}
    found = coverage(gradients_of(dense), 0, factors)
    inside, own, total = {}, 0.0, {}
    for name, whole in dense.items():
        A, B = (one.double() for one in factors[name])
        seen = B @ torch.linalg.pinv(B) @ whole @ torch.linalg.pinv(A) @ A
        inside[name], total[name] = float(seen.square().sum()), float(whole.square().sum())
        own += float(torch.linalg.svdvals(whole)[:2].square().sum())
        assert found.layers[name] == pytest.approx(inside[name] / total[name], rel=1e-5)
    assert found.shared == pytest.approx(sum(inside.values()) / sum(total.values()), rel=1e-5)
    assert found.own == pytest.approx(own / sum(total.values()), rel=1e-5)
    assert found.relative == pytest.approx(found.shared / found.own)


def test_coverage_of_a_gradient_inside_outside_and_of_none():
    torch.manual_seed(0)
    A, B = torch.randn(2, 12), torch.randn(9, 2)
    inside = (B @ torch.randn(2, 2) @ A).double()
    found = coverage(gradients_of({"x": inside}), 0, {"x": (A, B)})
    assert (found.shared, found.own, found.relative) == pytest.approx((1, 1, 1), abs=1e-6)
    q = torch.linalg.qr(B.double()).Q
    outside = torch.randn(9, 12, dtype=torch.float64)
    outside -= q @ (q.T @ outside)
    assert coverage(gradients_of({"x": outside}), 0, {"x": (A, B)}).shared == pytest.approx(0, abs=1e-10)
    nothing = coverage(gradients_of({"x": torch.zeros(9, 12)}), 0, {"x": (A, B)})
    assert (nothing.shared, nothing.own, nothing.relative, nothing.layers) == (0, 0, 0, {"x": 0})
    # B of a new bank is zero: it spans nothing
    assert coverage(gradients_of({"x": inside}), 0, {"x": (A, torch.zeros(9, 2))}).shared == 0


# ---- more rank ------------------------------------------------------------------------------------------------------


def logits(model, count=3):
    with torch.no_grad():
        return [model(input_ids=IDS, task_ids=torch.full((3,), task)).logits for task in range(count)]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"inference_mode": True}])
def test_more_rank_leaves_the_others_as_they_are(make, options):
    model = bank(make, torch.float64, **options).eval()
    data, _ = batches_of(model)
    before = logits(model)
    old = {n: tuple(getattr(layer, f"colora_{part}")["default"].detach().clone() for part in ("A", "B", "core"))
           for n, layer in bank_layers(model, "default").items()}  # fmt: skip
    scaling = bank_tuner(model).peft_config["default"].scaling
    found = task_gradients(model, data, ["new"], 0, task_index=[0])
    larger = extend_rank(model, 2, found, "sales").eval()
    for one, other in zip(before, logits(larger), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    config = bank_tuner(larger).peft_config["default"]
    assert (config.r, config.use_rslora) == (5, options.get("use_rslora", False))
    assert config.scaling == pytest.approx(scaling, rel=1e-15)
    for name, layer in bank_layers(larger, "default").items():
        A, B = (getattr(layer, f"colora_{part}")["default"].detach() for part in ("A", "B"))
        assert torch.equal(A[:3], old[name][0])
        assert torch.equal(B[:, :3], old[name][1])
        for number, task in enumerate(TASKS):
            core = larger.core(task)[name]
            assert core.shape == ((5, 5) if task == "sales" else (3, 3))
            assert torch.equal(core[:3, :3], old[name][2][number])
            assert not core[3:].any()
            assert not core[:, 3:].any()
        # The new directions are outside, also where the gradient had none left.
        assert torch.allclose(A[:3] @ A[3:].T, torch.zeros(3, 2, dtype=A.dtype), atol=1e-7)
        assert torch.allclose(B[:, :3].T @ B[:, 3:], torch.zeros(3, 2, dtype=A.dtype), atol=1e-7)
        assert A[3:].norm(dim=1).tolist() == pytest.approx([float(A[:3].norm(dim=1).mean())] * 2)
        assert B[:, 3:].norm(dim=0).tolist() == pytest.approx([float(B[:, :3].norm(dim=0).mean())] * 2)


def test_more_rank_than_a_short_gradient_has():
    model = bank(r=4)
    layers = bank_layers(model, "default")
    layer = layers["model.layers.0.mlp.up_proj"]
    A, B = layer.colora_A["default"], layer.colora_B["default"]
    inside = gradients_of({"x": (B @ A).detach().double()}, rank=1).factors["x"]
    found = TaskGradients(["new"], {name: (torch.zeros(1, layer.out_features, 1), torch.zeros(1, 1, layer.in_features))
                                    for name, layer in layers.items()}, torch.zeros(1))  # fmt: skip
    found.factors["model.layers.0.mlp.up_proj"] = inside
    larger = bank_layers(extend_rank(model, 3, found, "sales"), "default")
    for layer in larger.values():
        for factor in (layer.colora_A["default"].detach(), layer.colora_B["default"].detach().T):
            assert torch.linalg.matrix_rank(factor, rtol=1e-4) == 7
            assert torch.allclose(factor[:4] @ factor[4:].T, torch.zeros(4, 3), atol=1e-5)


def test_no_room_and_modules_in_full_are_refused():
    model = bank()
    before = tensors(model)
    data, _ = batches_of(model)
    found = task_gradients(model, data, ["new"], 0, task_index=[0])
    with pytest.raises(ConfigError, match="no room for 30 further directions"):
        extend_rank(model, 30, found, "sales")
    with pytest.raises(ConfigError, match="no room"):
        add_new_task(model, TOKENIZER, new_task(), 96, Settings(2, 2, extend=30))
    after = tensors(model)
    assert bank_tuner(model).tasks == TASKS
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = bank(modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match="modules_to_save"):
        extend_rank(whole, 1, found, "sales")


def narrow():
    """A bank whose A and B see almost nothing of the new task: they are orthogonal to the gradient at its W0."""
    model = bank(r=1, lora_alpha=1)
    data, _ = batches_of(model, new_task(8))
    found = task_gradients(model, data, ["new"], 0, task_index=[0])
    with torch.no_grad():
        for name, layer in bank_layers(model, "default").items():
            B, A = (one[0] for one in found.factors[name])
            U, V = torch.linalg.svd(B @ A).U, torch.linalg.svd(B @ A).Vh
            layer.colora_B["default"].copy_(0.3 * U[:, -1:])
            layer.colora_A["default"].copy_(0.3 * V[-1:])
    return model


def test_more_rank_helps_where_the_subspace_holds_nothing():
    settings = {"steps": 15, "rows": 8, "lr": 0.05}
    _, plain = add_new_task(narrow(), TOKENIZER, new_task(8), 96, Settings(**settings))
    larger, extended = add_new_task(narrow(), TOKENIZER, new_task(8), 96, Settings(**settings, extend=3))
    assert plain.coverage.relative < 0.1
    assert extended.after < plain.after - 0.1
    assert bank_tuner(larger).tasks == [*TASKS, "new"]
    for task in larger.tasks:
        core = larger.core(task)["model.layers.1.mlp.up_proj"]
        assert core.shape == ((4, 4) if task == "new" else (1, 1))
    assert core[1:, 1:].any()


@pytest.mark.parametrize("factor_lr", [0.0, 1e-3])
def test_further_directions_are_trained_and_the_old_ones_stay(factor_lr):
    model = bank()
    old = tensors(model)
    grown = {}

    def grow(*args):
        larger = extend_rank(*args)
        grown.update({n: one.detach().clone() for n, one in larger.named_parameters() if "colora_" in n})
        return larger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colora.transfer.onboarding.onboard, "extend_rank", grow)
        larger, _ = add_new_task(model, TOKENIZER, new_task(), 96, Settings(6, 4, extend=2, factor_lr=factor_lr))
    for name, one in larger.named_parameters():
        if "colora_A" in name:
            now, fresh, start = one[:3], one[3:], grown[name][3:]
        elif "colora_B" in name:
            now, fresh, start = one[:, :3], one[:, 3:], grown[name][:, 3:]
        else:
            continue
        assert torch.equal(now, old[name])
        assert torch.equal(fresh, start) == (factor_lr == 0)


def test_frozen_directions_stay_also_when_their_gradient_is_infinite():
    grad = torch.tensor([[float("inf"), 1.0], [float("nan"), 2.0], [3.0, 4.0]])
    assert colora.transfer.onboarding.fit._last(grad, 1, 0).tolist() == [[0, 0], [0, 0], [3, 4]]
    assert colora.transfer.onboarding.fit._last(grad[2:], 1, 1).tolist() == [[0, 4]]


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_a_saved_bank_gets_the_task(saved, examples, base):
    before = load_file(saved / "adapter_model.safetensors")
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "notes.txt").write_text("mine")
    lines = []
    found = onboard(saved, examples, settings=QUICK, log=lines.append)
    assert (found.task, found.bank, found.validation) == ("new", saved, None)
    assert "nats per token" in lines[0]
    assert "of its gradient" in found.advice
    assert_others_unchanged(before, load_file(saved / "adapter_model.safetensors"), 3)
    after = json.loads((saved / "adapter_config.json").read_text())
    assert after.pop("tasks") == [*config.pop("tasks"), "new"]
    assert after.pop("weights_sha256") != config.pop("weights_sha256")
    assert after == config
    assert (saved / "notes.txt").read_text() == "mine"
    info = read_bank_info(saved)
    assert (info.examples["new"], info.seen["new"], info.sources["new"]["onboarded"]) == (6, 24, True)
    assert info.examples["legal"] == 3
    model, tokenizer, _ = load_bank(saved)
    assert model.base_model.tasks == [*TASKS, "new"]
    task = Task("new", {"train": tuple(Example(one["input"], (one["output"],)) for one in map(
        json.loads, examples.read_text().splitlines()))}, "", None)  # fmt: skip
    data = encode_tasks([task], tokenizer, "train", 96)
    batch = TaskCollator(0)([data[row] for row in range(6)])
    assert mean_nll(model, [batch], 3) == pytest.approx(found.after, rel=1e-4)
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []


def test_the_files_are_those_that_saving_the_model_writes(saved, examples, tmp_path):
    """The files written around the old ones are those of `save_bank`, so that nothing depends on how a task came."""
    onboard(saved, examples, settings=QUICK)
    model, _, info = load_bank(saved)
    save_bank(model, tmp_path / "again", info)
    for name in ("adapter_model.safetensors", "bank.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("extend", [0, 2])
def test_tensors_of_another_dtype_stay_to_the_bit(saved, examples, dtype, extend):
    torch.manual_seed(5)
    file, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    stored = {name: torch.randn(one.shape, dtype=torch.float64).to(dtype) for name, one in load_file(file).items()}
    save_file(stored, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": None}))
    onboard(saved, examples, settings=Settings(2, 2, extend=extend))
    after = SavedBank(saved)
    for name, one in stored.items():
        if "core" in name and extend:
            layer = split_key(name)[0]
            cores = [after.core(task)[layer] for task in range(3)]
            assert [core.dtype for core in cores] == [dtype] * 3
            assert torch.equal(torch.stack(cores), one)
            continue
        now = after[name][tuple(slice(size) for size in one.shape)]
        assert torch.equal(one.double(), now.double())
        if extend == 0 and "core" not in name:
            assert now.dtype == dtype
    load_bank(saved)


def test_onboarding_into_a_bank_of_one_task(base, examples, tmp_path):
    save_bank(bank(tasks=["only"]), tmp_path / "b", BankInfo(base=base, max_length=96))
    found = onboard(tmp_path / "b", examples, name="second one", settings=QUICK)
    assert found.start.nll.keys() == {"identity", "mean", "core of only", "gradient × 0.3", "gradient × 1"}
    assert load_bank(tmp_path / "b")[0].base_model.tasks == ["only", "second one"]


def test_onboarding_into_a_new_bank_whose_b_is_zero(base, examples, tmp_path):
    save_bank(bank(init_weights=True), tmp_path / "b", BankInfo(base=base, max_length=96))
    found = onboard(tmp_path / "b", examples, settings=Settings(2, 2, extend=1))
    assert found.coverage.relative == 0
    assert "--extend" in found.advice
    assert load_bank(tmp_path / "b")[0].base_model.tasks[-1] == "new"


def test_another_output_leaves_the_old_bank_alone(saved, examples, tmp_path):
    before = content(saved)
    found = onboard(saved, examples, output=tmp_path / "more" / "n", settings=Settings(2, 2, extend=2))
    assert content(saved) == before
    assert found.bank == tmp_path / "more" / "n"
    after = SavedBank(found.bank)
    assert after.config.r == 5
    assert [after.core_rank(task) for task in range(4)] == [3, 3, 3, 5]
    assert load_bank(found.bank)[0].base_model.tasks == [*TASKS, "new"]


def test_a_folder_with_and_without_validation_examples(saved, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (tmp_path / write_task(tmp_path, "x", 20)).rename(folder / "train.jsonl")
    found = onboard(saved, folder, output=tmp_path / "one", settings=Settings(2, 2))
    assert found.validation is None
    assert read_bank_info(tmp_path / "one").examples["new"] == 20  # none were set aside
    (tmp_path / write_task(tmp_path, "y", 3)).rename(folder / "val.jsonl")
    found = onboard(saved, folder, output=tmp_path / "two", settings=Settings(2, 2))
    assert found.validation > 0
    assert read_bank_info(tmp_path / "two").examples["new"] == 20


def test_a_file_whose_columns_have_other_names(saved, tmp_path):
    """With `fields` it gives the bank that the same file with our names gives, in Python and by `--field`."""
    ours, theirs = tmp_path / "ours" / "new.csv", tmp_path / "theirs" / "new.csv"
    rows = "".join(f"say {number},word {number}\n" for number in range(6))
    for path, header in ((ours, "input,output"), (theirs, "tweet text,Stance")):
        path.parent.mkdir()
        path.write_text(f"{header}\n{rows}")
    expected = onboard(saved, ours, output=tmp_path / "one", settings=Settings(2, 2))
    fields = {"input": "tweet text", "output": "Stance"}
    found = onboard(
        saved, TaskSource(path=str(theirs), fields=fields), output=tmp_path / "two", settings=Settings(2, 2)
    )
    options = [part for key, column in fields.items() for part in ("--field", f"{key}={column}")]
    told = cli("onboard", saved, theirs, "--output", tmp_path / "three", "--steps", 2, "--rows", 2, *options)
    assert told.exit_code == 0, told.stderr
    assert (found.after, found.examples) == (expected.after, 6)
    digests = {content(tmp_path / name)["adapter_model.safetensors"][0] for name in ("one", "two", "three")}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("inptu=a", "--field 'inptu=a': expected input, output or instruction, found 'inptu'; did you mean 'input'?"),
        ("input", "--field 'input': expected KEY=COLUMN, such as --field input='tweet text'"),
        ("input=", "--field 'input=': expected KEY=COLUMN"),
        ("output=b", "--field 'output=b': output is 'c' already; remove one of them"),
    ],
)
@pytest.mark.parametrize("command", ["onboard", "update"])
def test_a_wrong_field_is_refused_by_name(command, option, message, saved, tmp_path):
    assert message in refusal(command, saved, tmp_path / "new.csv", "--field", "output=c", "--field", option)


def test_wrong_arguments_are_refused_before_anything_is_loaded(saved, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(colora.transfer.onboarding.onboard, "load_bank", None)
    before = content(saved)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    (tmp_path / "empty.jsonl").write_text("")
    misspelt = TaskSource(path=str(examples), fields={"inputs": "text"})
    for error, message, arguments in [
        (ConfigError, "'legal' is already a task", {"name": "legal"}),
        (ConfigError, "is there already", {"output": tmp_path / "full"}),
        (TaskFileError, "empty.jsonl", {"examples": tmp_path / "empty.jsonl"}),
        (TaskFileError, "expected a file or a folder", {"examples": tmp_path / "none.jsonl"}),
        (TaskFileError, "expected a task name", {"name": "a/b"}),
        (TaskFileError, 'in fields, found "inputs"', {"examples": misspelt}),
        (BankFileError, "no such folder", {"bank": tmp_path / "none"}),
    ]:
        with pytest.raises(error, match=message):
            onboard(**{"bank": saved, "examples": examples, "settings": QUICK} | arguments)
    assert content(saved) == before
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years"


def test_a_write_that_fails_leaves_the_old_bank(saved, examples, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(colora.bank.tensors, "save_file", full)
    before = content(saved)
    with pytest.raises(CheckpointError, match="No space left on device"):
        onboard(saved, examples, settings=Settings(2, 2))
    assert content(saved) == before
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".")]


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("run")
    result = cli("train", run_file(folder, base))
    assert result.exit_code == 0, result.stderr
    return folder / "out"


@pytest.mark.parametrize("option", ["--proximal", "--pull"])
def test_the_command_does_what_the_function_does(saved, examples, tmp_path, monkeypatch, option):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as `cli` has it: on some machines two threads add up in another order
    options = ("--steps", 3, "--rows", 2, "--lr", 0.05, "--extend", 1, "--seed", 7, option, 0.3)
    assert cli("onboard", saved, examples, "--output", tmp_path / "one", *options).exit_code == 0
    settings = Settings(3, 2, lr=0.05, extend=1, proximal=0.3, seed=7)
    onboard(saved, examples, output=tmp_path / "two", settings=settings)
    one, two = ({file: what[0] for file, what in content(tmp_path / name).items()} for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("extend", [0, 1])
def test_the_command_on_a_run(trained, tmp_path, extend):
    run = tmp_path / "out"
    shutil.copytree(trained, run)
    examples = tmp_path / write_task(tmp_path, "green", 5)
    result = cli("onboard", run, examples, "--name", "a:de:b", "--steps", 4, "--rows", 2, "--extend", extend)
    assert result.exit_code == 0, result.stderr
    assert "a:de:b" in result.stdout
    assert "trained" in result.stdout
    assert f"bank: {run / 'bank'}" in result.stderr
    assert "onboarding" not in result.stderr  # no bar where there is no terminal
    assert "a:de:b" in cli("tasks", run).stdout
    said = cli("generate", run, "--task", "a:de:b", "--max-new-tokens", 2, "green 1")
    assert said.exit_code == 0, said.stderr
    assert cli("evaluate", run).exit_code == 0
    assert cli("forget", run, "a:de:b").exit_code == 0
    before, after = SavedBank(trained), SavedBank(run)
    assert after.config.r == before.config.r  # what was added for it has gone with it
    for task in range(len(before.tasks)):
        assert all(torch.equal(one, after.core(task)[name]) for name, one in before.core(task).items())
    assert all(torch.equal(before[name], after[name]) for name in before if "core" not in name)


def test_the_command_refuses_wrong_arguments(saved, examples, tmp_path):
    assert "'sales' is already a task" in refusal("onboard", saved, examples, "--name", "sales")
    assert "lr: expected a number above 0" in refusal("onboard", saved, examples, "--lr", 0)
    assert "no such folder" in refusal("onboard", tmp_path / "none", examples)
