"""join_append: keys turned by the shift, the rest bit for bit, nothing else changed."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import torch

from asyncthink_kernels import join_append, use_backend
from asyncthink_kernels.testing import (
    TOLERANCE,
    angles,
    compare,
    far_apart,
    moved,
    normal,
    odd_bits,
    poisoned,
    widened,
)
from targets import Target

P = 12
SHAPES: dict[str, dict[str, Any]] = {
    "half-split": {},
    "interleaved": {"interleaved": True},
    "partial": {"pairs": 8, "dims": (80, 48)},
    "partial interleaved, odd": {"pairs": 5, "dims": (40, 72), "interleaved": True},
    "odd pairs": {"pairs": 13, "dims": (27, 3), "heads": 1},
    "no rotation": {"pairs": 0},
    "pages of 1": {"page_size": 1, "tokens": 5},
    "pages of 64, wide heads": {"page_size": 64, "dims": (256, 128), "pairs": 128, "tokens": 40},
    "pages of 5, one head": {"page_size": 5, "heads": 1, "dims": (48, 80), "pairs": 12},
    "one layer": {"layers": 1},
    "many layers": {"layers": 9, "tokens": 2},
    "no token": {"tokens": 0},
}


def build(
    dtype: torch.dtype,
    *,
    layers: int = 3,
    page_size: int = 8,
    tokens: int = 21,
    heads: int = 2,
    dims: tuple[int, int] = (64, 64),
    pairs: int = 32,
    interleaved: bool = False,
) -> dict[str, Any]:
    """Slots in no order, every slot that is no source poisoned, gaps between heads; one rotary base a layer."""
    order = torch.randperm(P * page_size, generator=torch.Generator().manual_seed(1))[: 2 * tokens]
    src, dst = order[:tokens].clone(), order[tokens:].clone()
    caches = [
        torch.stack(
            [poisoned((P, page_size, heads, d), src.tolist(), dtype, 10 * i + d, strided=False) for i in range(layers)]
        )
        for d in dims
    ]
    tables = [angles(torch.tensor([37 - 50 * i]), pairs, base=10.0 ** (3 + i)) for i in range(layers)]
    cos, sin = (torch.cat(table) for table in zip(*tables, strict=True))
    gaps = [torch.full((*cache.shape[:3], heads + 1, cache.shape[4] + 8), torch.nan).to(dtype) for cache in caches]
    views = [gap[..., :heads, :d] for gap, d in zip(gaps, dims, strict=True)]
    for view, cache in zip(views, caches, strict=True):
        view.copy_(cache)
    return {
        "k_caches": views[0],
        "v_caches": views[1],
        "src_slots": src,
        "dst_slots": dst,
        "cos": cos,
        "sin": sin,
        "interleaved": interleaved,
    }


@functools.cache
def expected(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = widened(build(dtype, **SHAPES[name]))
    with use_backend("reference"):
        join_append(**arguments)
    return arguments["k_caches"], arguments["v_caches"]


@pytest.mark.parametrize("name", SHAPES)
def test_against_the_float64_reference(name: str, target: Target, dtype: torch.dtype) -> None:
    arguments = moved(build(dtype, **SHAPES[name]), target.device)
    join_append(**arguments)
    want_k, want_v = expected(name, dtype)
    tolerance = TOLERANCE[dtype]
    compare(arguments["k_caches"], want_k, limit=tolerance.out, cosine=tolerance.cosine, what="k")
    compare(arguments["v_caches"], want_v, limit=0, what="v")
    turned = 2 * arguments["cos"].shape[1]
    compare(arguments["k_caches"][..., turned:], want_k[..., turned:], limit=0, what="k beyond 2 R")


@pytest.mark.parametrize("pairs", [0, 7])
def test_what_does_not_turn_keeps_its_bits(pairs: int, target: Target, dtype: torch.dtype) -> None:
    arguments = build(dtype, pairs=pairs, tokens=5, layers=2)
    odd_bits(arguments["k_caches"][..., 2 * pairs :])
    odd_bits(arguments["v_caches"])
    arguments = moved(arguments, target.device)
    join_append(**arguments)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    for cache in (arguments["k_caches"][..., 2 * pairs :], arguments["v_caches"]):
        slots = cache.contiguous().view(bits).flatten(1, 2)
        assert torch.equal(slots[:, arguments["dst_slots"]], slots[:, arguments["src_slots"]])


def test_offsets_beyond_32_bits(target: Target) -> None:
    shape, device = (2, 3, 2, 1, 8), target.device
    caches = {f"{name}_caches": far_apart(shape, torch.bfloat16, 1, device).zero_() for name in "kv"}
    new = normal((2, 8), torch.bfloat16, 0).to(device)
    for cache in caches.values():
        cache[:, 0, 1, 0] = new
    quarter = {"cos": torch.zeros(2, 4, device=device), "sin": torch.ones(2, 4, device=device)}
    for src, dst in ((1, 5), (5, 2)):  # there, and back
        slots = {"src_slots": torch.tensor([src], device=device), "dst_slots": torch.tensor([dst], device=device)}
        join_append(**caches, **slots, **quarter)
    assert torch.equal(caches["k_caches"][:, 2, 1, 0], torch.cat((-new[:, 4:], new[:, :4]), dim=1))
    assert torch.equal(caches["k_caches"][:, 1, 0, 0], -new)
    for page, offset in ((2, 1), (1, 0)):
        assert torch.equal(caches["v_caches"][:, page, offset, 0], new)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turned_key_is_the_key_of_the_shifted_position(interleaved: bool) -> None:
    """R(p + d) k == R(d) R(p) k, with R(p) k made by complex multiplication."""
    pairs, position, shift = 16, 11, 23
    arguments = widened(build(torch.float64, layers=1, dims=(32, 32), pairs=pairs, interleaved=interleaved))
    plain = normal((21, 2, pairs, 2), torch.float64, 5)
    frequency = 100.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)

    def key(at: int) -> torch.Tensor:
        turned = torch.view_as_complex(plain) * torch.polar(torch.ones_like(frequency), at * frequency)
        pair = torch.view_as_real(turned)
        return pair.flatten(-2) if interleaved else pair.transpose(-1, -2).flatten(-2)

    keys = arguments["k_caches"][0].flatten(0, 1)
    keys[arguments["src_slots"]] = key(position)
    arguments |= {"cos": (shift * frequency).cos()[None], "sin": (shift * frequency).sin()[None]}
    with use_backend("reference"):
        join_append(**arguments)
    compare(keys[arguments["dst_slots"]], key(position + shift), limit=TOLERANCE[torch.float64].out)


METADATA = {
    "k_caches of four dimensions": ("k_caches", lambda a: a["k_caches"][0]),
    "k_caches of integers": ("k_caches", lambda a: a["k_caches"].int()),
    "k_caches with a stride": ("k_caches", lambda a: a["k_caches"].transpose(3, 4)),
    "v_caches of another dtype": ("v_caches", lambda a: a["v_caches"].half()),
    "v_caches with fewer layers": ("v_caches", lambda a: a["v_caches"][1:]),
    "v_caches elsewhere": ("v_caches", lambda a: a["v_caches"].to("meta")),
    "src_slots of int32": ("src_slots", lambda a: a["src_slots"].int()),
    "dst_slots too few": ("dst_slots", lambda a: a["dst_slots"][1:]),
    "dst_slots with a stride": ("dst_slots", lambda a: a["dst_slots"].repeat_interleave(2)[::2]),
    "cos for one layer": ("cos", lambda a: a["cos"][:1]),
    "cos of float64": ("cos", lambda a: a["cos"].double()),
    "sin of another width": ("sin", lambda a: a["sin"][:, :4].contiguous()),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.float32)
    with pytest.raises(ValueError, match=rf"join_append: .*\b{culprit}\b.*, got "):
        join_append(**arguments | {culprit: change(arguments)})


def test_too_wide_a_rotation() -> None:
    arguments = build(torch.float32, pairs=33)
    with pytest.raises(ValueError, match=r"cos must have 2 R <= D=64, got R=33"):
        join_append(**arguments)


@pytest.mark.parametrize("culprit", ["src_slots", "dst_slots"])
@pytest.mark.parametrize("slot", [-1, P * 8, 2**40])
def test_slots_out_of_range_touch_nothing(culprit: str, slot: int, target: Target) -> None:
    refused(target, culprit, lambda a: slot)


def test_a_destination_named_twice_touches_nothing(target: Target) -> None:
    refused(target, "dst_slots", lambda a: a["dst_slots"][3])


def test_a_destination_that_is_a_source_touches_nothing(target: Target) -> None:
    refused(target, "dst_slots", lambda a: a["src_slots"][3])


def test_float64_is_for_the_reference(target: Target) -> None:
    arguments = widened(moved(build(torch.float32), target.device))
    refusal = pytest.raises(ValueError, match=r"\bk_caches\b.*float64")
    with contextlib.nullcontext() if target.backend == "reference" else refusal:
        join_append(**arguments)


def refused(target: Target, culprit: str, value: Any) -> None:
    arguments = build(torch.float32)
    arguments[culprit][-1] = value(arguments)
    arguments = moved(arguments, target.device)
    before = {name: arguments[name].clone() for name in ("k_caches", "v_caches")}
    with pytest.raises(ValueError, match=rf"\b{culprit}\b.* got "):
        join_append(**arguments)
    for name, cache in before.items():
        compare(arguments[name], cache, limit=0, what=name)


def test_opcheck(device: str) -> None:
    arguments = moved(build(torch.float32), device)
    arguments |= {name: arguments[name].nan_to_num() for name in ("k_caches", "v_caches")}
    torch.library.opcheck(torch.ops.asyncthink.join_append.default, tuple(arguments.values()))
