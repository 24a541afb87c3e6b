"""Banks inside vLLM, in real processes of it: every row is answered as transformers answers it with its task's core."""

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.engine.answering import answers
from tests.vllm.engine.settings import TASKS, llama, make, phi3, qwen2, requests


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make(tmp_path_factory.mktemp("llama"), llama)


def assert_answers(setting, asked, **options):
    found = answers(setting.base, setting.bank, asked, **options)
    wrong = [
        (task, prompt)
        for one, got in zip(asked, found, strict=True)
        for (task, prompt), tokens in zip(one, got, strict=True)
        if tokens != setting.expected(task, prompt, len(tokens))
    ]
    assert not wrong, f"{len(wrong)} of {sum(map(len, asked))} differ: {wrong[:3]}"


def test_tasks_and_base_in_one_batch(small):
    assert_answers(small, [requests(64)], max_loras=6)
    tasks = {tuple(small.expected(task, [5, 6, 7], 12)) for task in (*TASKS, None)}
    assert len(tasks) == len(TASKS) + 1  # or the test above could not fail


def test_more_tasks_than_slots_wait_and_none_has_anothers_core(small):
    assert_answers(small, [requests(48), requests(48, seed=1)], max_loras=2, max_cpu_loras=2, max_num_seqs=8)


def test_two_versions_of_a_task_in_one_batch_have_each_their_core(small):
    """vLLM tells adapters apart by name alone in places; a task that has just changed has two of one name."""
    versions = [f"moving={task}" for task in TASKS[:3]]
    asked = requests(24, tasks=(*versions, "task-5", None))
    found = answers(small.base, small.bank, [asked], max_loras=2, max_cpu_loras=2, max_num_seqs=8)
    cores = [None if task is None else task.rpartition("=")[2] for task, _ in asked]
    assert found == [[small.expected(core, prompt, 12) for core, (_, prompt) in zip(cores, asked, strict=True)]]


@pytest.mark.parametrize("kind", [qwen2, phi3], ids=lambda kind: kind.__name__)
def test_models_whose_layers_are_packed_in_other_ways(tmp_path, kind):
    assert_answers(make(tmp_path, kind), [requests(21)])


def test_a_bank_on_some_layers_alone(tmp_path):
    assert_answers(make(tmp_path, llama, target_modules=["q_proj", "v_proj", "down_proj"]), [requests(21)])


def test_compiled_and_with_a_newer_bank(tmp_path):
    setting = make(tmp_path, llama)
    newer = make(tmp_path / "newer", llama, seed=3)
    asked = [requests(21), requests(9, seed=1)]
    found = answers(setting.base, setting.bank, [asked[0], str(newer.bank), asked[1]], enforce_eager=False)
    assert found[0] == [setting.expected(task, prompt, 12) for task, prompt in asked[0]]
    assert found[1] == [newer.expected(task, prompt, 12) for task, prompt in asked[1]]


@pytest.mark.parametrize("kind", [llama, qwen2])
def test_two_processes_that_share_the_model(tmp_path, kind):
    assert_answers(make(tmp_path, kind), [requests(21)], tensor_parallel_size=2)
