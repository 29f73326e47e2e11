"""The K/V storage: one allocation for K, one for V, every layer its own part of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asyncthink_kernels.cache import KVStorage, LayerShape

SHAPES = (LayerShape(2, 8, 8), LayerShape(1, 16, 4), LayerShape(2, 8, 8))


def test_layers_of_a_shape_share_a_tensor_and_all_k_and_all_v_an_allocation():
    storage = KVStorage(SHAPES, num_pages=3, page_size=4, dtype=torch.bfloat16)
    assert [group.layers for group in storage.groups] == [(0, 2), (1,)]
    assert storage.groups[0].k.shape == (2, 3, 4, 2, 8)
    assert storage.groups[1].v.shape == (1, 3, 4, 1, 4)
    assert storage.bytes_per_token == 2 * (2 * 2 * 16 + 20)
    k, v = ({getattr(g, name).untyped_storage().data_ptr() for g in storage.groups} for name in "kv")
    assert len(k) == len(v) == 1
    assert k != v  # torch.compile would copy V at every append


def test_no_two_layers_overlap():
    storage = KVStorage(SHAPES, num_pages=3, page_size=4)
    views = [view for layer in range(3) for view in (storage.k(layer), storage.v(layer))]
    for number, view in enumerate(views):
        view.fill_(number)
    for number, view in enumerate(views):
        assert bool((view == number).all())
    assert storage.k(1).shape == (3, 4, 1, 16)
    assert storage.v(1).shape == (3, 4, 1, 4)
    assert torch.equal(storage.groups[0].k[1], storage.k(2))


def test_poison_reaches_every_slot():
    storage = KVStorage(SHAPES, num_pages=3)
    storage.poison()
    assert all(bool(t.isnan().all()) for group in storage.groups for t in (group.k, group.v))


def kernel_flags(address: int) -> list[str]:
    """VmFlags of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no transparent huge pages"
)
def test_a_large_storage_is_advised_to_use_huge_pages_and_usable():
    storage = KVStorage([LayerShape(4, 64, 64)], num_pages=1024, page_size=16)
    assert "hg" in kernel_flags(storage.k(0).data_ptr() + (4 << 20))
    storage.k(0).fill_(1.0)
    storage.v(0).fill_(2.0)
    assert storage.k(0).sum().item() == storage.k(0).numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_pages": 0}, "num_pages: expected an integer >= 1, got 0"),
        ({"page_size": -1}, "page_size: expected an integer >= 1, got -1"),
        ({"layers": [LayerShape(1, 8, 8), LayerShape(1, 0, 8)]}, r"layers\[1\].head_dim: expected"),
        ({"dtype": torch.int8}, "dtype: expected one of .* got torch.int8"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"layers": SHAPES, "num_pages": 2, **change}
    with pytest.raises(ValueError, match=message):
        KVStorage(**arguments)


def test_what_does_not_fit_says_how_much_it_is():
    with pytest.raises(MemoryError, match=r"need [\d.]+ GiB on cpu; lower num_pages"):
        KVStorage(SHAPES, num_pages=1 << 45)
