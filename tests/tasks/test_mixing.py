"""The mixture of tasks: shares, passes, repeatability and speed."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colora.errors import ConfigError
from colora.tasks import mixing
from colora.tasks.mixing import TaskMixture


def tasks_of(sampler: TaskMixture, sizes: list[int]) -> np.ndarray:
    """The task of every row, (steps, batch size)."""
    indices = np.fromiter(sampler, dtype=np.int64, count=len(sampler))
    return np.searchsorted(np.cumsum(sizes), indices, side="right").reshape(sampler.steps, sampler.batch_size)


def test_uniform_batches_hold_each_task_equally_often(way):
    sizes = [3, 1000, 1, 50, 7, 20]
    for batch in tasks_of(TaskMixture(sizes, batch_size=12, steps=30), sizes):
        assert np.bincount(batch, minlength=6).tolist() == [2] * 6


@pytest.fixture(params=["laid out", "by size"])
def way(request, monkeypatch):
    """How batches are drawn: of few tasks, and of very many."""
    if request.param == "by size":
        monkeypatch.setattr(mixing, "MOST_LAID_OUT", 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any), batch=st.integers(1, 10),
    steps=st.integers(0, 12), seed=st.integers(0, 9), temperature=st.floats(0.01, 100),
    policy=st.sampled_from(["uniform", "proportional", "temperature"]),
)  # fmt: skip
def test_every_batch_keeps_the_shares_and_every_task_goes_through_its_examples(
    way, sizes, batch, steps, seed, temperature, policy
):
    sampler = TaskMixture(sizes, batch_size=batch, steps=steps, policy=policy, temperature=temperature, seed=seed)
    order = list(sampler)
    assert len(order) == len(sampler) == batch * steps
    assert order == list(sampler)
    assert all(0 <= index < sum(sizes) for index in order)

    exponent = {"uniform": 0, "proportional": 1, "temperature": 1 / temperature}[policy]
    largest = max(sizes)
    weights = np.array([(n / largest) ** exponent if n else 0.0 for n in sizes])
    due = weights / weights.sum() * batch
    for row in tasks_of(sampler, sizes):
        counts = np.bincount(row, minlength=len(sizes))
        assert np.all(np.abs(counts - due) < 1 + 1e-9)

    # In every pass over a task each of its examples comes once.
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        own = [index for index in order if start <= index < start + size]
        for begin in range(0, len(own), max(size, 1)):
            assert len(set(own[begin : begin + size])) == len(own[begin : begin + size])


def test_longer_runs_begin_like_shorter_ones_and_seeds_differ(way):
    sizes = [5, 8, 2]
    short, long = (list(TaskMixture(sizes, batch_size=4, steps=steps)) for steps in (5, 9))
    assert long[: len(short)] == short
    assert list(TaskMixture(sizes, batch_size=4, steps=5, seed=1)) != short


def test_more_tasks_than_rows_are_visited_equally_often(way):
    sizes = [1 + i % 5 for i in range(40)]
    counts = np.bincount(tasks_of(TaskMixture(sizes, batch_size=4, steps=3000), sizes).ravel(), minlength=40)
    # 300 visits each are due; a row of a batch is one draw in forty, so four deviations are about 66.
    assert counts.sum() == 12_000
    assert np.abs(counts - 300).max() < 66


def test_proportional_and_temperature_shares(way):
    sizes = [100, 400, 0]
    for options, due in (
        ({"policy": "proportional"}, [0.2, 0.8, 0]),
        ({"policy": "temperature", "temperature": 2.0}, [1 / 3, 2 / 3, 0]),
    ):
        counts = np.bincount(
            tasks_of(TaskMixture(sizes, batch_size=7, steps=600, **options), sizes).ravel(), minlength=3
        )
        assert counts / counts.sum() == pytest.approx(due, abs=0.02)


def test_rows_within_a_batch_are_shuffled(way):
    sizes = [300, 100]
    batches = tasks_of(TaskMixture(sizes, batch_size=4, steps=400, policy="proportional"), sizes)
    places = Counter(batches.argmax(axis=1).tolist())  # of the only row of the small task
    assert all(60 < places[place] < 140 for place in range(4))


def test_every_pair_of_tasks_meets_in_a_batch(way):
    sizes = [5] * 12
    pairs = {frozenset(batch) for batch in tasks_of(TaskMixture(sizes, batch_size=2, steps=2000), sizes).tolist()}
    assert len(pairs) == 12 * 11 / 2


def test_each_pass_has_its_own_order(way):
    order = list(TaskMixture([20], batch_size=20, steps=2))
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]


def test_low_temperatures_do_not_overflow():
    sizes = [10, 10_000_000]
    sampler = TaskMixture(sizes, batch_size=4, steps=1, policy="temperature", temperature=1e-3)
    assert all(index >= 10 for index in sampler)


def test_many_tasks_are_quick():
    sizes = [16] * 100_000
    start = time.perf_counter()
    assert len(list(itertools.islice(TaskMixture(sizes, batch_size=32, steps=100), 3200))) == 3200
    assert time.perf_counter() - start < 10


class Counted:
    """A generator that notes how many numbers are asked of it."""

    def __init__(self, seed):
        self._rng, self.asked = np.random.default_rng(seed), 0

    def permutation(self, of):
        self.asked += of if isinstance(of, int) else len(of)
        return self._rng.permutation(of)

    def choice(self, of, size, replace):
        assert of <= 10_000 or size < of // 50  # where numpy draws one by one
        self.asked += size
        return self._rng.choice(of, size, replace=replace)

    def random(self):
        return self._rng.random()


def test_a_step_of_a_million_tasks_draws_what_its_rows_and_the_numbers_of_examples_need():
    zipf = np.maximum(1, (200_000 / np.arange(1, 1_000_001)).astype(int))
    drawn, rng = TaskMixture(zipf, batch_size=8, steps=1, policy="proportional")._drawn, Counted(0)
    for _ in range(50):
        drawn.batch(rng)
    assert rng.asked <= 50 * (len(np.unique(zipf)) + 16)
    assert len(np.unique(zipf)) < 1000


def test_of_very_many_tasks_each_comes_as_often_as_it_has_examples():
    zipf = np.maximum(1, (20_000 / np.arange(1, 20_001)).astype(int))
    mixture = TaskMixture(zipf, batch_size=64, steps=4000, policy="proportional")
    counts = np.bincount(np.concatenate(list(mixture.tasks())), minlength=len(zipf))
    due = zipf / zipf.sum() * 64 * 4000
    for low, high in ((1, 1), (2, 3), (4, 20), (21, 1000), (1001, 20_000)):
        group = (zipf >= low) & (zipf <= high)
        assert counts[group].sum() == pytest.approx(due[group].sum(), rel=0.01)
        # A draw is of a share below one: its variance is at most its mean.
        assert ((counts[group] - due[group]) ** 2).mean() < 1.2 * due[group].mean()


def test_the_order_of_examples_does_not_depend_on_how_many_orders_are_kept(monkeypatch):
    sizes = [3, 50, 7, 20, 9]
    expected = list(TaskMixture(sizes, batch_size=4, steps=60))
    monkeypatch.setattr(mixing, "ORDERS_KEPT", 1)
    assert list(TaskMixture(sizes, batch_size=4, steps=60)) == expected


def test_the_tasks_of_a_mixture_are_those_of_its_examples(way):
    sizes = [3, 50, 7, 20, 9]
    mixture = TaskMixture(sizes, batch_size=4, steps=60, policy="proportional")
    assert np.array_equal(np.stack(list(mixture.tasks())), tasks_of(mixture, sizes))


def test_all_arguments_out_of_range_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        TaskMixture([0], batch_size=0, steps=-1, policy="even", temperature=0, seed=-1)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "policy", "batch_size", "steps", "temperature", "seed", "sizes"
    ]  # fmt: skip
    assert "batch_size: expected at least 1, found 0" in str(caught.value)
