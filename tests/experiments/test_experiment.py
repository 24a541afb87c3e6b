"""Experiments: which trials they mean, and how each fault is told."""

import json
from pathlib import Path

import pytest
import yaml

from colora.errors import ConfigError
from colora.experiments.config import Experiment, MethodSettings
from colora.experiments.load import load_experiment
from colora.experiments.methods.registry import METHODS
from colora.experiments.plan import planned_trials
from colora.tasks.families.named import GROUPS
from colora.training.config_file import field_rows
from tests.helpers.run_files import cli

SHIPPED = sorted((Path(__file__).parents[2] / "benchmarks" / "compare").glob("*.yaml"))
MINIMAL = {"name": "small", "groups": {"mine": ["date-es", "date-pt"]}, "methods": {"local": {"lr": 0.01}}}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "small.yaml"


def load(file, overrides=(), **changes):
    file.write_text(yaml.safe_dump(MINIMAL | changes), encoding="utf-8")
    return load_experiment(file, overrides)


def refused(file, overrides=(), **changes):
    with pytest.raises(ConfigError) as caught:
        load(file, overrides, **changes)
    assert str(file) in str(caught.value)
    return caught.value.faults


# ---- what is meant -----------------------------------------------------------------------------------------------


def test_a_minimal_experiment_is_one_trial_with_every_default(file):
    (trial,) = planned_trials(load(file))
    assert (trial.method, trial.group, trial.tasks, trial.regime) == (
        "local",
        "mine",
        ("date-es", "date-pt"),
        "implicit",
    )
    assert (trial.base, trial.dtype, trial.first_layer, trial.split) == ("smollm2", "fp32", 0, "test")
    assert (trial.rank, trial.alpha, trial.steps, trial.rows, trial.local_steps) == (8, 8.0, 60, 2, 10)
    assert (trial.lr, trial.core_lr, trial.options, trial.seed) == (0.01, None, {}, 0)
    assert (trial.test, trial.generate, trial.max_length, trial.max_new_tokens) == (24, 12, 64, 32)


def test_the_order_of_trials_gives_the_first_seed_whole(file):
    experiment = load(
        file, groups=["similar-8", "half-8"], tasks_used=[1, 2], regimes=["implicit", "explicit"], examples=[4, 8],
        seeds=[3, 1], rank=[2, 4], methods=["base", "local", "colora"],
    )  # fmt: skip
    trials = planned_trials(experiment)
    # The base model has no rank, so it runs once where the others run with two.
    assert len(trials) == 2 * 2 * 2 * 2 * 2 * (1 + 2 + 2)
    places = [(c.seed, c.regime, c.group, len(c.tasks), c.examples, c.rank, c.method) for c in trials]
    methods = ["base", "local", "colora"]
    expected = [
        (seed, regime, group, size, examples, rank, method)
        for seed in (3, 1)
        for regime in ("implicit", "explicit")
        for group in ("similar-8", "half-8")
        for size in (1, 2)
        for examples in (4, 8)
        for rank in (2, 4)
        for method in methods
        if (method, rank) != ("base", 4)
    ]
    assert places == expected
    assert {c.alpha - c.rank for c in trials} == {0.0}
    assert trials[5].tasks == GROUPS["similar-8"][: len(trials[5].tasks)]
    assert len({trial.key for trial in trials}) == len(trials)


def test_settings_of_a_method_replace_those_of_the_experiment(file):
    methods = {
        "base": None,
        "colora": [{"lr": 0.1, "core_lr": 0.2}, {"lr": 0.3, "rank": 2, "alpha": 6}],
        "colora-alternating": {"options": {"turn": 3}},
        "fedit": {"local_steps": 4},
    }
    experiment = load(
        file, methods=methods, lr=0.5, core_lr=0.6, alpha=5, steps=8, local_steps=2, rank=[3, 4], first_layer=1,
        dtype="bf16", warmup_steps=3,
    )  # fmt: skip
    trials = planned_trials(experiment)
    assert {trial.warmup_steps for trial in trials} == {3}
    shown = [(c.method, c.rank, c.alpha, c.lr, c.core_lr, c.local_steps, c.options) for c in trials]
    assert shown == [
        ("base", 3, 5.0, 0.5, None, 10, {}),
        ("colora", 3, 5.0, 0.1, 0.2, 10, {}),
        ("colora", 2, 6.0, 0.3, 0.6, 10, {}),
        ("colora-alternating", 3, 5.0, 0.5, 0.6, 10, {"turn": 3.0}),
        ("fedit", 3, 5.0, 0.5, None, 4, {}),
        ("colora", 4, 5.0, 0.1, 0.2, 10, {}),
        ("colora-alternating", 4, 5.0, 0.5, 0.6, 10, {"turn": 3.0}),
        ("fedit", 4, 5.0, 0.5, None, 4, {}),
    ]
    assert {(c.first_layer, c.dtype, c.steps) for c in trials} == {(1, "bf16", 8)}


def test_a_method_may_be_kept_to_some_places(file):
    groups = {"one": ["date-es"], "two": ["date-pt"]}
    methods = {
        "local": None,
        "pooled": {"groups": ["two"], "examples": [4]},
        "base": {"regimes": ["explicit"], "groups": ["one"], "examples": [8]},
    }
    trials = planned_trials(
        load(file, groups=groups, methods=methods, examples=[4, 8], regimes=["implicit", "explicit"])
    )
    found = {m: [(c.regime, c.group, c.examples) for c in trials if c.method == m] for m in methods}
    assert len(found["local"]) == 8
    assert found["pooled"] == [("implicit", "two", 4), ("explicit", "two", 4)]
    assert found["base"] == [("explicit", "one", 8)]


def test_trials_do_not_depend_on_what_their_method_does_not_know(file):
    (plain,) = planned_trials(load(file))
    (other,) = planned_trials(load(file, name="other", core_lr=0.3, local_steps=6, note="x", grid={"local": "lr 0.01"}))
    assert other.key == plain.key


def test_groups_by_name_and_one_value_for_a_list(file):
    assert load(file, groups="scan-4").groups == {"scan-4": list(GROUPS["scan-4"])}
    assert list(load(file, groups=["scan-4", "half-8"]).groups) == ["scan-4", "half-8"]
    assert load(file, groups={"mine": "scan-4"}).groups == {"mine": list(GROUPS["scan-4"])}
    experiment = load(file, seeds=7, examples=4, rank=2, regimes="explicit", tasks_used=1)
    assert (experiment.seeds, experiment.examples, experiment.rank) == ([7], [4], [2])
    assert (experiment.regimes, experiment.tasks_used) == (["explicit"], [1])


def test_overrides(file):
    experiment = load(file, ["seeds=[4, 5]", "methods.local.lr=1e-3", "groups.mine=scan-4", "steps=7"])
    assert (experiment.seeds, experiment.methods["local"][0].lr, experiment.steps) == ([4, 5], 1e-3, 7)
    assert experiment.groups == {"mine": list(GROUPS["scan-4"])}


def test_unequal_budgets_may_be_allowed_and_the_base_model_has_none(file):
    methods = {"local": {"steps": 30}, "colora": {}, "base": {"steps": 1}}
    assert len(planned_trials(load(file, methods=methods, allow_unequal_steps=True))) == 3
    assert len(planned_trials(load(file, methods={"local": {}, "base": {"steps": 1}}))) == 2
    assert len(planned_trials(load(file, methods={"local": {"steps": 30}, "colora": {"steps": 30}}))) == 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_experiments_of_the_project_can_be_read(path):
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert planned_trials(experiment)


def test_the_experiment_of_the_page_can_be_read(file):
    page = (Path(__file__).parents[2] / "docs" / "comparisons.md").read_text(encoding="utf-8")
    file.write_text(page.split("## Compare methods")[1].split("```yaml")[1].split("```")[0], encoding="utf-8")
    experiment = load_experiment(file)
    assert experiment.methods["pooled"] == [MethodSettings(lr=1e-3), MethodSettings(lr=4e-3)]
    assert len(planned_trials(experiment)) == 2 * 2 * 2 * 3 * 5 + 2 * 3


def test_there_are_experiments():
    assert len(SHIPPED) >= 7


def test_tuning_uses_no_test_examples_and_no_seed_of_a_result():
    (path,) = [one for one in SHIPPED if one.stem == "tuning"]
    tuning = load_experiment(path)
    assert tuning.split == "val"
    used = {seed for one in SHIPPED if (other := load_experiment(one)).split == "test" for seed in other.seeds}
    assert not used & set(tuning.seeds)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seedz": [1]}, "seedz: no such field; did you mean 'seeds'?"),
        ({"methods": {"local": {"lrr": 1}}}, "methods.local.lrr: no such field; did you mean 'lr'?"),
        ({"methods": {"local": [{"lr": 0}]}}, "methods.local.0.lr: expected greater than 0, found 0"),
        ({"methods": {"local": {"lr": "fast"}}}, "methods.local.lr: expected a valid number"),
        (
            {"methods": {"colorra": {}}},
            "methods: no method 'colorra'; did you mean 'colora'?; there are base, in-context",
        ),
        ({"methods": {}}, "methods: expected at least one, found none"),
        ({"methods": {"local": []}}, "methods.local: expected at least one, found none"),
        ({"methods": 3}, "methods: expected a valid dictionary, found 3"),
        ({"methods": ["local", "local"]}, "methods: expected each once, found local more than once"),
        ({"methods": {"local": 3}}, "methods.local: expected a mapping, found int 3"),
        ({"groups": "similar-9"}, "groups: no group 'similar-9'; did you mean 'similar-8'?; there are similar-8, half"),
        ({"groups": ["half-8", "half-8"]}, "groups: expected each once, found half-8 more than once"),
        ({"groups": {"half-8": ["date-es"]}}, "'half-8' is the name of a known group with other tasks"),
        ({"groups": {"mine": ["date-es", "date-es"]}}, "groups.mine: expected each once, found date-es more than once"),
        ({"groups": {"mine": []}}, "groups.mine: expected at least one, found none"),
        ({"groups": {"a/b": ["date-es"]}}, "groups.a/b: expected 1 to 100 letters, digits"),
        ({"groups": [["date-es"]]}, "groups: expected names of groups, found"),
        ({"groups": {"mine": ["datum-es"]}}, "groups.mine: no task 'datum-es'; names of tasks begin with date-"),
        ({"groups": []}, "groups: expected at least one, found none"),
        ({"name": "a/b"}, "name: expected 1 to 100 letters, digits"),
        ({"seeds": []}, "seeds: expected at least one, found none"),
        ({"seeds": [1, 2, 1]}, "seeds: expected each once, found 1 more than once"),
        ({"seeds": -1}, "seeds: expected greater than or equal to 0, found -1"),
        ({"examples": [4, 0]}, "examples.1: expected greater than or equal to 1, found 0"),
        ({"rank": []}, "rank: expected at least one, found none"),
        ({"regimes": ["implied"]}, "regimes.0: expected 'implicit' or 'explicit', found 'implied'"),
        ({"tasks_used": [1, 3]}, "tasks_used: expected at most the 2 tasks of group 'mine', found 3"),
        ({"split": "train"}, "split: expected 'val' or 'test', found 'train'"),
        ({"generate": 30}, "generate: expected at most test (24), found 30"),
        ({"steps": 4, "warmup_steps": 4}, "methods.local: expected more steps than warmup_steps, found 4 and 4"),
        ({"steps": 0}, "steps: expected greater than or equal to 1, found 0"),
        ({"methods": {"local": {"examples": [9]}}}, "some of the experiment's examples (16), found 9"),
        (
            {"methods": {"local": [{}, {"groups": ["her"]}]}},
            "methods.local.1.groups: expected some of the experiment's",
        ),
        ({"methods": {"local": {"regimes": []}}}, "methods.local.regimes: expected at least one, found none"),
        ({"methods": {"local": {"core_lr": 0.1}}}, "methods.local.core_lr: this method has no cores with a rate"),
        ({"methods": {"local": {"local_steps": 5}}}, "methods.local.local_steps: a method that is not federated"),
        ({"methods": {"local": {"options": {"turn": 1}}}}, "methods.local.options: unknown option 'turn'"),
        ({"methods": {"fedit": {"local_steps": 7}}}, "steps to be a multiple of local_steps, found 60 and 7"),
        ({"methods": {"local": [{"lr": 0.002}, {}]}}, "methods.local: two variants give the same trial"),
        ({"grid": {"pooled": "x"}}, "grid.pooled: expected a method of this experiment: local"),
    ],
)
def test_each_fault_is_told_with_its_place(file, changes, fault):
    (told,) = refused(file, **changes)
    assert fault in told


def test_unequal_budgets_are_refused_with_each_budget(file):
    (told,) = refused(file, methods={"local": {"steps": 30}, "colora": {}, "pooled": {"rows": 4}, "base": None})
    for part in (
        "local: 30 steps of 2 rows", "colora: 60 steps of 2 rows", "pooled: 60 steps of 4 rows", "allow_unequal_steps"
    ):  # fmt: skip
        assert part in told
    assert "base" not in told


def test_all_faults_are_shown_at_once(file):
    assert len(refused(file, steps=0, seeds=[], split="x", extra=1)) == 4
    assert len(refused(file, generate=99, tasks_used=9, methods={"local": {"core_lr": 1.0}})) == 3


def test_what_is_missing_and_what_is_no_experiment(file):
    file.write_text("steps: 3", encoding="utf-8")
    with pytest.raises(ConfigError, match="3 faults") as caught:
        load_experiment(file)
    assert caught.value.faults == ["name: missing", "groups: missing", "methods: missing"]
    file.write_text("- 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a mapping with at least 'name', 'groups' and 'methods'"):
        load_experiment(file)
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(file.with_name("none.yaml"))


# ---- the list of fields ------------------------------------------------------------------------------------------


def test_schema_lists_every_field_of_an_experiment():
    keys = [*Experiment.model_fields, *(f"methods.NAME.{name}" for name in MethodSettings.model_fields)]
    rows = [*field_rows(Experiment), *field_rows(MethodSettings, "methods.NAME.")]
    assert [row[0] for row in rows] == keys
    assert [row for row in rows if not all(row)] == []
    result = cli("schema", "--experiment")
    assert result.exit_code == 0
    assert [key for key in keys if f" {key} " not in result.stdout] == []
    schema = json.loads(cli("schema", "--experiment", "--json").stdout)
    assert set(schema["required"]) == {"name", "groups", "methods"}


def test_every_method_can_be_in_an_experiment(file):
    assert len(planned_trials(load(file, methods=list(METHODS)))) == len(METHODS)


# ---- settings of a group ------------------------------------------------------------------------------------------


def test_a_group_may_need_other_rows_and_lengths_for_every_method(file):
    experiment = load(
        file,
        groups=["similar-8", "half-8"],
        methods=["local", "colora"],
        by_group={"half-8": {"rows": 1, "max_length": 160, "generate": 3}},
    )
    found = {(one.group, one.rows, one.max_length, one.generate, one.steps) for one in planned_trials(experiment)}
    assert found == {("similar-8", 2, 64, 12, 60), ("half-8", 1, 160, 3, 60)}


def test_the_settings_of_a_group_are_checked_as_the_experiments_own(file):
    faults = refused(
        file,
        by_group={"other": {"rows": 1}, "mine": {"generate": 30, "steps": 25}},
        methods={"fedit": {}},
        warmup_steps=5,
    )
    assert faults == [
        "by_group.mine.generate: expected at most test (24), found 30",
        "by_group.other: expected a group of this experiment: mine",
        "methods.fedit: expected steps to be a multiple of local_steps, found 25 and 10",
    ]


def test_variants_may_differ_in_their_prompt(file):
    experiment = load(file, prompt="qa", methods={"local": [{}, {"prompt": "arrow"}, {"prompt": "auto"}]})
    assert [one.prompt for one in planned_trials(experiment)] == ["qa", "arrow", "auto"]
    assert refused(file, methods={"local": {"prompt": "{input}"}})[0].startswith(
        "methods.local.prompt: expected {output}"
    )


def test_a_prompt_that_is_no_template_is_told(file):
    assert refused(file, prompt="Q: {input}") == ["prompt: expected {output} once, found it 0 times in 'Q: {input}'"]
