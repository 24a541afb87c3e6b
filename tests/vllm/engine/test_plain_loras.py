"""Tasks as plain LoRAs in stock vLLM, as `colora export` writes them."""

import pytest

from colora.bank.export import export_loras
from colora.bank.load import load_bank

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from tests.vllm.engine.answering import answers
from tests.vllm.engine.settings import TASKS, llama, make, requests

STOCK = {"environment": {"COLORA_BANK": ""}, "max_loras": 6}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make(tmp_path_factory.mktemp("llama"), llama)


@pytest.fixture(scope="module")
def folders(setting, tmp_path_factory):
    model, _, _ = load_bank(setting.bank)
    return export_loras(model, tmp_path_factory.mktemp("loras"))


def asked_of(folders, asked):
    return [(None if task is None else str(folders[task]), prompt) for task, prompt in asked]


def test_tasks_as_plain_loras_in_one_batch(setting, folders):
    asked = requests(36, tasks=TASKS)
    found = answers(setting.base, setting.bank, [asked_of(folders, asked)], **STOCK)
    assert found == [[setting.expected(task, prompt, 12) for task, prompt in asked]]


def test_rows_without_an_adapter_beside_plain_loras_are_wrong_on_a_cpu(setting, folders):
    """vLLM's own fault (its pull request 48421): if this fails, docs/serving.md has to tell that it is mended."""
    asked = requests(28, tasks=(*TASKS, None))
    found = answers(setting.base, setting.bank, [asked_of(folders, asked)], **STOCK)[0]
    right = [got == setting.expected(task, prompt, 12) for (task, prompt), got in zip(asked, found, strict=True)]
    assert all(good for good, (task, _) in zip(right, asked, strict=True) if task is not None)
    assert not all(good for good, (task, _) in zip(right, asked, strict=True) if task is None)
