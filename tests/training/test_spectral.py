"""The spectral start: its algebra, what it does to each task's loss, when it happens, and what it refuses."""

import os
import signal

import pytest
import torch
from peft import get_peft_model

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers
from colora.errors import ConfigError, InterruptedRunError
from colora.federated.simulate import simulate
from colora.tasks.encode import encode_tasks
from colora.tasks.schema import Example, Task
from colora.training.check import check_run
from colora.training.config import SPECTRAL
from colora.training.config_file import load_config, load_federation
from colora.training.loop.trainer import CoLoRATrainer
from colora.training.run import train
from colora.training.starts.spectral import STEPS_TRIED, StartLosses, spectral_start
from colora.training.starts.spectral_layer import ROW_NORM, layer_start
from colora.training.task_gradients import task_gradients
from tests.helpers.run_files import cli, config_of, content, run_file, save_base
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NAMES = ["red", "blue", "green"]
OUTPUTS = {"red": "rot rot", "blue": "blau", "green": "grün?"}
RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def bank_of(model, tokenizer=None):
    encoder_decoder = model.config.is_encoder_decoder
    kind = "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM"
    bank = get_peft_model(model, CoLoRAConfig(r=RANK, lora_alpha=2 * RANK, tasks=NAMES, task_type=kind))
    tasks = [
        Task(name, {"train": tuple(Example(f"{name} {n}", (OUTPUTS[name] * (1 + n % 2),)) for n in range(7 + place)),
                    "val": (), "test": ()}, "here", None)
        for place, name in enumerate(NAMES)
    ]  # fmt: skip
    return bank, encode_tasks(tasks, tiny_tokenizer(), "train", 96, encoder_decoder)


def parameters(bank):
    return {name: value.detach().clone() for name, value in bank.named_parameters() if "colora_" in name}


# ---- the algebra ----------------------------------------------------------------------------------------------------


def low_rank(tasks=5, d_out=9, d_in=7, rank=3):
    """Gradients that share spaces of the bank's rank, so that nothing of them is lost."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(d_out, RANK) @ draw(tasks, RANK, rank), draw(tasks, rank, RANK) @ draw(RANK, d_in)


def test_the_step_is_down_each_tasks_gradient_by_one_factor():
    B, A = low_rank()
    gradients = B @ A
    first, left, cores = layer_start(A, B, RANK, "spectral")
    steps = left @ cores @ first
    factor = -(steps * gradients).sum() / gradients.square().sum()
    assert factor > 0
    assert torch.allclose(steps, -factor * gradients, atol=1e-9)
    assert torch.allclose(left.mT @ left, torch.eye(RANK, dtype=torch.float64))
    assert torch.allclose(first.norm(dim=1), torch.full((RANK,), ROW_NORM, dtype=torch.float64))
    assert float(cores.square().sum((1, 2)).mean()) == pytest.approx(RANK)


def test_of_gradients_of_higher_rank_it_is_the_projection():
    generator = torch.Generator().manual_seed(1)
    B = torch.randn(5, 9, 6, generator=generator, dtype=torch.float64)
    A = torch.randn(5, 6, 7, generator=generator, dtype=torch.float64)
    first, left, cores = layer_start(A, B, RANK, "spectral")
    rows = first / ROW_NORM
    projected = left @ left.mT @ (B @ A) @ rows.mT @ rows
    steps = left @ cores @ first
    factor = -(steps * projected).sum() / projected.square().sum()
    assert torch.allclose(steps, -factor * projected, atol=1e-9)


def test_the_mean_core_is_diagonal_and_positive():
    B, A = low_rank()
    _, _, cores = layer_start(A, B, RANK, "spectral")
    mean = cores.mean(0)
    assert torch.allclose(mean, torch.diag(mean.diagonal()), atol=1e-9)
    assert (mean.diagonal() >= 0).all()


def test_neutral_starts_differ_from_the_identity_by_what_tasks_do_not_share():
    B, A = low_rank()
    first, left, cores = layer_start(A, B, RANK, "spectral_neutral")
    _, _, own = layer_start(A, B, RANK, "spectral")
    eye = torch.eye(RANK, dtype=torch.float64)
    assert not left.any()
    assert torch.allclose(cores, eye + own - own.mean(0))
    alike = layer_start(A[:1].expand(3, -1, -1), B[:1].expand(3, -1, -1), RANK, "spectral_neutral")
    assert torch.allclose(alike[2], eye.expand(3, -1, -1))
    factors = layer_start(A, B, RANK, "spectral_factors")
    assert torch.equal(factors[0], first)
    assert not factors[1].any()
    assert torch.equal(factors[2], eye.expand(5, -1, -1))


@pytest.mark.parametrize("kind", SPECTRAL)
def test_without_gradients_the_start_is_finite(kind):
    found = layer_start(torch.zeros(2, 3, 7), torch.zeros(2, 9, 3), RANK, kind)
    assert all(bool(torch.isfinite(one).all()) for one in found)


# ---- what it does to a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_t5])
def test_no_tasks_loss_rises_and_the_weights_are_a_step_down_the_gradients(make):
    bank, data = bank_of(make())
    gradients = task_gradients(bank, data, NAMES, 0, rows=32, rank=2 * RANK)
    found = spectral_start(bank, data, NAMES, 0, "spectral")
    assert found.b > 0
    assert (found.after <= found.before).all()
    assert float(found.after.mean()) < float(found.before.mean()) - 0.01
    assert torch.allclose(found.before.float(), gradients.loss, atol=1e-5)
    after = task_gradients(bank, data, NAMES, 0, rows=32, rank=2 * RANK).loss
    assert torch.allclose(found.after.float(), after, atol=1e-5)
    for name, layer in bank_layers(bank, "default").items():
        B, A = gradients.factors[name]
        first, left, cores = layer_start(A, B, RANK, "spectral")
        for task in range(len(NAMES)):
            step = layer.get_delta_weight("default", task)
            step = step.T if layer.transposed else step
            assert torch.allclose(step, 2 * found.b * left @ cores[task] @ first, atol=1e-6)
            assert float((step.detach() * (B[task] @ A[task])).sum()) <= 0


@pytest.mark.parametrize("kind", ["spectral_neutral", "spectral_factors"])
def test_the_others_start_at_the_base_model(kind):
    bank, data = bank_of(tiny_llama())
    before = task_gradients(bank, data, NAMES, 0).loss
    found = spectral_start(bank, data, NAMES, 0, kind)
    assert found.b == 0
    assert torch.equal(found.before, found.after)
    assert torch.allclose(found.after.float(), before, atol=1e-6)
    assert all(not layer.colora_B["default"].any() for layer in bank_layers(bank, "default").values())
    cores = [layer.colora_core["default"] for layer in bank_layers(bank, "default").values()]
    personal = any(not torch.allclose(one[0], one[1], atol=1e-3) for one in cores)
    assert personal == (kind == "spectral_neutral")


@pytest.mark.parametrize("kind", SPECTRAL)
def test_it_is_the_same_every_time_and_draws_nothing(kind):
    found = []
    for seed in (1, 2):
        bank, data = bank_of(tiny_llama())
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        spectral_start(bank, data, NAMES, 0, kind)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(parameters(bank))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_where_every_step_is_too_far_it_stays_at_the_base_model(monkeypatch):
    """A step that helps on average will not do while one task's loss rises."""
    first, worse = torch.ones(3, dtype=torch.float64), torch.tensor([0.1, 0.1, 1.1], dtype=torch.float64)
    results = iter([first, *[worse] * len(STEPS_TRIED), first])
    monkeypatch.setattr("colora.training.starts.spectral._losses", lambda *args: next(results))
    bank, data = bank_of(tiny_llama())
    found = spectral_start(bank, data, NAMES, 0, "spectral")
    assert (found.b, found.line().split(",")[0]) == (0.0, "the gradients' directions")
    assert all(not layer.colora_B["default"].any() for layer in bank_layers(bank, "default").values())


def test_the_line_names_every_task_but_not_hundreds():
    losses = torch.ones(20, dtype=torch.float64)
    line = StartLosses([f"t{n}" for n in range(20)], losses, losses / 2, 0.25).line()
    assert "b = 0.25" in line
    assert "mean 1.000 → 0.500, t0 1.000 → 0.500" in line
    assert line.endswith("t11 1.000 → 0.500, ... and 8 more")


# ---- in a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECTRAL)
def test_a_run_begins_with_it_and_saves_an_ordinary_bank(base, tmp_path, kind):
    config = config_of(tmp_path, base, adapter={"init_weights": kind})
    lines = []
    train(config, log=lines.append)
    assert [line.split(":")[0] for line in lines] == [f"{kind} start"]
    assert CoLoRAConfig.from_pretrained(str(tmp_path / "out" / "bank")).init_weights is True
    lines.clear()
    assert train(config, log=lines.append).reused
    assert lines == [f"{tmp_path / 'out'} has ended before; nothing to train"]


def test_going_on_after_a_crash_does_not_do_it_again(base, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    train(config_of(tmp_path / "whole", base, adapter={"init_weights": "spectral"}))
    config = config_of(tmp_path / "broken", base, adapter={"init_weights": "spectral"})
    real, calls = CoLoRATrainer.compute_loss, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CoLoRATrainer, "compute_loss", interrupted)
    with pytest.raises(InterruptedRunError):
        train(config)
    monkeypatch.setattr(CoLoRATrainer, "compute_loss", real)
    monkeypatch.setattr("colora.training.starts.spectral.spectral_start", lambda *args: pytest.fail("started again"))
    train(config)
    name = os.path.join("out", "bank", "adapter_model.safetensors")
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_check_says_what_it_costs(base, tmp_path):
    assert check_run(config_of(tmp_path, base)).notes == ()
    path = run_file(tmp_path, base, adapter={"init_weights": "spectral"})
    result = cli("check", path)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    assert "spectral start: 2 forward and backward passes before the first step" in shown
    assert "then at most 13 times the forward passes" in shown


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_not_together_with_a_bank_to_start_from(base, tmp_path):
    config = config_of(tmp_path, base, adapter={"init_weights": "spectral"}, start_from=str(tmp_path / "bank"))
    before = content(tmp_path)
    for attempt in (train, check_run):
        with pytest.raises(ConfigError, match="spectral begins a new bank, but start_from"):
            attempt(config)
    assert content(tmp_path) == before


def test_not_in_a_federation(base, tmp_path):
    path = run_file(tmp_path, base, adapter={"init_weights": "spectral_neutral"})
    for attempt in (lambda: load_federation(path), lambda: simulate(load_config(path))):
        with pytest.raises(ConfigError, match="needs the gradients of all tasks in one place"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number(base, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    bank, data = bank_of(model)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        spectral_start(bank, data, NAMES, 0, "spectral")


def test_of_many_tasks_fewer_directions_are_kept(monkeypatch):
    monkeypatch.setattr("colora.training.starts.spectral.DIRECTIONS", 3 * 5)
    ranks = []

    def watched(*args, rank, **options):
        ranks.append(rank)
        return task_gradients(*args, rank=rank, **options)

    monkeypatch.setattr("colora.training.starts.spectral.task_gradients", watched)
    bank, data = bank_of(tiny_llama())
    found = spectral_start(bank, data, NAMES, 0, "spectral")
    assert ranks == [5]
    assert (found.after <= found.before).all()
