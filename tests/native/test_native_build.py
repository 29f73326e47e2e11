"""The native modules as built here: Views, errors, threads shared with torch, instruction sets, no GPU needed."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncthink_kernels.backends import cuda, native

ROOT = Path(__file__).resolve().parents[2]
GOMP_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
LOOP_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_cpu = native._cpu


@pytest.fixture(params=_cpu.usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def caches(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """k [L=2, P=6, S=4, H=2, D=8] and v [.., Dv=6]."""
    return torch.randn(2, 6, 4, 2, 8).to(dtype), torch.randn(2, 6, 4, 2, 6).to(dtype)


class TestView:
    """What the bindings read of a tensor, with nothing of torch linked."""

    def test_strides_are_followed(self) -> None:
        k, v = torch.randn(2, 3, 8).transpose(0, 1), torch.randn(3, 9, 6)[:, ::4][:, :2]
        k_cache, v_cache = torch.zeros(4, 2, 6, 8).permute(2, 0, 1, 3), torch.zeros(6, 4, 2, 12)[..., 3:9]
        native.append_kv(k, v, k_cache, v_cache, torch.tensor([9, 0, 5, 0, 23, 0])[::2])
        for token, (page, offset) in enumerate([(2, 1), (1, 1), (5, 3)]):
            assert torch.equal(k_cache[page, offset], k[token])
            assert torch.equal(v_cache[page, offset], v[token])
        assert k_cache.count_nonzero() == k.count_nonzero()
        assert v_cache.count_nonzero() == v.count_nonzero()

    def test_too_many_dimensions(self) -> None:
        with pytest.raises(ValueError, match="shape: expected at most 6 dimensions, got 7"):
            append(k=torch.zeros(1, 1, 1, 1, 1, 1, 1))

    def test_unknown_dtype(self) -> None:
        with pytest.raises(ValueError, match=r"dtype: expected float32, .* or uint8, got torch\.complex64"):
            append(k=torch.zeros(3, 2, 8, dtype=torch.complex64))

    @pytest.mark.parametrize("other", [None, [1.0, 2.0], memoryview(b"12345678")])
    def test_other_objects(self, other: object) -> None:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            _cpu.merge_states(other, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1))


def append(**changes: torch.Tensor) -> None:
    k_caches, v_caches = caches()
    arguments = {
        "k": torch.randn(3, 2, 8),
        "v": torch.randn(3, 2, 6),
        "k_cache": k_caches[0],
        "v_cache": v_caches[0],
        "slots": torch.tensor([5, 0, 23]),
    } | changes
    before = [each.clone() for each in (arguments["k_cache"], arguments["v_cache"])]
    try:
        native.append_kv(**arguments)
    finally:
        for kept, now in zip(before, (arguments["k_cache"], arguments["v_cache"]), strict=True):
            assert torch.equal(kept, now)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(3, 8)}, r"k: expected 3 dimensions \[T, H, D\], got 2"),
        ({"v": torch.zeros(3, 4, 6)}, "v: expected H = 2 in dimension 1, as in k, got 4"),
        ({"v_cache": torch.zeros(6, 4, 2, 7)}, "v_cache: expected Dv = 6 in dimension 3, as in v, got 7"),
        ({"k": torch.zeros(3, 2, 8, dtype=torch.float64)}, "k: expected float32, bfloat16 or float16, got float64"),
        ({"v": torch.zeros(3, 2, 6, dtype=torch.float16)}, "v: expected float32, got float16"),
        ({"k": torch.zeros(3, 2, 16)[..., ::2]}, "k: expected stride 1 in the last dimension, got 2"),
        ({"slots": torch.tensor([5, 0, 23], dtype=torch.int32)}, "slots: expected int64, got int32"),
        ({"slots": torch.tensor([5, 0, 24])}, r"slots\[2\]: expected a value in \[-1, 24\), got 24"),
        ({"slots": torch.tensor([5, -2, 3])}, r"slots\[1\]: expected a value in \[-1, 24\), got -2"),
        ({"slots": torch.tensor([5, 1, 5])}, "slots: expected distinct values, got 5 twice"),
    ],
)
def test_bad_input_is_a_value_error_before_anything_is_written(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        append(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, v: native.copy_pages(k, v, torch.tensor([0, 1]), torch.tensor([2, 1])), "dst: .* source, got 1"),
        (lambda k, v: native.copy_pages(k, v, torch.tensor([0]), torch.tensor([6])), r"dst\[0\]: .* got 6"),
        (lambda k, v: join(k, v, [0, 1], [2, 2]), "dst_slots: expected distinct values, got 2 twice"),
        (lambda k, v: join(k, v, [0, 1], [2, 0]), "dst_slots: expected no value that is also a source, got 0"),
        (lambda k, v: join(k, v, [0, 24], [2, 3]), r"src_slots\[1\]: expected a value in \[0, 24\), got 24"),
        (lambda k, v: join(k, v, [0], [2], pairs=5), "cos: expected R <= D / 2 = 4, got 5"),
    ],
)
def test_bad_moves_leave_the_cache_alone(call: Callable[..., None], message: str) -> None:
    k, v = caches()
    before = k.clone(), v.clone()
    with pytest.raises(ValueError, match=message):
        call(k, v)
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])
    native.copy_pages(k, v, torch.tensor([4]), torch.tensor([5]))  # the scratch of the failed check is clean
    assert torch.equal(k[:, 5], k[:, 4])


def join(k: torch.Tensor, v: torch.Tensor, src: list[int], dst: list[int], pairs: int = 4) -> None:
    angle = torch.ones(k.shape[0], pairs)
    native.join_append(k, v, torch.tensor(src), torch.tensor(dst), angle.cos(), angle.sin(), interleaved=False)


class TestThreads:
    def test_finds_the_openmp_of_torch(self) -> None:
        if not torch.backends.openmp.is_available():
            pytest.skip("this torch has no OpenMP")
        assert native._GOMP_PARALLEL != 0

    def test_asks_for_the_full_team_of_torch(self, monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
        asked: list[tuple[int, int]] = []

        @GOMP_PARALLEL
        def team(body: int, data: int, threads: int, flags: int) -> None:
            asked.append((threads, flags))
            members = [threading.Thread(target=LOOP_BODY(body), args=(data,)) for _ in range(threads)]
            for member in members:
                member.start()
            for member in members:
                member.join()

        monkeypatch.setattr(native, "_GOMP_PARALLEL", ctypes.cast(team, ctypes.c_void_p).value)
        outs, lses = torch.randn(3, 100, 2, 8), torch.randn(3, 100, 2)
        out, lse = torch.full((100, 2, 8), torch.nan), torch.full((100, 2), torch.nan)
        native.merge_states(outs, lses, out, lse)
        assert asked == [(2, 0)]
        torch.testing.assert_close(lse, lses.logsumexp(0))
        torch.testing.assert_close(out, (lses.softmax(0)[..., None] * outs).sum(0))

    def test_starts_no_thread_beside_the_pool_of_torch(self) -> None:
        script = """
import os, torch
from asyncthink_kernels.backends import native
torch.set_num_threads(2)
matrix = torch.randn(512, 512)
for _ in range(3): matrix @ matrix + matrix.exp()
before = sorted(os.listdir("/proc/self/task"))
outs, lses = torch.randn(3, 4096, 2, 8), torch.randn(3, 4096, 2)
for _ in range(3): native.merge_states(outs, lses, outs[0].clone(), lses[0].clone())
assert sorted(os.listdir("/proc/self/task")) == before, "threads came or went"
assert len(before) >= 2, before
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr

    def test_runs_without_openmp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "_GOMP_PARALLEL", 0)
        outs, lses = torch.randn(2, 64, 2, 8), torch.randn(2, 64, 2)
        out, lse = torch.empty(64, 2, 8), torch.empty(64, 2)
        native.merge_states(outs, lses, out, lse)
        torch.testing.assert_close(lse, lses.logsumexp(0))
        assert native.note("cpu").endswith("1 thread: torch has no OpenMP here")


class TestIsa:
    def test_forced(self, isa: str) -> None:
        assert _cpu.isa() == isa
        assert native.note("cpu").startswith(isa)

    def test_unknown_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"isa: expected one of scalar.*, got sse9"):
            _cpu.set_isa("sse9")

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_every_16_bit_number_is_read_and_rounded_as_torch_does(self, isa: str, half: torch.dtype) -> None:
        """Two states of weight 1/2 each: float32 sums halfway between neighbours, overflow, subnormals, inf, NaN."""
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
        for other in (every, every.roll(1), every.roll(4321), every.flip(0)):
            outs = torch.stack((every, other))[:, None, None]
            out, lse = torch.empty(1, 1, every.numel(), dtype=half), torch.empty(1, 1)
            native.merge_states(outs, torch.zeros(2, 1, 1), out, lse)
            expected = (every.float() * 0.5 + other.float() * 0.5).to(half)
            assert torch.equal(out[0, 0].isnan(), expected.isnan())
            assert torch.equal(out[0, 0].nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))

    def test_sources_of_one_set_emit_nothing_shared(self) -> None:
        """A weak symbol of every set (compiled for AVX-512 in one) could be the copy the linker keeps for all chips."""
        objects = sorted((ROOT / "build").glob("native-*/CMakeFiles/atk_*.dir/csrc/cpu/*.o"))
        if not objects or shutil.which("nm") is None:
            pytest.skip("no build tree or no nm here")
        for each in objects:
            (isa,) = re.findall(r"atk_(\w+)\.dir", str(each))
            names = subprocess.run(["nm", "-C", "--defined-only", each], capture_output=True, text=True, check=True)
            weak = re.findall(r"^\S+ [WVu] .*$", names.stdout, re.MULTILINE)
            assert [name for name in weak if f"atk::{isa}::" not in name] == [], each


def test_cuda_module_loads_and_says_what_is_missing() -> None:
    if native.load("_cuda") is None:
        pytest.skip("_cuda was not built here")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    script = "import asyncthink_kernels._cuda as cuda; print(cuda.unavailable_reason())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("no driver", "no CUDA-capable device is detected")


def test_missing_module_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_cuda", None)
    assert cuda.unavailable_reason("append_kv", "cuda") == "_cuda was not built: install again where nvcc is found"
    monkeypatch.setattr(native, "_cpu", None)
    assert (
        native.unavailable_reason("append_kv", "cpu")
        == "_cpu was not built: install again where a C++ compiler is found"
    )


def test_ops_that_cuda_lacks_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        append_kv: Any = staticmethod(lambda: None)
        unavailable_reason: Any = staticmethod(lambda: "no driver")

    monkeypatch.setattr(cuda, "_cuda", Module)
    assert cuda.unavailable_reason("tree_attention", "cuda") == "not written yet"
    assert cuda.unavailable_reason("append_kv", "cuda") == "no driver"
    assert cuda.unavailable_reason("append_kv", "cpu") == "runs on GPUs"
