"""merge_states: partial attentions over pieces meet in the attention over the whole."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch

from asyncthink_kernels import merge_states, use_backend
from asyncthink_kernels.testing import TOLERANCE, compare, far_apart, moved, normal, widened
from targets import Target

SHAPES = [
    (1, 1, 1, 1),
    (2, 5, 3, 64),
    (7, 3, 2, 40),
    (33, 2, 4, 128),
    (3, 0, 2, 16),
    (5, 4, 1, 17),
    (9, 1, 2, 256),
]


def build(
    dtype: torch.dtype, shape: tuple[int, int, int, int] = (4, 6, 3, 64), *, strided: bool = False
) -> dict[str, Any]:
    """LSEs spread over 60 nats; every state without a say holds NaN; row 0 of head 0 has no state at all."""
    n, T, H, Dv = shape
    lse = 10 * normal((n, T, H), torch.float32, 1)
    lse[torch.rand(n, T, H, generator=torch.Generator().manual_seed(2)) < 0.3] = -math.inf
    lse[:, :1, :1] = -math.inf
    out = normal((T, H + 1, n, Dv + 4), dtype, 3)[:, :H, :, :Dv].permute(2, 0, 1, 3)
    out[lse == -math.inf] = math.nan
    return {"out": out if strided else out.contiguous(), "lse": lse}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_float64_reference(
    shape: tuple[int, int, int, int], strided: bool, target: Target, dtype: torch.dtype
) -> None:
    arguments = build(dtype, shape, strided=strided)
    out, lse = merge_states(**moved(arguments, target.device))
    assert out.dtype == dtype and lse.dtype == torch.float32
    with use_backend("reference"):
        want_out, want_lse = merge_states(**widened(arguments))
    compare(out, want_out, limit=TOLERANCE[dtype].out, cosine=TOLERANCE[dtype].cosine)
    compare(lse, want_lse, limit=TOLERANCE[torch.float32].lse, what="lse")


def test_pieces_meet_in_the_whole(target: Target) -> None:
    """Softmax over 30 keys in pieces of 7, 0, 20 and 3, against all at once."""
    logits, values = 3 * normal((30,), torch.float64, 1), normal((30, 16), torch.float64, 2)
    outs, lses = [], []
    for begin, end in ((0, 7), (7, 7), (7, 27), (27, 30)):
        outs.append(torch.softmax(logits[begin:end], 0) @ values[begin:end])
        lses.append(torch.logsumexp(logits[begin:end], 0))
    states = {"out": torch.stack(outs).view(4, 1, 1, 16).float(), "lse": torch.stack(lses).view(4, 1, 1).float()}
    out, lse = merge_states(**moved(states, target.device))
    compare(out.flatten(), torch.softmax(logits, 0) @ values, limit=1e-5)
    compare(lse.flatten(), torch.logsumexp(logits, 0)[None], limit=1e-5, what="lse")


def test_no_state_at_all_is_zero(target: Target, dtype: torch.dtype) -> None:
    states = {"out": torch.full((3, 2, 2, 8), math.nan, dtype=dtype), "lse": torch.full((3, 2, 2), -math.inf)}
    out, lse = merge_states(**moved(states, target.device))
    assert (out == 0).all() and (lse == -math.inf).all()


def test_infinities_without_a_say(target: Target, dtype: torch.dtype) -> None:
    """As NaN: an infinity counts only where its state saw something."""
    arguments = build(dtype)
    silent = arguments["lse"] == -math.inf
    arguments["out"][silent] = math.inf
    out, lse = merge_states(**moved(arguments, target.device))
    arguments["out"][silent] = 0
    want_out, want_lse = merge_states(**moved(arguments, target.device))
    assert torch.equal(out, want_out) and torch.equal(lse, want_lse)


def test_offsets_beyond_32_bits(target: Target) -> None:
    out = far_apart((3, 1, 2, 8), torch.bfloat16, 0, target.device).copy_(normal((3, 1, 2, 8), torch.bfloat16, 0))
    lse = normal((3, 1, 2), torch.float32, 1).to(target.device)
    merged, merged_lse = merge_states(out, lse)
    want, want_lse = merge_states(out.contiguous(), lse)
    assert torch.equal(merged, want) and torch.equal(merged_lse, want_lse)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_lses_neither_overflow_nor_vanish(shift: float, target: Target) -> None:
    arguments = build(torch.float32)
    arguments["lse"] = (arguments["lse"] / 8).round()  # exact after the shift
    out, lse = merge_states(**moved(arguments, target.device))
    moved_out, moved_lse = merge_states(**moved({**arguments, "lse": arguments["lse"] + shift}, target.device))
    compare(moved_out, out, limit=1e-6)
    compare(moved_lse - shift, lse, limit=2e-3, what="lse")


def test_float64_is_for_the_reference(target: Target) -> None:
    arguments = widened(moved(build(torch.float32), target.device))
    refusal = pytest.raises(ValueError, match=r"\bouts?\b.*float64")
    with contextlib.nullcontext() if target.backend == "reference" else refusal:
        merge_states(**arguments)


METADATA = {
    "out of three dimensions": ("out", lambda a: a["out"][0]),
    "out of integers": ("out", lambda a: a["out"].int()),
    "out with a stride": ("out", lambda a: a["out"].transpose(2, 3)),
    "out of no state": ("out", lambda a: a["out"][:0]),
    "lse with fewer states": ("lse", lambda a: a["lse"][1:]),
    "lse of bfloat16": ("lse", lambda a: a["lse"].bfloat16()),
    "lse with a stride": ("lse", lambda a: a["lse"].transpose(1, 2).contiguous().transpose(1, 2)),
    "lse elsewhere": ("lse", lambda a: a["lse"].to("meta")),
    "lse that requires grad": ("lse", lambda a: a["lse"].clone().requires_grad_()),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.float32)
    changed = {culprit: change(arguments)}
    if name == "out of no state":
        changed["lse"] = arguments["lse"][:0]
    with pytest.raises(ValueError, match=rf"merge_states: .*\b{culprit}\b.*, got "):
        merge_states(**arguments | changed)


def test_opcheck(device: str) -> None:
    arguments = moved(build(torch.float32), device)
    torch.library.opcheck(torch.ops.asyncthink.merge_states.default, tuple(arguments.values()))


def test_a_state_gone_wrong_shows(target: Target) -> None:
    """A NaN is no -inf: neither beside sound states nor beside such as saw nothing."""
    out, lse = torch.ones(3, 2, 1, 8), torch.zeros(3, 2, 1)
    lse[0], lse[1, 1], lse[2, 1] = math.nan, -math.inf, -math.inf
    merged, merged_lse = merge_states(**moved({"out": out, "lse": lse}, target.device))
    assert merged.isnan().all() and merged_lse.isnan().all()


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
@pytest.mark.parametrize("others", [0.0, -math.inf, math.inf])
@pytest.mark.parametrize("states", [1, 3])
def test_an_lse_that_no_softmax_has_makes_nan_of_its_row_and_head_alone(
    states: int, others: float, wrong: float, target: Target, dtype: torch.dtype
) -> None:
    out, lse = torch.ones(states, 3, 2, 8, dtype=dtype), torch.zeros(states, 3, 2)
    lse[:, 2, 0] = others
    lse[states // 2, 2, 0] = wrong
    merged, merged_lse = merge_states(**moved({"out": out, "lse": lse}, target.device))
    harmed = torch.zeros(3, 2, dtype=torch.bool)
    harmed[2, 0] = True
    merged, merged_lse = merged.cpu(), merged_lse.cpu()
    assert torch.equal(merged.isnan().all(-1), harmed) and (merged[~harmed] == 1).all()
    assert torch.equal(merged_lse.isnan(), harmed) and merged_lse[~harmed].isfinite().all()
