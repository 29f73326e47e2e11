"""The dtype of "auto", by given rates: nothing here depends on the processor."""

from __future__ import annotations

import pytest
import torch

from asyncthink.model import auto_dtype
from asyncthink.model.auto_dtype import Choice, choose_dtype, product_rate

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
OLD = {F32: 55.0, BF16: 7.0, F16: 6.0}.__getitem__
NEW = {F32: 90.0, BF16: 190.0, F16: 20.0}.__getitem__
EVEN = {F32: 50.0, BF16: 50.0, F16: 50.0}.__getitem__


def never(dtype: torch.dtype) -> float:
    raise AssertionError(f"measured {dtype}")


@pytest.mark.parametrize(
    ("stored", "measure", "chosen"),
    [
        (BF16, OLD, F32),
        (F16, OLD, F32),
        (BF16, NEW, BF16),
        (F16, NEW, F32),
        (BF16, EVEN, BF16),  # half the memory
        (F16, EVEN, F16),
        (F32, never, F32),
        (F64, never, F64),
    ],
)
def test_decoding_on_a_cpu(stored: torch.dtype, measure: auto_dtype.Measure, chosen: torch.dtype) -> None:
    assert choose_dtype("cpu", stored, use="decoding", measure=measure).dtype is chosen


@pytest.mark.parametrize(
    ("stored", "measure", "chosen"),
    [
        (F32, OLD, F32),
        (F32, NEW, BF16),
        (F32, EVEN, F32),  # more exact
        (BF16, never, BF16),
        (F64, never, F64),
    ],
)
def test_training_on_a_cpu(stored: torch.dtype, measure: auto_dtype.Measure, chosen: torch.dtype) -> None:
    assert choose_dtype("cpu", stored, use="training", measure=measure).dtype is chosen


def test_the_reason_holds_the_figures_and_the_cost() -> None:
    threads = torch.get_num_threads()
    of = f"({threads} thread{'s' if threads > 1 else ''})"
    assert choose_dtype("cpu", BF16, use="decoding", measure=OLD) == Choice(
        F32,
        f"float32 instead of the stored bfloat16: this CPU multiplies 7 GFLOP/s in bfloat16, 55 in float32 {of}; "
        "weights and cache take twice the memory",
    )
    assert choose_dtype("cpu", F32, use="training", measure=NEW).why == (
        f"bfloat16 products (autocast): this CPU multiplies 190 GFLOP/s in bfloat16, 90 in float32 {of}"
    )


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_asked_and_not_measured(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_dtype, "_gpu_has_bfloat16", lambda device: has)
    pick = {
        (use, stored): choose_dtype("cuda", stored, use=use, measure=never).dtype
        for use in ("decoding", "training")
        for stored in (F32, F16, BF16)
    }
    assert pick == {
        ("decoding", F32): F32,
        ("decoding", F16): F16,
        ("decoding", BF16): BF16 if has else F32,
        ("training", F32): BF16 if has else F32,
        ("training", F16): F16,
        ("training", BF16): BF16,
    }


def test_other_devices_keep_what_is_stored() -> None:
    assert choose_dtype("mps", F16, use="decoding", measure=never).dtype is F16
    assert choose_dtype("mps", F32, use="training", measure=never).dtype is F32


def test_a_measurement_is_made_once_and_changes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    auto_dtype._product_rate.cache_clear()
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        rates = [product_rate(dtype) for dtype in (F32, BF16, F16)]
    assert min(rates) > 0
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(torch.nn.functional, "linear", never)
    assert [product_rate(dtype) for dtype in (F32, BF16, F16)] == rates


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="use: expected decoding or training, got 'serving'"):
        choose_dtype("cpu", F32, use="serving")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stored: expected a floating-point dtype, got int8"):
        choose_dtype("cpu", torch.int8, use="decoding")
