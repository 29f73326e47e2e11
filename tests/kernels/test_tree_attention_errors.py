"""tree_attention refuses what does not fit, by name, before it touches memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import TreePlan, tree_attention
from asyncthink_kernels.testing import moved
from targets import Target
from tree_cases import CASES, PLAN, attend, build, padded

CACHES = ("k_cache", "v_cache")

METADATA = {
    "q of two dimensions": ("q", lambda a: a["q"][0]),
    "q of another head_dim": ("k_cache", lambda a: a["q"][:, :, :32]),
    "q heads no multiple": ("q", lambda a: a["q"][:, :3]),
    "q of integers": ("q", lambda a: a["q"].int()),
    "q with a stride": ("q", lambda a: a["q"].repeat(1, 1, 2)[:, :, ::2]),
    "q that requires grad": ("q", lambda a: a["q"].clone().requires_grad_()),
    "k_cache of another dtype": ("k_cache", lambda a: a["k_cache"].half()),
    "k_cache with a stride": ("k_cache", lambda a: a["k_cache"].transpose(0, 3).contiguous().transpose(0, 3)),
    "v_cache with fewer pages": ("v_cache", lambda a: a["v_cache"][1:]),
    "v_cache with other heads": ("v_cache", lambda a: a["v_cache"][:, :, :1]),
    "v_cache elsewhere": ("v_cache", lambda a: a["v_cache"].to("meta")),
    "items with five columns": ("items", lambda a: a["items"][:, :5].contiguous()),
    "items of int64": ("items", lambda a: a["items"].long()),
    "items not contiguous": ("items", lambda a: a["items"].repeat(1, 2)[:, :6]),
    "pages of two dimensions": ("pages", lambda a: a["pages"][None]),
    "entries with six columns": ("entries", lambda a: a["entries"].repeat(1, 2)[:, :6].contiguous()),
    "row_ptr too short": ("row_ptr", lambda a: a["row_ptr"][1:]),
    "positions too long": ("positions", lambda a: a["positions"].repeat(2)),
    "positions of floats": ("positions", lambda a: a["positions"].float()),
    "shifts empty": ("shifts", lambda a: a["shifts"][:0]),
    "window of 0": ("window", lambda a: 0),
    "softcap of 0": ("softcap", lambda a: 0.0),
    "scale of nan": ("scale", lambda a: math.nan),
    "sinks for each kv head": ("sinks", lambda a: torch.zeros(2)),
    "sinks of bfloat16": ("sinks", lambda a: torch.zeros(4, dtype=torch.bfloat16)),
    "cos without sin": ("sin", lambda a: None),
    "cos for other shifts": ("cos", lambda a: a["cos"].repeat(2, 1)),
    "sin of another width": ("sin", lambda a: a["sin"][:, :4].contiguous()),
    "cos of float64": ("cos", lambda a: a["cos"].double()),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    changed = name.split()[0] if name != "cos without sin" else "sin"
    with pytest.raises(ValueError, match=rf"tree_attention: .*\b{culprit}\b.*, got "):
        attend(**arguments | {changed: change(arguments)})


PLAN_OF_OTHERS = {
    "fewer rows in q": {"q": (10, 4, 64), "k_cache": (400, 16, 2, 64)},
    "more rows in q": {"q": (12, 4, 64), "k_cache": (400, 16, 2, 64)},
    "fewer pages in the cache": {"q": (11, 4, 64), "k_cache": (399, 16, 2, 64)},
    "smaller pages in the cache": {"q": (11, 4, 64), "k_cache": (400, 8, 2, 64)},
    "larger pages in the cache": {"q": (11, 4, 64), "k_cache": (400, 32, 2, 64)},
    "a cache of two dimensions": {"q": (11, 4, 64), "k_cache": (400, 16)},
}


@pytest.mark.parametrize("name", PLAN_OF_OTHERS)
def test_a_plan_for_other_sizes_is_refused(name: str) -> None:
    """Its values were checked against its own pages and rows: with others they would be addresses out of bounds."""
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    plan = TreePlan(**{name: arguments[name] for name in PLAN}, num_pages=400, page_size=16)
    q, k_cache = (torch.zeros(shape) for shape in PLAN_OF_OTHERS[name].values())
    with pytest.raises(ValueError, match=r"for this plan q must be \[T=11, Hq, D\] .* \[P >= 400, S=16, H, D\], got "):
        tree_attention(q, k_cache, k_cache, plan)


def test_a_plan_on_another_device_is_refused() -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    plan = TreePlan(**{name: arguments[name] for name in PLAN}, num_pages=400, page_size=16).to("meta")
    with pytest.raises(ValueError, match=r"for this plan q must be .* on meta .* got .* on cpu"):
        tree_attention(arguments["q"], arguments["k_cache"], arguments["v_cache"], plan)


def test_a_cache_may_have_more_pages_than_its_plan() -> None:
    arguments, _ = build(CASES["fork mid-page"], torch.float32)
    more = {name: torch.cat([arguments[name], torch.full_like(arguments[name][:3], math.nan)]) for name in CACHES}
    plan = TreePlan(**{name: arguments[name] for name in PLAN}, num_pages=200, page_size=16)
    out = tree_attention(arguments["q"], more["k_cache"], more["v_cache"], plan)
    assert torch.equal(out, attend(**arguments)[0])


def test_a_plan_is_checked_when_it_is_made() -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    plan = {name: arguments[name] for name in PLAN}
    with pytest.raises(ValueError, match=r"tree_attention: pages must be in \[0, 30\), got "):
        TreePlan(**plan, num_pages=30, page_size=16)
    with pytest.raises(ValueError, match="tree_attention: page_size must be at least 1, got 0"):
        TreePlan(**plan, num_pages=400, page_size=0)


def test_too_wide_a_rotation() -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    wide = {"cos": arguments["cos"].repeat(1, 2), "sin": arguments["sin"].repeat(1, 2)}
    with pytest.raises(ValueError, match=r"cos must have 2 R <= D=64, got R=64"):
        attend(**arguments | wide)


VALUES = {  # tensor, index, value
    "page id too large": ("pages", 0, 400),
    "page id negative": ("pages", 0, -1),
    "items page_begin negative": ("items", (0, 0), -1),
    "items page_begin past the end": ("items", (0, 0), 10**6),
    "items offset negative": ("items", (0, 1), -1),
    "items offset of a whole page": ("items", (0, 1), 16),
    "items length negative": ("items", (0, 2), -5),
    "items length beyond its pages": ("items", (-1, 2), 10**6),
    "items length beyond int32": ("items", (0, 2), 2**31 - 1),
    "items entry_begin negative": ("items", (0, 4), -1),
    "items entry_end beyond the entries": ("items", (-1, 5), 10**6),
    "entries row negative": ("entries", (0, 0), -1),
    "entries row too large": ("entries", (0, 0), 11),
    "entries begin negative": ("entries", (0, 1), -1),
    "entries end beyond the item": ("entries", (0, 2), 513),
    "entries begin behind end": ("entries", (0, 1), 512),
    "entries shift_index negative": ("entries", (0, 3), -1),
    "entries shift_index too large": ("entries", (0, 3), 99),
    "entries partial negative": ("entries", (0, 4), -1),
    "entries partial too large": ("entries", (0, 4), 10**6),
    "entries partial of another row": ("entries", (0, 4), 3),
    "entries partial taken twice": ("entries", (0, 4), 1),
    "items leave entries out": ("items", (0, 4), 1),
    "items share entries": ("items", (1, 4), 0),
    "shifts not from 0": ("shifts", 0, 5),
    "row_ptr not from 0": ("row_ptr", 0, 1),
    "row_ptr falling": ("row_ptr", 1, 10**6),
    "row_ptr not to the end": ("row_ptr", -1, 10**6),
}


@pytest.mark.parametrize("name", VALUES)
def test_bad_values_name_the_tensor(name: str, target: Target) -> None:
    tensor, index, value = VALUES[name]
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    arguments[tensor] = arguments[tensor].clone()
    arguments[tensor][index] = value
    with pytest.raises(ValueError, match=rf"\b({tensor}|entries|row_ptr)\b.* got "):
        attend(**moved(arguments, target.device))


def swapped(a: dict[str, Tensor]) -> None:
    """The first two items change places; each still names its own entries."""
    a["items"][:2] = a["items"][:2].flip(0)


def gap(a: dict[str, Tensor]) -> None:
    """No item holds the first entry of the second one."""
    a["items"][1, 4] += 1


def twice(a: dict[str, Tensor]) -> None:
    """The second item holds the last entry of the first one too."""
    a["items"][1, 4] -= 1


def backwards(a: dict[str, Tensor]) -> None:
    """The first item holds less than nothing."""
    a["items"][0, 5] = a["items"][1, 4] = -1


def unheld(a: dict[str, Tensor]) -> None:
    """The last entry that row_ptr counts is in no item."""
    a["items"][-1, 5] -= 1


def uncounted(a: dict[str, Tensor]) -> None:
    """The items hold one entry more than row_ptr counts."""
    a["row_ptr"][-1] -= 1


def no_items(a: dict[str, Tensor]) -> None:
    """Nothing holds any entry."""
    a["items"] = a["items"][:0]


@pytest.mark.parametrize("spoil", [swapped, gap, twice, backwards, unheld, uncounted, no_items])
def test_items_cover_the_entries_in_order(spoil: Callable[[dict[str, Tensor]], None], target: Target) -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    spoil(arguments)
    with pytest.raises(ValueError, match=r"\b(items|entries)\b.* got "):
        attend(**moved(arguments, target.device))


def test_a_capacity_does_not_excuse_what_is_in_use(target: Target) -> None:
    arguments, _ = build(CASES["links, half-split"], torch.float32)
    arguments = padded(arguments)
    arguments["entries"][0, 4] = 10**6
    with pytest.raises(ValueError, match=r"\bentries\b.* got "):
        attend(**moved(arguments, target.device))
