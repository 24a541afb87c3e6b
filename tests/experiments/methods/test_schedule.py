"""Where a step is in its training, and how long stages are."""

from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.schedule import Moment, stage_lengths


def test_stages():
    """About the share asked for, at least one step or round, and no more than there are."""
    assert stage_lengths(50, None) == (50,)
    assert [stage_lengths(50, first) for first in (0.0, 0.5, 1.0)] == [(1, 49), (25, 25), (50, 0)]
    assert [stage_lengths(50, first, 10) for first in (0.0, 0.34, 0.5, 1.0)] == [(10, 40), (20, 30), (20, 30), (50, 0)]
    assert stage_lengths(2, 0.5, 3) == (2, 0)


def test_steps_are_counted_in_stages_and_in_rounds():
    moments = [Moment(step, (3, 5), 3, {}) for step in range(8)]
    assert [one.stage for one in moments] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [one.stage_step for one in moments] == [0, 1, 2, 0, 1, 2, 3, 4]
    assert [one.round_number for one in moments] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [one.local_step for one in moments] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [one.round_steps for one in moments] == [3, 3, 3, 3, 3, 3, 2, 2], "the last round is shorter"


def turns(method, steps, local_steps, **options):
    given = METHODS[method].with_defaults(options)
    stages = stage_lengths(steps, given["first"] if METHODS[method].staged else None, local_steps)
    return [METHODS[method].schedule(Moment(step, stages, local_steps, given)) for step in range(steps)]


def picture(method, steps, local_steps, **options):
    """For each step, whether the first (1) or the second (2) term moves, and which terms act."""
    found = []
    for turn in turns(method, steps, local_steps, **options):
        moves = "".join(str(n + 1) for n, part in enumerate(("A", "A'")) if part not in turn.frozen)
        found.append(moves + ":" + "".join(str(n + 1) for n in (0, 1) if n not in turn.silent))
    return " ".join(found)


def test_two_terms_take_turns():
    """FedDPA's first round is the global LoRA's alone; Ditto's models never act together; the rest in two stages."""
    assert picture("feddpa", 7, 3, own_share=0.7) == "1:1 1:1 1:1 2:12 2:12 1:1 1:1"
    assert picture("ditto", 7, 3, own_share=0.7) == "2:2 2:2 1:1 2:2 2:2 1:1 1:1"
    assert picture("feddpa-f", 7, 3) == "1:1 1:1 1:1 2:12 2:12 2:12 2:12"
    assert picture("oppu", 4, 1) == "1:1 1:1 2:12 2:12"
