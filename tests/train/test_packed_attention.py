"""Packed attention: gradients of a tree are those of one row per trace, in float64; windows, caps, moves, refusals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import PackedAttention, use_packed_attention
from asyncthink.train.packed_flex import flex
from asyncthink.train.packing import IGNORED, Batch, Move, Row, pack, visible
from tiny_models import VOCABULARY, WINDOW, tiny

TOLERANCE = 1e-9  # of float64 gradients, relative to the largest of a parameter


class ExactNorm(nn.Module):
    """A family's RMSNorm without the detour through float32 that transformers takes."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, getattr(norm, "eps", None) or norm.variance_epsilon
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.offset)


def exact(family: str) -> nn.Module:
    """A tiny float64 model that computes in float64 everywhere."""
    model = tiny(family, dtype=torch.float64)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
    return model


def episode(seed: int, workers: int = 3, joins: str = "none") -> list[Row]:
    """An organizer that forks shared workers as it goes; with "append" their tokens enter before the next fork."""
    rng = random.Random(seed)
    tokens = [rng.randrange(3, VOCABULARY) for _ in range(7)]
    learned = [False] * 5 + [True] * 2
    made, moves = [], []
    for number in range(1, workers + 1):
        own = tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(4, 9)))
        made.append(Row("worker", "shared", own, (False, *(True,) * (len(own) - 1)), 0, len(tokens)))
        tokens += [rng.randrange(3, VOCABULARY) for _ in range(3)]
        learned += [True] * 3
        if joins == "append":
            moves.append(Move(len(tokens) + 1, number, 1, len(own) - 1))
        tokens += [*own, 3]  # a lead, what is moved, and what the runtime puts behind it
        learned += [False] * (len(own) + 1)
    tokens += [rng.randrange(3, VOCABULARY) for _ in range(4)]
    learned += [True] * 4
    return [Row("organizer", "shared", tuple(tokens), tuple(learned), moves=tuple(moves)), *made]


def alone(seed: int) -> list[Row]:
    rng = random.Random(seed)
    return [Row("solo", "shared", tuple(rng.randrange(3, VOCABULARY) for _ in range(9)), (False,) * 4 + (True,) * 5)]


def weighted(scores: Sequence[Tensor]) -> Tensor:
    """Each score with another weight, so that none can stand for another."""
    flat = torch.cat(list(scores))
    return (flat * torch.linspace(0.3, 1.7, len(flat), dtype=torch.float64)).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).abs().max() <= TOLERANCE * gradient.abs().max(), name


def packed_scores(model: nn.Module, batch: Batch) -> list[Tensor]:
    return [token_logprobs(model, batch)[batch.labels[0] != IGNORED]]


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral", "phi3"])
def test_gradients_equal_one_row_per_trace(family: str) -> None:
    """Each trace by itself, with all of its context computed again, by transformers' own attention."""
    model = exact(family)
    model.set_attn_implementation("sdpa")
    episodes = [episode(0), alone(1), episode(2, workers=2)]
    scores = []
    for agents in episodes:
        for row in agents:
            prefix = agents[row.parent].tokens[: row.fork_at] if row.parent is not None else ()
            context = torch.tensor([*prefix, *row.tokens])
            logp = model(input_ids=context[None]).logits[0].log_softmax(-1)
            places = [len(prefix) + k for k, own in enumerate(row.learned) if own]
            scores.append(logp[[k - 1 for k in places], context[places]])
    expected = gradients(model, weighted(scores))
    use_packed_attention(model)
    batch = pack(episodes, 10_000)
    got = packed_scores(model, batch)
    torch.testing.assert_close(got[0], torch.cat(scores), atol=1e-10, rtol=1e-10)
    assert_same(gradients(model, weighted(got)), expected)


def dense(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, *,
    test_batch: tuple[Batch, Tensor], sliding_window: int | None = None, softcap: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The whole [T, T] at once, and joins by an explicit rotation of half-split pairs."""
    batch, seen = test_batch
    for to, origin in zip(batch.moved_to.tolist(), batch.moved_from.tolist(), strict=True):
        shift = batch.positions[0, to] - batch.positions[0, origin]
        angle = (shift * module.asyncthink_rotary.inv_freq).repeat(2)
        turned = torch.cat([-key[:, :, origin].chunk(2, -1)[1], key[:, :, origin].chunk(2, -1)[0]], -1)
        moved = key[:, :, origin] * angle.cos() + turned * angle.sin()
        key = torch.cat([key[:, :, :to], moved[:, :, None], key[:, :, to + 1 :]], 2)
        value = torch.cat([value[:, :, :to], value[:, :, origin, None], value[:, :, to + 1 :]], 2)
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    apart = batch.positions[0][:, None] - batch.positions[0][None, :]
    inside = seen if sliding_window is None else seen & (apart < sliding_window)
    weights = scores.masked_fill(~inside, -torch.inf).softmax(-1)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2), None


def sees(episodes: Sequence[Sequence[Row]]) -> Tensor:
    """Who sees whom, pair by pair."""
    flat = [
        (e, r, k, row) for e, rows in enumerate(episodes) for r, row in enumerate(rows) for k in range(len(row.tokens))
    ]
    return torch.tensor([
        [a == b and ((r == s and k >= j) or (row.parent == s and j < row.fork_at)) for b, s, j, _ in flat]
        for a, r, k, row in flat
    ])  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("joins", ["none", "append"])
def test_gradients_equal_dense_attention(family: str, joins: str) -> None:
    """With joins that move K/V, windows (shorter than a prefix, so that they cut it) and soft-capped scores."""
    AttentionInterface.register("test_dense", dense)
    model = exact(family)
    episodes = [episode(0, joins=joins), alone(1), episode(2, workers=2, joins=joins)]
    batch = pack(episodes, 10_000)
    assert torch.equal(visible(batch), sees(episodes))
    assert len(batch.moved_to) == (0 if joins == "none" else 24)
    use_packed_attention(model, moves=True)
    got = packed_scores(model, batch)
    packed = gradients(model, weighted(got))
    model.set_attn_implementation("test_dense")
    kept = batch.labels[0] != IGNORED
    logits = model(
        input_ids=batch.tokens, position_ids=batch.positions, use_cache=False,
        test_batch=(batch, sees(episodes)),
    ).logits[0]  # fmt: skip
    expected = logits.log_softmax(-1).gather(1, batch.labels[0].clamp(min=0)[:, None])[kept, 0]
    torch.testing.assert_close(got[0], expected, atol=1e-10, rtol=1e-10)
    assert_same(packed, gradients(model, weighted([expected])))


def heads(batch: Batch, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Random q [1,4,T,16], k and v [1,2,T,16]."""
    generator, T = torch.Generator().manual_seed(0), batch.tokens.shape[1]
    return tuple(torch.randn(1, h, T, 16, generator=generator).to(device, dtype) for h in (4, 2, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_flex_sees_what_rows_see(window: int | None, softcap: float | None) -> None:
    batch = pack([episode(seed, workers=4) for seed in range(4)], 10_000)
    attention = PackedAttention(batch)
    q, k, v = heads(batch)
    expected = attention.attend(nn.Module(), q, k, v, 0.3, window, softcap)
    got = flex(q, k, v, attention.blocks(window), 0.3, softcap)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_compiled_flex_has_the_gradients_of_rows(window: int | None, softcap: float | None) -> None:
    for seeds in (range(4), range(40)):  # less than a block, and many
        batch = pack([episode(seed, workers=4) for seed in seeds], 10_000)
        results = []
        for device in ("cpu", "cuda"):
            leaves = [leaf.requires_grad_() for leaf in heads(batch, device=device)]
            made = PackedAttention(batch.to(device)).attend(nn.Module(), *leaves, 0.3, window, softcap)
            made.square().sum().backward()
            results.append([made.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
        for on_gpu, by_rows in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(on_gpu, by_rows, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_log_probabilities_on_a_gpu_are_those_on_a_cpu() -> None:
    model = tiny("qwen3")
    use_packed_attention(model, moves=True)
    batch = pack([episode(seed, joins="append") for seed in range(3)], 10_000)
    with torch.no_grad():
        expected = token_logprobs(model, batch)
        got = token_logprobs(model.cuda(), batch.to("cuda")).cpu()
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_masks_are_made_once_for_all_layers() -> None:
    attention = PackedAttention(pack([episode(0)], 1))
    assert attention.masks(WINDOW) is attention.masks(WINDOW)
    assert attention.blocks(None) is attention.blocks(None)
    assert [mask is None for mask in attention.masks(None)] == [True, False, False, False]


def test_checkpointed_layers_have_the_same_gradients() -> None:
    model = exact("qwen3")
    use_packed_attention(model, moves=True)
    batch = pack([episode(0, joins="append")], 1)
    expected = gradients(model, weighted(packed_scores(model, batch)))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(model, weighted(packed_scores(model, batch))), expected)


@pytest.mark.parametrize("seed", range(3))
def test_rows_do_not_leak(seed: int) -> None:
    """Tokens that a row does not see do not move its scores by a single bit; those that it sees do."""
    model = tiny("qwen3")
    use_packed_attention(model)
    batch = pack([alone(5), episode(seed), episode(seed + 1)], 10_000)
    span = batch.spans[2]
    seen = visible(batch)[span.stop - 1]
    with torch.no_grad():
        before = token_logprobs(model, batch)[span.start : span.stop]
        batch.tokens[0, ~seen] = (batch.tokens[0, ~seen] + 7) % VOCABULARY
        after = token_logprobs(model, batch)[span.start : span.stop]
        prefix = span.seen[0][0]
        batch.tokens[0, prefix] = (batch.tokens[0, prefix] + 7) % VOCABULARY
        moved = token_logprobs(model, batch)[span.start : span.stop]
    assert torch.equal(before, after)
    assert not torch.equal(before, moved)


def test_what_cannot_be_trained_is_refused() -> None:
    dropping = tiny("qwen3", attention_dropout=0.1).train()
    use_packed_attention(dropping)
    assert all(module.training for module in dropping.modules())
    with pytest.raises(ValueError, match="dropout"):
        token_logprobs(dropping, pack([alone(0)], 1))
    with pytest.raises(ValueError, match="V, too, depends on the position"):
        use_packed_attention(tiny("gpt2"), moves=True)
    unmoved = tiny("qwen3")
    use_packed_attention(unmoved)
    with pytest.raises(ValueError, match="without moves"):
        token_logprobs(unmoved, pack([episode(0, joins="append")], 1))
    with pytest.raises(ValueError, match="temperature: expected more than 0"):
        token_logprobs(unmoved, pack([alone(0)], 1), 0.0)
