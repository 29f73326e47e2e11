"""One linear layer with its weights in memory: ours in 8 and 4 bits beside packed ones and torch's own ops."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from asyncthink.model import linear
from asyncthink_kernels.ops.quantized_linear import run_quantized_linear
from asyncthink_kernels.quantized import quantize

LAYER = (3072, 1024)  # O, I
BEYOND_CACHES = 192 << 20  # bytes of weights that a contestant walks through
Matrix = Callable[[Tensor, int], Tensor]


def layers(rows: Sequence[int], seconds: float) -> None:
    """Median milliseconds of one layer, its weights read from memory; what torch cannot run is left out and named."""
    O, I = LAYER
    torch.manual_seed(0)
    weight = torch.randn(O, I) / I**0.5
    every = dict(contestants(weight))
    print(f"[{O}, {I}], ms, {torch.get_num_threads()} threads, median; weights from memory")
    print("| | " + " | ".join(f"{count} rows" for count in rows) + " | bits | error |")
    print("|---|" + "---|" * (len(rows) + 2))
    reference = {dtype: x_of(64, I, dtype).double() @ weight.T.double() for dtype in (torch.float32, torch.bfloat16)}
    for name, (make, dtype, bits) in every.items():
        copies = max(1, int(BEYOND_CACHES / (O * I * bits / 8)))
        try:
            call = make(copies)
            got = call(x_of(64, I, dtype), 0).double()
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            print(f"| {name} | {str(error).splitlines()[0][:90]} |")
            continue
        error = ((got - reference[dtype]).norm() / reference[dtype].norm()).item()
        cells = [f"{1e3 * timed(call, x_of(count, I, dtype), copies, seconds):.3f}" for count in rows]
        same = all(torch.equal(call(x_of(64, I, dtype)[:n], 0), call(x_of(64, I, dtype), 0)[:n]) for n in (1, 8, 16))
        print(f"| {name} | {' | '.join(cells)} | {bits:.2f} | {error:.1e} {'same bits' if same else 'bits differ'} |")
        del call
        gc.collect()


def x_of(rows: int, I: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, I, generator=torch.Generator().manual_seed(1)).to(dtype)


def timed(call: Matrix, x: Tensor, copies: int, seconds: float) -> float:
    times, numbers, end = list[float](), itertools.cycle(range(copies)), time.perf_counter() + seconds
    with torch.inference_mode():
        for _ in range(3):
            call(x, next(numbers))
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            call(x, next(numbers))
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def contestants(weight: Tensor) -> Iterator[tuple[str, tuple[Callable[[int], Matrix], torch.dtype, float]]]:
    """(name, (a maker of calls on so many copies of the weight, dtype of activations, bits of a weight))."""
    wide, half = torch.float32, torch.bfloat16
    for dtype, bits in ((wide, 32), (half, 16)):
        name = str(dtype).removeprefix("torch.")
        yield f"F.linear {name}", (of(lambda d=dtype: weight.to(d).clone(), functional.linear), dtype, bits)
        yield f"ours packed {name}", (of(lambda d=dtype: linear.pack(weight.to(d)), packed), dtype, bits)
    for bits, offset, size in ((8, False, 8.5), (4, False, 4.5), (4, True, 5.0)):
        name = f"ours int{bits}{' with offset' if offset else ''}"
        for dtype in (wide, half):
            make = of(lambda b=bits, o=offset: quantize(weight, b, offset=o), run_quantized_linear)
            yield f"{name}, {str(dtype).removeprefix('torch.')} activations", (make, dtype, size)
    yield "torch._weight_int8pack_mm", (of(lambda: int8_rows(weight), int8_packed), half, 8.0)
    yield "torch._weight_int4pack_mm_for_cpu", (of(lambda: int4_groups(weight), int4_packed), half, 5.0)
    for engine in torch.backends.quantized.supported_engines:
        if engine in ("x86", "onednn", "fbgemm"):
            yield f"torch dynamic int8, {engine}", (of(lambda e=engine: dynamic(weight, e), dynamic_run), wide, 8.0)


def of(make: Callable[[], Any], run: Callable[[Tensor, Any], Tensor]) -> Callable[[int], Matrix]:
    def calls(copies: int) -> Matrix:
        first = make()
        every = [first, *(make_again(first, make) for _ in range(copies - 1))]
        return lambda x, number: run(x, every[number])

    return calls


def make_again(first: Any, make: Callable[[], Any]) -> Any:
    if isinstance(first, tuple):
        parts = [each.clone() if isinstance(each, Tensor) else each for each in first]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return make()


def packed(x: Tensor, weight: Tensor) -> Tensor:
    return linear._run(x, weight, None)


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()


def int8_packed(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    return torch._weight_int8pack_mm(x, *weight)


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    O, I = weight.shape
    groups = weight.view(O, -1, 32)
    low, high = groups.aminmax(dim=2, keepdim=True)
    scale = (high - low) / 15
    u = ((groups - low) / scale).round().clamp(0, 15).to(torch.int32).view(O, I)
    offsets = torch.stack([scale[..., 0], (low + 8 * scale)[..., 0]], 2).transpose(0, 1).contiguous().bfloat16()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(u, 2), offsets


def int4_packed(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight[0], 32, weight[1])


def dynamic(weight: Tensor, engine: str) -> Any:
    torch.backends.quantized.engine = engine
    scale = weight.abs().amax(1) / 127
    zero = torch.zeros(weight.shape[0], dtype=torch.long)
    quantized = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, None)


def dynamic_run(x: Tensor, weight: Any) -> Tensor:
    y: Tensor = torch.ops.quantized.linear_dynamic(x, weight)
    return y
