"""The one loader: folders and hub ids, device, dtype, prompts. Arguments without effect are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

import asyncthink
from asyncthink import Decoder, ForkJoinSampler, SamplingParams
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.saved_prompts import saved_prompts
from asyncthink.model import auto_dtype
from asyncthink.model import files as model_files
from asyncthink.model.files import device_for, dtype_for, load_network, load_tokenizer
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.prompts import DEFAULT_INSTRUCTIONS, PromptFormat
from asyncthink.train.loading import ModelOptions, load
from untrained import PROMPTS, save_untrained

HUB_ID = "acme/tiny"
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OLD = {torch.float32: 55.0, torch.bfloat16: 7.0, torch.float16: 6.0}
NEW = {torch.float32: 90.0, torch.bfloat16: 190.0, torch.float16: 20.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without prompts and without a chat template."""
    return save_untrained(tmp_path_factory.mktemp("plain"), prompts=None)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("chatty"), prompts=None, chat_template=CHAT)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, in offline mode, with two revisions of a model: "main" has no prompts, "tuned" has."""
    cache = tmp_path / "hub"
    repository = cache / "models--acme--tiny"
    for branch, commit, prompts in (("main", "0" * 40, None), ("tuned", "1" * 40, PROMPTS)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        save_untrained(snapshot, prompts=prompts, chat_template=CHAT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository


def rates(monkeypatch: pytest.MonkeyPatch, given: dict[torch.dtype, float]) -> None:
    monkeypatch.setattr(auto_dtype, "_product_rate", lambda dtype, threads: given[dtype])


# -- prompts ------------------------------------------------------------------------------------------------------


def test_every_way_in_finds_the_same_prompts(chatty: Path, plain: Path) -> None:
    """By path, with a live model, with a Decoder, by the command line's loader and in training."""
    for folder in (chatty, plain):
        tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder)
        decoder = Decoder(model, num_pages=16)
        expected = prompts_for(tokenizer, None)
        assert ForkJoinSampler(folder, num_pages=16).prompts == expected
        assert ForkJoinSampler(model, tokenizer, num_pages=16).prompts == expected
        assert ForkJoinSampler(decoder, tokenizer).prompts == expected
        assert LoadedModel.load(folder, num_pages=16).sampler().prompts == expected
        assert load(ModelOptions(str(folder))).prompts == expected


def test_the_question_is_a_turn_of_the_models_own_chat(chatty: Path) -> None:
    sampler = ForkJoinSampler(chatty, num_pages=64, mode="sequential")
    (episode,) = sampler.generate(["2 from 1 1"], SamplingParams(max_tokens=1))
    drawn = episode.traces[0].sampled.index(True)
    text = sampler.tokenizer.decode(episode.traces[0].tokens[:drawn])
    expected = load_tokenizer(chatty).apply_chat_template(
        [{"role": "system", "content": DEFAULT_INSTRUCTIONS["solo"]}, {"role": "user", "content": "2 from 1 1"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == sampler.tokenizer.decode(sampler.tokenizer(expected, add_special_tokens=False)["input_ids"])
    assert sampler.explain()["prompts"] == "default, in the model's chat template"


def test_prompts_that_are_given_count(chatty: Path) -> None:
    sampler = ForkJoinSampler(chatty, num_pages=16, prompts=PROMPTS)
    assert (sampler.prompts, sampler.explain()["prompts"]) == (PROMPTS, "given")


# -- the hub ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("revision", "source"), [(None, "default"), ("tuned", "asyncthink.json"), ("1" * 40, "async")])
def test_a_hub_id_in_offline_mode(hub: Path, revision: str | None, source: str) -> None:
    sampler = ForkJoinSampler(HUB_ID, revision=revision, num_pages=16)
    assert (sampler.prompts == PROMPTS) == (revision is not None)
    assert sampler.explain()["prompts"].startswith(source)


@pytest.mark.parametrize(("name", "revision"), [(HUB_ID, "nowhere"), ("acme/other", None)])
def test_what_is_not_on_the_hub_is_said_in_one_line(hub: Path, name: str, revision: str | None) -> None:
    for load_it in (Decoder.load, load_network, load_tokenizer):
        with pytest.raises(ValueError, match=f"^cannot load a .* from {name}: ") as caught:
            load_it(name, revision=revision)
        assert "\n" not in str(caught.value)


def test_prompts_on_the_hub_that_are_broken_are_said_in_one_line(hub: Path) -> None:
    (hub / "snapshots" / ("1" * 40) / "asyncthink.json").write_text("{")
    with pytest.raises(ValueError, match=r"^cannot load asyncthink.json from acme/tiny: .*expected JSON") as caught:
        saved_prompts(HUB_ID, "tuned")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache may know that there are no prompts. If not, the default ones could be wrong."""

    def silent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("the hub did not answer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", silent)
    assert saved_prompts(HUB_ID) is None  # offline mode
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"cannot load asyncthink.json from acme/tiny: .*did not answer"):
        saved_prompts(HUB_ID)
    absent = hub / ".no_exist" / ("0" * 40) / "asyncthink.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert saved_prompts(HUB_ID) is None


def test_a_hub_that_has_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    assert saved_prompts(HUB_ID) is None


def test_a_folder_has_no_revisions(plain: Path) -> None:
    with pytest.raises(ValueError, match="revision: expected none for a local folder, got 'main'"):
        ForkJoinSampler(plain, revision="main")


def test_a_tokenizer_that_is_missing_is_said_in_one_line(plain: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(plain / name, tmp_path)
    with pytest.raises(ValueError, match=f"^cannot load a tokenizer from {tmp_path}: ") as caught:
        ForkJoinSampler(tmp_path, num_pages=16)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^model: cannot load a tokenizer from {tmp_path}: "):
        load(ModelOptions(str(tmp_path)))


# -- device and dtype ---------------------------------------------------------------------------------------------


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_for("auto") == device_for("cuda") == torch.device("cuda", 0)
    assert device_for("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device: expected one of the 2 GPUs here, got 'cuda:2'"):
        device_for("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_for("auto") == torch.device("cuda", 1)


def test_auto_decodes_in_what_this_processor_multiplies_fastest(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, OLD)
    old = ForkJoinSampler(half, device="cpu", num_pages=16)
    assert {parameter.dtype for parameter in old.decoder.model.parameters()} == {torch.float32}
    assert old.decoder.storage.dtype == torch.float32
    why = old.explain()["dtype"]
    assert why.startswith("float32 instead of the stored bfloat16: this CPU multiplies 7 GFLOP/s in bfloat16")
    kept = load_network(half, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in kept.model.parameters()} == {torch.bfloat16}
    assert kept.why_dtype == "bfloat16, as asked for"
    rates(monkeypatch, NEW)
    stored = load_network(half, device="cpu")
    assert {parameter.dtype for parameter in stored.model.parameters()} == {torch.bfloat16}
    assert stored.why_dtype.startswith("bfloat16, as the weights are stored: this CPU multiplies 190 GFLOP/s")


def test_a_changed_dtype_is_the_one_that_transformers_loads(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and the buffers that the model computes itself, also where the config does not say what is stored."""
    expected = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32)
    rates(monkeypatch, OLD)
    opened: list[Any] = []
    open_weights = model_files.open_weights
    monkeypatch.setattr(
        model_files, "open_weights", lambda path, dtype, revision: opened.append(dtype) or open_weights(path, dtype)
    )
    assert same(load_network(half, device="cpu").model, expected)
    assert opened == [torch.float32]
    config = json.loads((half / "config.json").read_text())
    del config["dtype"]
    monkeypatch.setattr(model_files, "load_config", lambda path, revision: type("Silent", (), {"dtype": None}))
    assert same(load_network(half, device="cpu").model, expected)
    assert opened == [torch.float32, "auto", torch.float32]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (one, other))
    return mine.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
    )


@pytest.mark.parametrize("other", ["int8", torch.int64, "torch.float32", 32])
def test_unknown_dtypes_are_named(other: Any, plain: Path) -> None:
    with pytest.raises(ValueError, match=f"dtype: expected one of auto, float32, .*, got '{other}'"):
        ForkJoinSampler(plain, dtype=other)


def test_dtypes_by_name() -> None:
    assert dtype_for("auto") is None
    assert dtype_for(torch.float16) == dtype_for("float16") == torch.float16


# -- arguments that would not count -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"page_size": 16}, {"num_pages": 64}, {"graphs": False}, {"compile": False}, {"pack": False},
        {"device": "cpu"}, {"dtype": "float32"}, {"revision": "main"}, {"page_size": 8, "device": "cpu"},
    ],
)  # fmt: skip
def test_a_decoder_has_its_own(plain: Path, given: dict[str, Any]) -> None:
    decoder, tokenizer = Decoder.load(plain, num_pages=16), load_tokenizer(plain)
    assert ForkJoinSampler(decoder, tokenizer).decoder is decoder
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    expected = f"^{', '.join(given)}: expected none beside a Decoder, which has its own, got {values}$"
    with pytest.raises(ValueError, match=expected):
        ForkJoinSampler(decoder, tokenizer, **given)


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"dtype": torch.float32}, {"revision": "main"}])
def test_a_live_model_keeps_its_device_and_dtype(plain: Path, given: dict[str, Any]) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    with pytest.raises(ValueError, match=f"^{next(iter(given))}: expected none beside a live model"):
        ForkJoinSampler(model, tokenizer, **given)
    sampler = ForkJoinSampler(model, tokenizer, num_pages=16, page_size=8, pack=False)
    assert sampler.cache.page_size == 8
    explanation = sampler.explain()
    assert explanation["device"] == "cpu: where the live model is"
    assert explanation["dtype"] == "float32, as the live model has it"
    assert explanation["pack"] == "no: switched off"


def test_explain_names_what_is_not_available(plain: Path) -> None:
    decoder = Decoder.load(plain, device="cpu", num_pages=16)
    decoder.unavailable["link"] = "its keys cannot be moved"
    explanation = decoder.explain()
    assert explanation.keys() == {
        "model", "device", "threads", "dtype", "weights", "pack", "graphs", "compile", "recorded", "joins", "positions",
        "states", "cache",
    }  # fmt: skip
    assert explanation["joins"] == "exact, append, link; link: its keys cannot be moved"
    assert explanation["graphs"] == "no: CUDA graphs need a GPU"
    assert all("\n" not in sentence and sentence for sentence in explanation.values())


def test_stages_are_told(plain: Path) -> None:
    stages: list[str] = []
    ForkJoinSampler(plain, num_pages=16, progress=stages.append)
    assert stages[0] == f"loading the weights of {plain}"
    assert stages.index("checking the model") < stages.index("reserving the cache")


def test_names_of_the_package(plain: Path) -> None:
    assert {"Decoder", "Options", "Task", "__version__"} <= set(asyncthink.__all__)
    assert all(getattr(asyncthink, name) is not None for name in asyncthink.__all__)
    assert asyncthink.PromptFormat is PromptFormat
