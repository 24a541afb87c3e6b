"""Onboardings that wait are trained in one process, and each has its own outcome."""

import json
import threading
import time

import pytest

from colora.serving import onboarding
from colora.serving.access import Limits, Tenant
from colora.serving.jobs import Job, Jobs
from colora.serving.onboarding import Onboarded, OnboardingProcess
from colora.serving.store import CoreStore
from tests.helpers.servers import make_bank


@pytest.fixture
def store(tmp_path):
    return CoreStore(make_bank(tmp_path))


class Recorded(OnboardingProcess):
    """A process that trains as the real one, and tells what it was asked for; it can be made to fail."""

    def __init__(self):
        super().__init__(None)
        self.asked, self.fails = [], lambda tasks: False

    def train(self, store, examples, folder):
        self.asked.append(list(examples))
        if self.fails(list(examples)):
            return {}
        return super().train(store, examples, folder)


class Instant(Recorded):
    """One that has everything done at once."""

    def train(self, store, examples, folder):
        self.asked.append(list(examples))
        if self.fails(list(examples)):
            raise OSError("the process was killed")
        return {task: Onboarded(f"{task} is trained", b"core") for task in examples}


def started(store, process, kept):
    jobs = Jobs(lambda: store, lambda task, core, tenant: kept.append((task, core, tenant.name)), None)
    jobs._process = process
    return jobs


def examples(count, word="neu"):
    return "\n".join(json.dumps({"input": f"in {i}", "output": word}) for i in range(count)).encode()


def tenant(name):
    return Tenant(name=name, key_sha256=name * 64, limits=Limits(jobs=None))


def submitted(jobs, asked):
    """Jobs that all wait before the first is taken."""
    with jobs._change:
        return [jobs.submit(owner, task, content) for owner, task, content in asked]


def ended(jobs, seconds=300):
    end = time.monotonic() + seconds
    while any(job.state in ("waiting", "running") for job in jobs):
        assert time.monotonic() < end, jobs
        time.sleep(0.05)


def test_jobs_that_wait_are_one_process_and_each_has_its_own_outcome(store):
    process, kept = Instant(), []
    jobs = started(store, process, kept)
    one, other = tenant("a"), tenant("b")
    asked = [(one, "new-0", examples(4)), (one, "bad", b'{"input": 3}'), (other, "new-1", examples(4))]
    found = submitted(jobs, asked)
    ended(found)
    jobs.close()
    assert process.asked == [["new-0", "new-1"]]
    assert [job.state for job in found] == ["done", "failed", "done"]
    assert kept == [("new-0", b"core", "a"), ("new-1", b"core", "b")]
    assert [found[0].message, found[2].message] == ["new-0 is trained", "new-1 is trained"]
    assert "input" in found[1].message
    assert all(job.content == b"" for job in found)


def test_what_several_fail_at_each_tries_alone(store):
    process, kept = Instant(), []
    process.fails = lambda tasks: "new-1" in tasks
    jobs = started(store, process, kept)
    found = submitted(jobs, [(tenant("a"), f"new-{number}", examples(4)) for number in range(3)])
    ended(found)
    jobs.close()
    assert process.asked == [["new-0", "new-1", "new-2"], ["new-0"], ["new-1"], ["new-2"]]
    assert [job.state for job in found] == ["done", "failed", "done"]
    assert found[1].message == "the process was killed"


def test_a_server_that_ends_says_what_was_not_onboarded(store, caplog):
    process, kept = Instant(), []
    jobs = started(store, process, kept)
    holding, begun = threading.Event(), threading.Event()
    process.fails = lambda tasks: begun.set() or not holding.wait(60)
    first = jobs.submit(tenant("a"), "new-0", examples(4))
    assert begun.wait(60)
    jobs.submit(tenant("a"), "new-1", examples(4))
    ending = threading.Thread(target=jobs.close)
    ending.start()
    while not jobs._closing:
        time.sleep(0.01)
    holding.set()
    ending.join(60)
    assert first.state == "done"  # it was as good as ready
    assert caplog.messages == ["not onboarded, because the server ends (send the examples again): new-1"]


@pytest.mark.slow
def test_the_outcome_of_one_alone_is_plain_sentences_and_numbers(store):
    process = Recorded()
    process.fails = lambda tasks: len(tasks) > 1  # each by itself
    jobs = started(store, process, [])
    found = submitted(jobs, [(tenant("a"), "new", examples(4)), (tenant("a"), "long", examples(2, "neu" * 60))])
    ended(found)
    jobs.close()
    done, failed = found
    assert [job.state for job in found] == ["done", "failed"]
    numbers = done.numbers
    assert numbers.keys() == set(onboarding.NUMBERS)
    assert (numbers["examples"], numbers["validation"]) == (4, None)
    told = f"{numbers['before']:.3f} nats per token without adapter, {numbers['at_start']:.3f} at the start, "
    assert done.message.startswith(f"4 examples: {told}{numbers['after']:.3f} trained. ")
    assert f"The coverage is {numbers['coverage']:.2%} of" in done.message
    for job in found:
        assert not any(part in job.message for part in ("\n\n", "│", "…", "bank: ", "/after", "/new", "/tmp", "--"))
    assert "expected at most 96 tokens" in failed.message
    assert failed.numbers == {}


@pytest.mark.parametrize(("start", "told"), [("core of acme-1", "core of another task"), ("core of mine", None)])
def test_a_job_does_not_tell_the_names_of_tasks_of_others(store, start, told):
    jobs = started(store, Instant(), [])
    jobs.close()
    owner = Tenant(name="a", key_sha256="a" * 64, tasks=["mine*"], limits=Limits(jobs=None))
    job = Job("1", owner, "mine-2")
    jobs._end(job, Onboarded("trained", b"core", {"start": start, "after": 1.0}))
    assert job.numbers == {"start": told or start, "after": 1.0}


def test_training_that_harms_and_little_coverage_are_told():
    row = {"outcome": "added", "examples": 4, "before": 3.0, "at_start": 2.0, "after": 2.5, "validation": 2.75}
    told = onboarding._told({**row, "enough": False, "coverage": 0.001})
    assert "2.500 trained, 2.750 on its validation examples. Training made the examples less likely" in told
    assert told.endswith("little, so that a bank trained with this task would serve it better.")


@pytest.mark.slow
def test_the_process_trains_several_and_tells_each_its_own(store, tmp_path):
    process, kept = Recorded(), []
    jobs = started(store, process, kept)
    asked = [
        (tenant("a"), "new-0", examples(4)),
        (tenant("b"), "long", examples(2, "neu" * 60)),
        (tenant("a"), "new-1", examples(6)),
    ]
    found = submitted(jobs, asked)
    ended(found)
    jobs.close()
    assert process.asked == [["new-0", "long", "new-1"]]
    assert [job.state for job in found] == ["done", "failed", "done"]
    assert [(task, owner) for task, _, owner in kept] == [("new-0", "a"), ("new-1", "a")]
    for job, (task, _, _) in zip((found[0], found[2]), kept, strict=True):
        assert job.task == task
        assert "nats per token without adapter" in job.message
        assert "coverage" in job.message or "subspace" in job.message
        assert job.numbers["after"] < job.numbers["before"]
    assert "expected at most 96 tokens" in found[1].message
    for job in found:
        assert not any(other.task in job.message for other in found if other is not job)
        assert onboarding.__name__ not in job.message
        assert "/tmp" not in job.message
