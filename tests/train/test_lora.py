"""LoRA: adapters alone learn, the sampler decodes with them live, and checkpoints open with peft and transformers."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from state_files import state_tensors
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.tasks import task
from asyncthink.train.loading import Loaded, ModelOptions, Shape, load
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.lora import FOLDER, add_lora, merged
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import pack
from asyncthink.train.rows import rows
from asyncthink.train.sft import SFTConfig, train_sft

FILES = ("model.safetensors", f"{FOLDER}/adapter_model.safetensors")
SHAPE = Shape(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48)
BOX = str(Path(__file__).resolve().parents[2] / "python/asyncthink/checkpoints/countdown")
ADAPTED = ModelOptions(BOX, lora=4, bfloat16=False)


def config(out: Path, **changes: Any) -> SFTConfig:
    model = ModelOptions(shape=SHAPE, lora=3, bfloat16=False)
    rest = {"steps": 4, "batch_tokens": 300, "warmup": 1, "decay": 0.0, "log_every": 1, "save_every": 2}
    return SFTConfig(out, model=model, evaluate_episodes=2, learning_rate=1e-2, **(rest | changes))  # type: ignore[arg-type]


def awake(options: ModelOptions) -> Loaded:
    """A model whose adapters already say something; B is zero at the start of a training."""
    loaded = load(options)
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return loaded


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model.eval()(torch.arange(40, 60)[None]).logits
    return made


def test_a_tied_output_head_gets_no_adapter() -> None:
    with pytest.raises(ValueError, match="expected an output head of its own, got one tied to the input embedding"):
        load(dataclasses.replace(ADAPTED, lora_targets="lm_head,q_proj"))


def test_only_adapters_learn_and_they_are_float32() -> None:
    loaded = load(dataclasses.replace(ADAPTED, weights="bfloat16"))
    learned = {name: each for name, each in loaded.model.named_parameters() if each.requires_grad}
    assert len(learned) == 4 * 7 * 2  # layers, linear layers of each, A and B; not the output head
    assert {each.dtype for each in learned.values()} == {torch.float32}
    assert {each.dtype for name, each in loaded.model.named_parameters() if name not in learned} == {torch.bfloat16}


@pytest.mark.parametrize("join", [pytest.param("exact", marks=pytest.mark.slow), "append"])
def test_the_sampler_decodes_with_the_live_adapters(join: Any) -> None:
    """Its log-probabilities are the trainer's, and follow the adapters when they change where they lie."""
    loaded = awake(ADAPTED)
    sampler = ForkJoinSampler(loaded.model, loaded.tokenizer, prompts=loaded.prompts, join=join, num_pages=1024)
    countdown = task("countdown")
    questions = [countdown.prompt(countdown.sample(seed)) for seed in range(3)]
    params = SamplingParams(temperature=1.0, max_tokens=200, seed=5)
    use_packed_attention(loaded.model, moves=join != "exact")
    plain = load(dataclasses.replace(ADAPTED, lora=0)).model
    use_packed_attention(plain, moves=join != "exact")
    for change in (0.0, 0.01):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter += change * parameter.requires_grad * torch.randn_like(parameter)
        sampler.refresh()
        episodes = sampler.generate(questions, params)
        batch = pack([rows(episode) for episode in episodes], 2**30)
        traces = [trace for episode in episodes for trace in episode.traces]
        drawn, places = [], []
        for trace, span in zip(traces, batch.spans, strict=True):
            chosen = [k for k in range(1, len(trace.tokens)) if trace.sampled[k]]
            places += [span.start + k - 1 for k in chosen]
            drawn += [trace.logprobs[k] for k in chosen]
        with torch.no_grad():
            torch.testing.assert_close(
                token_logprobs(loaded.model, batch)[places], torch.tensor(drawn), atol=1e-4, rtol=1e-4
            )
            assert (token_logprobs(plain, batch)[places] - torch.tensor(drawn)).abs().max() > 0.1
        assert join == "exact" or any(one.source for trace in traces for one in trace.joins)


def test_merging_gives_the_adapted_model_and_leaves_it_as_it_was() -> None:
    loaded = awake(ADAPTED)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    plain = AutoModelForCausalLM.from_pretrained(BOX, dtype=torch.float32)
    far = (logits(plain) - logits(loaded.model)).abs().max()
    plain.load_state_dict(merged(loaded.model))
    torch.testing.assert_close(logits(plain), logits(loaded.model), atol=1e-3, rtol=1e-4)
    assert far > 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_transposed_weights_merge_too() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    plain = GPT2LMHeadModel(model.config)
    add_lora(model, 2, 4, "c_attn,c_proj", 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    plain.load_state_dict(merged(model))
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_opens_with_peft_and_with_transformers_alone(tmp_path: Path) -> None:
    last = train_sft(config(tmp_path / "run", export=tmp_path / "export"))
    base = load(ModelOptions(shape=SHAPE, bfloat16=False)).model
    start = logits(base)
    adapted = peft.PeftModel.from_pretrained(base, last / FOLDER)
    for folder in (last, tmp_path / "export"):
        whole = AutoModelForCausalLM.from_pretrained(folder)
        assert type(whole).__name__ == "Qwen3ForCausalLM"
        torch.testing.assert_close(logits(whole), logits(adapted), atol=1e-5, rtol=1e-5)
    assert (logits(adapted) - start).abs().max() > 1e-2
    settings = json.loads((last / FOLDER / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (3, 6, "LORA")


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train_sft(config(tmp_path / "whole"))
    train_sft(config(tmp_path / "parts", steps=2))
    parts = train_sft(config(tmp_path / "parts", resume=True))
    read = [state_tensors, *(lambda folder, name=name: load_file(folder / name) for name in FILES)]
    for one, other in ((tensors(whole), tensors(parts)) for tensors in read):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_goes_on_with_the_adapters_it_has(tmp_path: Path) -> None:
    made = config(tmp_path / "run", steps=2)
    train_sft(made)
    for changed, message in (
        ({"lora": 0}, "was trained with adapters"),
        ({"lora": 2}, "expected the rank and targets of the adapter"),
        ({"lora_targets": "q_proj"}, "expected the rank and targets of the adapter"),
    ):
        other = dataclasses.replace(made.model, **changed)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            train_sft(dataclasses.replace(made, steps=4, resume=True, model=other))
    plain = dataclasses.replace(made, out=tmp_path / "plain", model=ModelOptions(shape=SHAPE, bfloat16=False))
    train_sft(plain)
    with pytest.raises(ValueError, match="holds no adapter"):
        train_sft(dataclasses.replace(plain, steps=4, resume=True, model=made.model))


def test_what_cannot_be_adapted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"lora targets: .*nothing"):
        load(dataclasses.replace(ADAPTED, lora_targets="nothing"))
    with pytest.raises(ValueError, match=r"expected linear layers, got model\.embed_tokens"):
        load(dataclasses.replace(ADAPTED, lora_targets="embed_tokens"))
    with pytest.raises(ValueError, match="lora: expected a rank of at least 0, got -1"):
        ModelOptions(lora=-1)
    with pytest.raises(ValueError, match="lora_alpha: expected at least 1, got 0"):
        ModelOptions(lora=2, lora_alpha=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'LoRA needs peft: pip install "asyncthink-kernels\[train\]"'):
        load(ADAPTED)
