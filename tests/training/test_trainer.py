"""`CoLoRATrainer` on a tiny model: schedules, resuming, stopping, logging, evaluation."""

import json
import math
from itertools import pairwise

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from colora.errors import ConfigError
from colora.evaluation.nll import token_nll
from colora.evaluation.settings import EvaluationSettings
from colora.training.loop.schedule import frozen_roles
from colora.training.loop.stopping import TaskEarlyStopping
from tests.helpers.tiny import tiny_gpt2, tiny_t5
from tests.helpers.train_tiny import NAMES, TOKENIZER, EachStep, bank_tensors, equal, make_trainer, roles, tiny_tasks


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def record_steps(trainer):
    """A list that will hold the tensors of the bank after 0, 1, ... steps of training."""
    states = []
    trainer.add_callback(
        EachStep(
            before=lambda step: states.append(bank_tensors(trainer)) if not states else None,
            after=lambda step: states.append(bank_tensors(trainer)),
        )
    )
    return states


# ---- schedules --------------------------------------------------------------------------------------------------


def test_joint_training_moves_shared_factors_and_cores_in_every_step(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, init_weights=False)
    states = record_steps(trainer)
    trainer.train()
    assert len(states) == 5
    for before, after in pairwise(states):
        for old, new in zip(roles(before), roles(after), strict=True):
            assert old
            assert not any(torch.equal(old[name], new[name]) for name in old)


def test_alternating_turns_move_one_half_and_leave_the_other_bit_for_bit(tmp_path):
    trainer = make_trainer(tmp_path, steps=8, init_weights=False, schedule="alternating", turn=2)
    states = record_steps(trainer)
    trainer.train()
    for step in range(8):
        (shared, cores), (shared_after, cores_after) = roles(states[step]), roles(states[step + 1])
        resting = frozen_roles("alternating", step, 2)
        assert resting == ({"core"} if step in (0, 1, 4, 5) else {"shared"})
        assert equal(shared, shared_after) == (resting == {"shared"})
        assert equal(cores, cores_after) == (resting == {"core"})


def test_alternating_training_wastes_no_step_on_the_default_start_where_cores_have_no_gradient(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, schedule="alternating", turn=1)
    states = record_steps(trainer)
    trainer.train()
    assert not any(equal(before, after) for before, after in pairwise(states))


def test_the_gradient_of_the_resting_half_does_not_count_in_clipping(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, init_weights=False, schedule="alternating", turn=1)
    seen = []
    original = trainer._clip_grad_norm

    def clip(model):
        norm = original(model)
        seen.append([name for name, parameter in model.named_parameters() if parameter.grad is not None])
        return norm

    trainer._clip_grad_norm = clip
    trainer.train()
    assert seen[0]
    assert all("colora_core" not in name for name in seen[0])
    assert seen[1]
    assert all("colora_core" in name for name in seen[1])


def test_alternating_training_resumed_within_a_turn_goes_on_with_that_turn(tmp_path):
    settings = {"steps": 9, "init_weights": False, "schedule": "alternating", "turn": 3, "save_steps": 4}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert equal(bank_tensors(whole), bank_tensors(resumed))


# ---- resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_a_checkpoint_with_dropout_on_equals_one_without_a_break(tmp_path, step, accumulate):
    settings = {"accumulate": accumulate, "dropout": 0.3, "eval_steps": 4, "val": 2}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    torch.manual_seed(99)  # the generators come from the checkpoint
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert equal(bank_tensors(whole), bank_tensors(resumed))
    for key in ("loss", "learning_rate", "eval_loss", "loss/cde"):
        assert logged(whole, key) == logged(resumed, key)
    states = [trainer.optimizer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(equal(states[0][key], states[1][key]) for key in states[0])


def test_dropout_and_seed_matter_to_the_run_that_is_resumed(tmp_path):
    """Without this the test above could pass on a run in which nothing is random."""
    one, other = make_trainer(tmp_path, dropout=0.3), make_trainer(tmp_path, dropout=0.3)
    other.add_callback(EachStep(before=lambda step: torch.rand(1) if step == 2 else None))
    one.train()
    other.train()
    assert not equal(bank_tensors(one), bank_tensors(other))


def test_save_total_limit_keeps_the_newest_checkpoints(tmp_path):
    make_trainer(tmp_path, save_steps=2, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")


# ---- stopping ---------------------------------------------------------------------------------------------------

STOPPING = {"steps": 16, "eval_steps": 2, "patience": 1, "unlike": ("cde",), "save_steps": 4, "dropout": 0.0}


def stopped_at(trainer):
    return next(cb for cb in trainer.callback_handler.callbacks if isinstance(cb, TaskEarlyStopping)).stopped_at


def core_rows(tensors, task):
    return {name: core[NAMES.index(task)] for name, core in roles(tensors)[1].items()}


def test_a_stopped_task_never_moves_again_while_the_others_go_on(tmp_path):
    trainer = make_trainer(tmp_path, **STOPPING)
    states = record_steps(trainer)
    trainer.train()
    assert list(stopped_at(trainer)) == ["cde"]
    stop = stopped_at(trainer)["cde"]
    assert 2 < stop < 12
    assert trainer.state.global_step == 16
    assert not equal(core_rows(states[stop - 1], "cde"), core_rows(states[stop], "cde"))
    for state in states[stop:]:
        assert equal(core_rows(state, "cde"), core_rows(states[stop], "cde"))
    for name in ("ab", "f"):
        assert not equal(core_rows(states[stop], name), core_rows(states[-1], name))
    assert len(logged(trainer, "loss/cde")) == 4  # still measured


def test_a_stopped_task_stays_stopped_when_training_resumes(tmp_path):
    whole = make_trainer(tmp_path, **STOPPING)
    whole.train()
    resumed = make_trainer(tmp_path, **STOPPING)
    folder = tmp_path / f"checkpoint-{math.ceil(stopped_at(whole)['cde'] / 4) * 4}"
    resumed.train(resume_from_checkpoint=str(folder))
    assert stopped_at(resumed) == stopped_at(whole)
    assert equal(bank_tensors(whole), bank_tensors(resumed))


def test_training_ends_when_every_task_with_validation_data_has_stopped(tmp_path):
    trainer = make_trainer(tmp_path, **{**STOPPING, "unlike": NAMES, "steps": 40, "save_steps": 2})
    trainer.train()
    assert set(stopped_at(trainer)) == set(NAMES)
    assert trainer.state.global_step == max(stopped_at(trainer).values()) < 40


def test_resuming_after_every_task_has_stopped_changes_nothing(tmp_path):
    settings = {**STOPPING, "unlike": NAMES, "steps": 40, "save_steps": 2}
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    resumed = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=get_last_checkpoint(tmp_path))
    assert equal(bank_tensors(whole), bank_tensors(resumed))
    assert resumed.state.global_step <= whole.state.global_step + 1


# ---- logging and evaluation -------------------------------------------------------------------------------------


def test_the_loss_of_every_task_is_logged_and_falls(tmp_path):
    trainer = make_trainer(tmp_path, steps=24, dropout=0.0)
    trainer.train()
    for name in NAMES:
        losses = logged(trainer, f"loss/{name}")
        assert len(losses) == 6
        assert losses[-1] < losses[0] - 0.1
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    # a step's loss is the mean over tasks; the tasks' own are means over the tokens of four steps
    assert entry["loss"] == pytest.approx(sum(entry[f"loss/{name}"] for name in NAMES) / 3, rel=0.05)


@pytest.mark.parametrize("base", ["llama", "gpt2", "t5"])
def test_evaluation_losses_equal_the_token_likelihood_of_each_task(tmp_path, base):
    settings = {} if base == "llama" else {"base": {"gpt2": tiny_gpt2, "t5": tiny_t5}[base]}
    trainer = make_trainer(tmp_path, steps=4, eval_steps=4, init_weights=False, **settings)
    trainer.train()
    tasks = tiny_tasks()
    index = {name: number for number, name in enumerate(NAMES)}
    settings = EvaluationSettings(split="val", max_length=64, batch_rows=1)
    oracle = token_nll(trainer.model, TOKENIZER, tasks, settings, index)
    for name in NAMES:
        assert logged(trainer, f"eval_loss/{name}")[-1] == pytest.approx(oracle[name].mean, rel=1e-5)
    mean = sum(oracle[name].mean for name in NAMES) / 3
    assert logged(trainer, "eval_loss")[-1] == pytest.approx(mean, rel=1e-5)
    assert trainer.model.training  # as evaluation found it


def test_tensorboard_gets_the_loss_of_every_task(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(tmp_path, steps=8, eval_steps=4, report_to=["tensorboard"])
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name in NAMES:
        written = [scalar.value for scalar in events.Scalars(f"train/loss/{name}")]
        assert written == pytest.approx(logged(trainer, f"loss/{name}"))
        assert len(events.Scalars(f"eval/loss/{name}")) == 2


def test_bf16_training_runs_on_the_cpu_and_stays_near_fp32(tmp_path):
    runs = {}
    for bf16 in (False, True):
        trainer = make_trainer(tmp_path / str(bf16), steps=12, bf16=bf16, dropout=0.0)
        trainer.train()
        runs[bf16] = logged(trainer, "loss")
        assert all(p.dtype == torch.float32 for p in bank_tensors(trainer).values())
    assert runs[True] != runs[False]
    assert runs[True] == pytest.approx(runs[False], abs=0.05)


def test_a_plain_lora_trains_on_the_same_mixture_without_task_ids(tmp_path):
    trainer = make_trainer(tmp_path, lora=True, eval_steps=4, dropout=0.2)
    trainer.train()
    names = set(bank_tensors(trainer))
    assert names
    assert all("lora_" in name for name in names)
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    oracle = token_nll(trainer.model, TOKENIZER, tiny_tasks(), EvaluationSettings(split="val", max_length=64))
    for name in NAMES:
        assert logged(trainer, f"eval_loss/{name}")[-1] == pytest.approx(oracle[name].mean, rel=1e-5)
        assert len(logged(trainer, f"loss/{name}")) == 3
    resumed = make_trainer(tmp_path, lora=True, eval_steps=4, dropout=0.2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert equal(bank_tensors(trainer), bank_tensors(resumed))


def test_a_plain_lora_takes_each_row_with_the_weight_of_its_task(tmp_path):
    """The loss it logs is the mean over the tasks, although the model never hears of tasks."""
    trainer = make_trainer(tmp_path, lora=True, steps=1, log_steps=1, dropout=0.0)
    trainer.train()
    entry = trainer.state.log_history[0]
    per_task = [entry[f"loss/{name}"] for name in NAMES]
    assert entry["loss"] == pytest.approx(sum(per_task) / 3, rel=1e-5)


def test_a_mixture_of_the_wrong_length_is_refused_with_the_sum_spelled_out(tmp_path):
    with pytest.raises(ConfigError, match=r"66 rows.* 12 steps of 6 rows \(3 a device × 1 processes × 2 acc.*need 72"):
        make_trainer(tmp_path, accumulate=2, mixture_steps=11)


def test_stopping_counts_evaluations_without_improvement_also_across_its_saved_state():
    class Control:
        should_training_stop = False

    def evaluate(stopping, step, **losses):
        state, control = type("State", (), {"global_step": step}), Control()
        metrics = {"eval_loss": 1.0, **{f"eval_loss/{name}": loss for name, loss in losses.items()}}
        stopping.on_evaluate(None, state, control, metrics)
        return control.should_training_stop

    stopping = TaskEarlyStopping(["a", "b"], patience=2, min_delta=0.1)
    assert not evaluate(stopping, 10, a=2.0, b=2.0, c=1.0)
    assert not evaluate(stopping, 20, a=1.95, b=1.8, c=9.0)  # a falls by less than min_delta
    saved = json.loads(json.dumps(stopping.state()))
    again = TaskEarlyStopping.from_state(saved)
    assert not evaluate(again, 30, a=1.91, b=math.nan, c=9.0)
    assert again.stopped_at == {"a": 30}
    assert not evaluate(again, 40, a=0.1, b=1.0)  # too late for a; b had waited once only
    assert not evaluate(again, 50, b=1.0)
    assert evaluate(again, 60, b=1.0)
    assert again.stopped_at == {"a": 30, "b": 60}
