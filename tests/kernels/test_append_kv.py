"""append_kv: what was written lies in its slots bit for bit, and nothing else has changed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import append_kv
from asyncthink_kernels.testing import far_apart, moved, normal, odd_bits, widened
from targets import Target


def build(
    dtype: torch.dtype, *, page_size: int = 16, tokens: int = 9, heads: int = 2, dims: tuple[int, int] = (64, 64)
) -> dict[str, Any]:
    """New tokens cut out of a wider projection, caches cut out of all layers', slots in no order."""
    pages, (D, Dv) = 80 // page_size, dims
    caches = {"k_cache": (D, 1), "v_cache": (Dv, 2)}
    projection = normal((tokens, heads, D + Dv + 3), dtype, 0)
    return {
        "k": projection[:, :, :D],
        "v": projection[:, :, D : D + Dv],
        **{
            name: normal((pages, page_size, heads, 3, d), dtype, seed)[:, :, :, 1] for name, (d, seed) in caches.items()
        },
        "slots": torch.randperm(80, generator=torch.Generator().manual_seed(3))[:tokens],
    }


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"page_size": 1, "heads": 1},
        {"page_size": 8, "dims": (40, 72)},
        {"page_size": 16, "tokens": 80},
        {"page_size": 80, "tokens": 1, "heads": 7, "dims": (17, 5)},
        {"tokens": 0},
    ],
    ids=str,
)
def test_writes_the_slots_and_nothing_else(shape: dict[str, Any], target: Target, dtype: torch.dtype) -> None:
    arguments = moved(build(dtype, **shape), target.device)
    want = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    for token, slot in enumerate(arguments["slots"].tolist()):
        page, offset = divmod(slot, want["k_cache"].shape[1])
        want["k_cache"][page, offset] = arguments["k"][token]
        want["v_cache"][page, offset] = arguments["v"][token]
    append_kv(**arguments)
    for name, cache in want.items():
        assert torch.equal(arguments[name], cache)


@pytest.mark.parametrize("places", [(4,), (0, 3, 8), range(9)], ids=["one", "some", "all"])
def test_padding_is_not_written(places: Sequence[int], target: Target, dtype: torch.dtype) -> None:
    arguments = build(dtype)
    arguments["slots"][list(places)] = -1
    arguments = moved(arguments, target.device)
    written = arguments["slots"] != -1
    want = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    for name, cache in want.items():
        page, offset = arguments["slots"][written] // 16, arguments["slots"][written] % 16
        cache[page, offset] = arguments[name[0]][written]
    append_kv(**arguments)
    for name, cache in want.items():
        assert torch.equal(arguments[name], cache)


def test_keeps_the_bits_of_nan_and_infinity(target: Target, dtype: torch.dtype) -> None:
    arguments = build(dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    odd_bits(arguments["k"])
    odd_bits(arguments["v"])
    arguments["k"][:, :, 0], arguments["k"][:, :, 1], arguments["k"][:, :, 2] = torch.nan, -torch.inf, -0.0
    arguments = moved(arguments, target.device)
    append_kv(**arguments)
    for name in "kv":
        written = arguments[f"{name}_cache"].flatten(0, 1)[arguments["slots"]]
        assert torch.equal(written.view(bits), arguments[name].contiguous().view(bits))


def test_offsets_beyond_32_bits(target: Target) -> None:
    caches = {f"{name}_cache": far_apart((3, 2, 1, 8), torch.bfloat16, 0, target.device).fill_(0) for name in "kv"}
    new = {name: normal((2, 1, 8), torch.bfloat16, seed).to(target.device) for seed, name in enumerate("kv")}
    append_kv(**new, **caches, slots=torch.tensor([5, 1], device=target.device))
    for name in "kv":
        want = torch.zeros(6, 1, 8, dtype=torch.bfloat16, device=target.device)
        want[[5, 1]] = new[name]
        assert torch.equal(caches[f"{name}_cache"].flatten(0, 1), want)


METADATA = {
    "k of two dimensions": ("k", lambda a: a["k"][:, 0]),
    "k of integers": ("k", lambda a: a["k"].int()),
    "k with a stride": ("k", lambda a: a["k"].repeat(1, 1, 2)[:, :, ::2]),
    "k that requires grad": ("k", lambda a: a["k"].clone().requires_grad_()),
    "v of another dtype": ("v", lambda a: a["v"].half()),
    "v with fewer tokens": ("v", lambda a: a["v"][1:]),
    "v elsewhere": ("v", lambda a: a["v"].to("meta")),
    "k_cache of another head_dim": ("k_cache", lambda a: a["k_cache"][..., :32]),
    "v_cache with one head": ("v_cache", lambda a: a["v_cache"][:, :, :1]),
    "v_cache with fewer pages": ("v_cache", lambda a: a["v_cache"][1:]),
    "slots of int32": ("slots", lambda a: a["slots"].int()),
    "slots too few": ("slots", lambda a: a["slots"][1:]),
    "slots with a stride": ("slots", lambda a: a["slots"].repeat_interleave(2)[::2]),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.float32)
    with pytest.raises(ValueError, match=rf"append_kv: .*\b{culprit}\b.*, got "):
        append_kv(**arguments | {culprit: change(arguments)})


@pytest.mark.parametrize("slot", [-2, 80, 2**40, -(2**63)])
def test_slots_out_of_range_touch_nothing(slot: int, target: Target) -> None:
    refused(target, lambda slots: [*slots[:-1].tolist(), slot], str(slot))


def test_slots_named_twice_touch_nothing(target: Target) -> None:
    refused(target, lambda slots: [*slots[:-1].tolist(), slots[2].item()], "")


def test_float64_is_for_the_reference(target: Target) -> None:
    arguments = widened(moved(build(torch.float32), target.device))
    refusal = pytest.raises(ValueError, match=r"\bk\b.*float64")
    with contextlib.nullcontext() if target.backend == "reference" else refusal:
        append_kv(**arguments)


def refused(target: Target, change: Any, got: str) -> None:
    arguments = build(torch.float32)
    arguments["slots"] = torch.tensor(change(arguments["slots"]))
    arguments = moved(arguments, target.device)
    before: dict[str, Tensor] = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    with pytest.raises(ValueError, match=rf"\bslots\b.* got .*{got}"):
        append_kv(**arguments)
    for name, cache in before.items():
        assert torch.equal(arguments[name], cache)


def test_opcheck(device: str) -> None:
    arguments = moved(build(torch.float32), device)
    torch.library.opcheck(torch.ops.asyncthink.append_kv.default, tuple(arguments.values()))
