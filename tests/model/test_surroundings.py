"""The caller's autocast, default dtype, default device and training mode change no token."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.model.decoder import Decoder, DecoderError
from scripted import PROMPTS
from tiny_models import feed, organizer, same, tiny, tokens

ROOT = Path(__file__).parents[2]
FACTORIES = {f"torch.{name}" for name in ("tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye")}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}


def written(sampler: ForkJoinSampler) -> list[list[int]]:
    (episode,) = sampler.generate(["q"], SamplingParams(temperature=0.8, seed=3, max_tokens=40))
    return [list(trace.tokens) for trace in episode.traces]


@pytest.fixture(scope="module")
def plain() -> tuple[ForkJoinSampler, list[list[int]]]:
    """A sampler, and the text that it writes with torch's defaults."""
    model, tokenizer = organizer()
    sampler = ForkJoinSampler(model, tokenizer, prompts=PROMPTS, num_pages=128)
    return sampler, written(sampler)


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_surroundings_change_no_token(surroundings: str, plain: tuple[ForkJoinSampler, list[list[int]]]) -> None:
    sampler, expected = plain
    with SURROUNDINGS[surroundings]():
        assert written(sampler) == expected
        inside = ForkJoinSampler(sampler.decoder.model, sampler.tokenizer, prompts=PROMPTS, num_pages=128)
        assert written(inside) == expected
    assert inside.decoder.storage.dtype == torch.float32
    assert written(inside) == expected
    assert written(sampler) == expected


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3", "gpt2", "gpt_oss", "llama3_rope"])
def test_surroundings_change_no_logit(family: str, surroundings: str) -> None:
    """With packed layers, static buffers, a fork, and joins of both kinds."""
    model, new = tiny(family), [tokens(count, seed) for seed, count in enumerate((9, 3, 6, 1, 1))]

    def logits() -> torch.Tensor:
        decoder = Decoder(model, num_pages=16, page_size=4, graphs=True, pack=True)
        root = decoder.cache.root()
        rows = feed(decoder, (root, new[0]))
        child = decoder.cache.fork(root, at=7)
        rows += feed(decoder, (root, new[1]), (child, new[2]))
        for mode in ("append", "link"):
            if mode in decoder.join_modes:
                decoder.join(root, child, 8, 10, mode)  # type: ignore[arg-type]
        return torch.cat(rows + feed(decoder, (root, new[3]), (child, new[4])))

    expected = logits()
    with SURROUNDINGS[surroundings]():
        got = logits()
    assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # its new name is not in transformers 5.17
def test_training_mode_with_dropout_and_checkpointing(plain: tuple[ForkJoinSampler, list[list[int]]]) -> None:
    model, tokenizer = organizer()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.gradient_checkpointing_enable()
    model.train()
    assert written(ForkJoinSampler(model, tokenizer, prompts=PROMPTS, num_pages=128)) == plain[1]
    assert model.training
    assert model.is_gradient_checkpointing


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_module(how: str, plain: tuple[ForkJoinSampler, list[list[int]]]) -> None:
    model, tokenizer = organizer()
    if how == "wrapped":
        given = torch.compile(model, backend="eager")
    else:
        given = model
        model.compile(backend="eager")
    sampler = ForkJoinSampler(given, tokenizer, prompts=PROMPTS, num_pages=128)
    assert written(sampler) == plain[1]
    assert sampler.decoder.model is model
    assert not sampler.decoder.compiled


@pytest.mark.parametrize("part", ["all of it", "the last layer"])
def test_a_model_that_was_moved_is_named_before_anything_is_written(part: str) -> None:
    model = tiny("qwen3")
    decoder = Decoder(model, num_pages=8)
    root = decoder.cache.root()
    feed(decoder, (root, tokens(5, 1)))
    decoder.storage.poison()
    moved: nn.Module = model if part == "all of it" else model.model.layers[-1]
    moved.to(torch.bfloat16)
    for use in (lambda: feed(decoder, (root, tokens(1, 2))), decoder.refresh):
        with pytest.raises(DecoderError, match=r"bfloat16 on cpu.* but this decoder was made for torch.float32 on cpu"):
            use()
    assert all(group.k.isnan().all() and group.v.isnan().all() for group in decoder.storage.groups)
    moved.to(torch.float32)
    decoder.refresh()
    other = Decoder(model, num_pages=8)
    same(*(feed(one, (one.cache.root(), tokens(5, 1)))[0] for one in (decoder, other)))


def factories_without_a_device(path: Path) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    factories = [call for call in calls if ast.unparse(call.func) in FACTORIES]
    silent = [call for call in factories if not any(keyword.arg in ("device", None) for keyword in call.keywords)]
    return [f"{path.name}:{call.lineno}: {ast.unparse(call)}" for call in silent]


def test_every_new_tensor_names_its_device() -> None:
    """Otherwise it is made on the caller's default device. Training is exempt, because it owns its process."""
    rooms = [ROOT / "asyncthink_kernels", *(ROOT / "python" / "asyncthink" / room for room in ("model", "engine"))]
    files = [path for room in rooms for path in room.rglob("*.py")]
    assert {"hook.py", "local.py", "tree.py"} <= {path.name for path in files}
    assert not [line for path in files if path.name != "testing.py" for line in factories_without_a_device(path)]
