"""copy_pages: whole pages move bit for bit in every layer, and nothing else has changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncthink_kernels import copy_pages
from asyncthink_kernels.testing import far_apart, moved, normal, odd_bits
from targets import Target

P = 9


def build(
    dtype: torch.dtype,
    *,
    layers: int = 3,
    page_size: int = 16,
    dims: tuple[int, int] = (64, 32),
    order: tuple[int, ...] = (0, 1, 2, 3),
    src: tuple[int, ...] = (7, 2, 2),
    dst: tuple[int, ...] = (0, 8, 3),
) -> dict[str, Any]:
    """Caches with gaps between heads, NaNs and -0 among the numbers, one source for two destinations.

    ``order`` is that of L, P, S, H in memory, the slowest first.
    """
    sizes = [(layers, P, page_size, 2)[axis] for axis in order]
    back = [order.index(axis) for axis in range(4)]
    caches = [normal((*sizes, d + 8), dtype, d)[..., :d].permute(*back, 4) for d in dims]
    for cache in caches:
        odd_bits(cache[:, :, 0])
    pages = {"src": torch.tensor(src).long(), "dst": torch.tensor(dst).long()}
    return {"k_caches": caches[0], "v_caches": caches[1], **pages}


def bits(cache: torch.Tensor) -> torch.Tensor:
    return cache.contiguous().view(torch.int32 if cache.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"page_size": 1},
        {"page_size": 5, "dims": (80, 16), "layers": 7},
        {"page_size": 64, "dims": (40, 72)},
        {"layers": 1, "dims": (17, 5)},
        {"order": (1, 0, 3, 2), "page_size": 8},
        {"order": (3, 2, 0, 1), "page_size": 3},
        {"src": (), "dst": ()},
    ],
    ids=str,
)
def test_copies_the_pages_and_nothing_else(shape: dict[str, Any], target: Target, dtype: torch.dtype) -> None:
    arguments = moved(build(dtype, **shape), target.device)
    want = {name: arguments[name].clone() for name in ("k_caches", "v_caches")}
    for cache in want.values():
        for source, destination in zip(arguments["src"].tolist(), arguments["dst"].tolist(), strict=True):
            cache[:, destination] = cache[:, source].clone()
    copy_pages(**arguments)
    for name, cache in want.items():
        assert torch.equal(bits(arguments[name]), bits(cache))


def test_offsets_beyond_32_bits(target: Target) -> None:
    caches = {f"{name}_caches": far_apart((2, 3, 2, 1, 8), torch.bfloat16, 1, target.device) for name in "kv"}
    want = {name: normal((2, 3, 2, 1, 8), torch.bfloat16, 0).to(target.device) for name in caches}
    for name, cache in caches.items():
        cache.copy_(want[name])
        want[name][:, [2, 1]] = want[name][:, [0, 0]]
    pages = {name: torch.tensor(ids, device=target.device) for name, ids in (("src", [0, 0]), ("dst", [2, 1]))}
    copy_pages(**caches, **pages)
    copy_pages(**caches, src=pages["dst"][:1], dst=pages["src"][:1])
    for name, cache in want.items():
        assert torch.equal(caches[name], cache)


METADATA = {
    "k_caches of four dimensions": ("k_caches", lambda a: a["k_caches"][0]),
    "k_caches of integers": ("k_caches", lambda a: a["k_caches"].int()),
    "k_caches with a stride": ("k_caches", lambda a: a["k_caches"].transpose(3, 4)),
    "v_caches of another dtype": ("v_caches", lambda a: a["v_caches"].half()),
    "v_caches with fewer layers": ("v_caches", lambda a: a["v_caches"][1:]),
    "v_caches with other pages": ("v_caches", lambda a: a["v_caches"][:, 1:]),
    "v_caches elsewhere": ("v_caches", lambda a: a["v_caches"].to("meta")),
    "src of int32": ("src", lambda a: a["src"].int()),
    "dst too few": ("dst", lambda a: a["dst"][1:]),
    "dst with a stride": ("dst", lambda a: a["dst"].repeat_interleave(2)[::2]),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.float32)
    with pytest.raises(ValueError, match=rf"copy_pages: .*\b{culprit}\b.*, got "):
        copy_pages(**arguments | {culprit: change(arguments)})


@pytest.mark.parametrize(
    ("src", "dst", "culprit"),
    [
        ((1, P), (2, 3), "src"),
        ((1, -1), (2, 3), "src"),
        ((1, 4), (2, P), "dst"),
        ((1, 4), (2, -(2**40)), "dst"),
        ((1, 4), (2, 2), "dst"),
        ((1, 4), (2, 1), "dst"),
        ((1,), (1,), "dst"),
    ],
)
def test_bad_pages_touch_nothing(src: tuple[int, ...], dst: tuple[int, ...], culprit: str, target: Target) -> None:
    arguments = moved(build(torch.float32, src=src, dst=dst), target.device)
    before = {name: arguments[name].clone() for name in ("k_caches", "v_caches")}
    with pytest.raises(ValueError, match=rf"\b{culprit}\b.* got "):
        copy_pages(**arguments)
    for name, cache in before.items():
        assert torch.equal(bits(arguments[name]), bits(cache))


def test_opcheck(device: str) -> None:
    arguments = {name: torch.nan_to_num(value) for name, value in build(torch.float32).items()}
    torch.library.opcheck(torch.ops.asyncthink.copy_pages.default, tuple(moved(arguments, device).values()))
