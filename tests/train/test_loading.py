"""What is trained and in which numbers; and the commands for an instruct model, on a small Qwen3 of random weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from asyncthink.cli.train import app
from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.protocol.prompts import DEFAULT_PROMPTS, PromptFormat
from asyncthink.tasks import task, tasks
from asyncthink.train.checkpoint import checkpoints
from asyncthink.train.demonstrations import DemonstrationPacker, Mixture
from asyncthink.train.loading import Loaded, ModelOptions, Shape, load
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.progress import read_metrics
from asyncthink.train.sft import SFTConfig, train_sft

SHAPE = Shape(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Qwen3 has it: byte-level BPE, chat template, tied embeddings, bfloat16 weights; all of it small."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([DEFAULT_PROMPTS.organizer, "<FORK-1></FORK-1><JOIN-2></JOIN-2><ANSWER>"], trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 8,  # Qwen3, too, has more rows than its tokenizer has tokens
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen3")
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return folder


def documented(command: str) -> list[str]:
    """The arguments of the command for Qwen3-4B."""
    text = (Path(__file__).resolve().parents[2] / "docs/training.md").read_text().partition("## Qwen3-4B")[2]
    (found,) = re.findall(rf"^asyncthink train ({command} [^\\\n]*(?:\\\n[^\\\n]*)*)", text, re.MULTILINE)
    arguments = shlex.split(found.replace("\\\n", " "))
    assert {"--lora", "--weights", "--checkpointing", "--plot", "--log-to"} <= set(arguments)
    return arguments


def gradients(options: ModelOptions, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    loaded = load(options)
    loaded.model.to(dtype)  # type: ignore[arg-type]
    use_packed_attention(loaded.model, moves=True)
    mixture = Mixture(solo=0.2, shared=0.4, isolated=0.4, append=0.5)
    batch = DemonstrationPacker(tasks("countdown"), loaded.tokenizer, loaded.prompts, mixture).batch(0, 3, 1500)
    token_logprobs(loaded.model, batch).sum().backward()  # type: ignore[no-untyped-call]
    return {name: each.grad for name, each in loaded.model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("lora", [0, 2])
def test_checkpointing_changes_no_gradient(lora: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ModelOptions(shape=SHAPE, lora=lora, bfloat16=False)
    one = gradients(plain)
    runs = []
    part = type(load(plain).model.model.layers[0].mlp)
    forward = part.forward
    monkeypatch.setattr(part, "forward", lambda *a, **k: (runs.append(1), forward(*a, **k))[1])
    gradients(plain)
    once = len(runs)
    other = gradients(dataclasses.replace(plain, checkpointing=True))
    assert len(runs) - once == once + SHAPE.layers  # each layer ran again, in the backward pass
    assert one.keys() == other.keys()
    assert len(one) == (2 * 7 * SHAPE.layers if lora else sum(1 for _ in load(plain).model.parameters()))
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-12, atol=0)


def test_the_dtype_of_weights_and_of_products_are_two_things() -> None:
    for weights in ("float32", "bfloat16"):
        for bfloat16 in (False, True):
            loaded = load(ModelOptions(shape=SHAPE, weights=weights, bfloat16=bfloat16))
            assert {str(each.dtype) for each in loaded.model.parameters()} == {f"torch.{weights}"}
            with loaded.autocast():
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            assert product.dtype == (torch.bfloat16 if bfloat16 else torch.float32)


def test_bfloat16_weights_learn_and_resume(tmp_path: Path) -> None:
    def config(name: str, **changes: Any) -> SFTConfig:
        model = ModelOptions(shape=SHAPE, weights="bfloat16", bfloat16=True)
        rest: dict[str, Any] = {"steps": 20, "batch_tokens": 300, "warmup": 1, "decay": 0.0, "learning_rate": 4e-3}
        return SFTConfig(tmp_path / name, model=model, evaluate_episodes=1, log_every=1, **(rest | changes))

    whole = train_sft(config("whole"))
    train_sft(config("parts", steps=10))
    parts = train_sft(config("parts", resume=True))
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, other[name]) for name, tensor in one.items())
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 1


def test_unknown_dtypes_and_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights: expected one of float32, bfloat16, got 'float16'"):
        ModelOptions(weights="float16")
    with pytest.raises(ValueError, match="model: cannot load"):
        load(ModelOptions(str(tmp_path)))


def test_an_instruct_model_is_trained_by_the_documented_commands(qwen3: Path, tmp_path: Path) -> None:
    """Those of docs/training.md with fewer and shorter steps; of an option given twice the last counts."""
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    first, second = documented("sft"), documented("grpo")
    few = ["--steps", "3", "--batch-tokens", "1000", "--learning-rate", "1e-2", "--save-every", "2", "--batches", "2"]
    app([*first, "--model", str(qwen3), "--out", str(sft), *few], standalone_mode=False)
    last = checkpoints(sft)[-1]
    assert json.loads((last / "config.json").read_text())["dtype"] == "bfloat16"
    prompts = PromptFormat.load(last)
    assert prompts.organizer.startswith("<|im_start|>system\nYou are the organizer")
    assert prompts.organizer.endswith("<think>\n\n</think>\n\n")
    few = ["--steps", "2", "--questions", "1", "--group-size", "2", "--max-tokens", "12", "--save-every", "1"]
    few += ["--minibatches", "1", "--drawn", "1", "--validate-puzzles", "1"]
    app([*second, "--model", str(last), "--out", str(grpo), *few], standalone_mode=False)
    for out, steps in (sft, [1, 3]), (grpo, [1, 2]):
        assert [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line] == steps
        assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert list((out / "tensorboard").iterdir())
    sampler = ForkJoinSampler(checkpoints(grpo)[-1], mode="sequential", answer="text", num_pages=256)
    countdown = task("countdown")
    (episode,) = sampler.generate([countdown.prompt(countdown.sample(0))], SamplingParams(max_tokens=8))
    assert episode.traces[0].decoded == 8


@pytest.mark.parametrize("tag_tokens", [False, True])
def test_appended_returns_are_learned_with_tags_of_any_number_of_tokens(
    qwen3: Path, tmp_path: Path, tag_tokens: bool
) -> None:
    model = ModelOptions(str(qwen3), bfloat16=False, tag_tokens=tag_tokens)
    few = {"steps": 1, "batch_tokens": 300, "evaluate_episodes": 1}
    folder = train_sft(SFTConfig(tmp_path / "run", model=model, mixture=Mixture(solo=0, append=1.0), **few))
    length = len(AutoTokenizer.from_pretrained(folder).encode("</RETURN>"))
    assert (length == 1) == tag_tokens


def test_loaded_names_what_it_is() -> None:
    loaded = load(ModelOptions(shape=SHAPE, bfloat16=False))
    assert isinstance(loaded, Loaded)
    assert loaded.model.training
    assert loaded.device.type in ("cpu", "cuda")
