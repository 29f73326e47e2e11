"""Our attention under TRL's tree packing: the segments as spans, and TRL's packed rows against each sample alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_models as tm
from asyncthink.integrations.trl.attention import tree_spans, use_tree_attention


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_spans_see_the_path_to_their_segment(shape: list[tuple[int, int]]) -> None:
    """Segments of a random tree in pre-order: (length, how many levels up from the last segment it hangs)."""
    paths: list[list[int]] = []
    ends: list[int] = [0]
    stack: list[list[int]] = []  # the paths from the root to the last segment
    for length, up in shape:
        stack = stack[: max(0, len(stack) - up)]
        own = list(range(ends[-1], ends[-1] + length))
        stack.append([*(stack[-1] if stack else []), *own])
        paths.append(stack[-1])
        ends.append(ends[-1] + length)
    starts = np.cumsum([0, *map(len, paths)])
    index = torch.tensor([token for path in paths for token in path])
    spans = tree_spans(index, torch.tensor(ends), torch.from_numpy(starts))
    for span, path in zip(spans, paths, strict=True):
        seen = [token for first, last in span.seen for token in range(first, last)]
        assert seen + list(range(span.start, span.stop)) == path
        assert all(first < last for first, last in span.seen)
        assert all(a[1] < b[0] for a, b in zip(span.seen, span.seen[1:], strict=False)), "neighbours are one range"
        assert span.position == len(path) - (span.stop - span.start)


def tree(samples: list[list[int]]) -> dict[str, Any]:
    """TRL's packed row of samples, all of whose tokens but the first are trained."""
    packing = pytest.importorskip("trl.experimental.async_grpo.packing", exc_type=ImportError)
    row = packing.TreeRow()
    for number, ids in enumerate(samples):
        mask = np.array([0, *[1] * (len(ids) - 1)])
        ids_ = np.array(ids)
        row.add(
            {
                "input_ids": ids_,
                "completion_mask": mask,
                "old_log_probs": 0.0 * mask,
                "advantage": 1.0,
                "group_id": number,
            }
        )
    packed: dict[str, Any] = row.pack()
    return packed


def tree_logits(model: Any, packed: dict[str, Any]) -> torch.Tensor:
    names = ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")
    longest_q, longest_k = packed["tree_max_seqlens"].tolist()
    given: dict[str, Any] = {name: packed[name] for name in names}
    given |= {"tree_max_seqlen_q": longest_q, "tree_max_seqlen_k": longest_k}
    output = model(
        input_ids=packed["input_ids"][None], position_ids=packed["position_ids"][None], use_cache=False, **given
    )
    logits: torch.Tensor = output.logits[0]
    return logits


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral"])
def test_rows_of_a_tree_are_what_each_sample_is_alone(family: str) -> None:
    """Scores and gradients, with windows and capped scores. Eager attention rounds to float32 within."""
    model = tm.tiny(family, dtype=torch.float64)
    trunk = tm.tokens(9, 0).tolist()
    samples = [
        trunk + tm.tokens(6, 1).tolist(),
        trunk + tm.tokens(4, 2).tolist(),
        trunk[:5] + tm.tokens(7, 3).tolist(),
        tm.tokens(3, 4).tolist(),
    ]
    packed = tree(samples)
    assert len(packed["input_ids"]) < sum(map(len, samples))
    alone = torch.cat([_scores(model, torch.tensor(ids)) for ids in samples])
    (expected,) = torch.autograd.grad(alone.sum(), [model.get_input_embeddings().weight])
    use_tree_attention(model)
    logprobs = torch.log_softmax(tree_logits(model, packed), -1)[packed["token_index"]]
    targets = torch.tensor([token for ids in samples for token in ids[1:]])
    scores = logprobs.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(scores, alone, rtol=0, atol=5e-6)
    (got,) = torch.autograd.grad(scores.sum(), [model.get_input_embeddings().weight])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=5e-5)


def _scores(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("eager")
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    scores: torch.Tensor = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0]
    return scores


def test_masks_are_made_once_a_pass_and_go_with_it() -> None:
    from asyncthink.integrations.trl.attention import _packed

    model = tm.tiny("qwen3")
    use_tree_attention(model)
    packed = tree([[3, 4, 5, 6], [3, 4, 7]])
    before = len(_packed)
    with torch.no_grad():
        tree_logits(model, packed)
        assert len(_packed) == before + 1
        rows = _packed[packed["tree_cu_seqlens_q"]]
        tree_logits(model, packed)
        assert _packed[packed["tree_cu_seqlens_q"]] is rows
    del packed
    assert len(_packed) == before
