"""Run as a program, without a GPU: what the Triton ops would compile for the calls of a run, and what they list.

The launcher is Triton's own, up to the moment where it would compile; there a hook writes down the specialization.
Prints a JSON object {op: {"calls": [[what a call compiles]], "variants": [what ahead-of-time compilation is told]}}.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from asyncthink_kernels.arguments import PagedAttention, TreeAttention
from asyncthink_kernels.backends.triton import _attention
from asyncthink_kernels.testing import Tree

OPS = ("append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention")
ARCH = "sm_90"
L, P, S, H, D = 3, 16, 16, 8, 128
#: Options of the compiler that are not Triton's own, with those.
OPTIONS = {"enable_fp_fusion": True, "maxnreg": None}
compiled: list[dict[str, Any]] = []


class NoDriver:
    """Stands where the driver of a GPU would."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def write_down(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
    names = fn.jit_function.arg_names
    (attributes,) = compile["configs"]
    options = json.loads(compile["specialization_data"])["options"]
    compiled.append(
        {
            "types": {name: kind for name, kind in compile["signature"].items() if kind != "constexpr"},
            "constants": {names[place]: str(value) for (place,), value in compile["constants"].items()},
            "aligned": sorted(names[place] for (place,), found in attributes.items() if found),
            "warps": compile["num_warps"],
            "stages": compile["num_stages"],
            "options": {name: options[name] for name in OPTIONS},
        }
    )
    return True  # do not compile; nothing is launched then


def calls(dtype: torch.dtype, T: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of each op for T tokens (or pages, or states)."""
    k_caches, v_caches = torch.zeros(L, P, S, H, D, dtype=dtype), torch.zeros(L, P, S, H, D, dtype=dtype)
    k, v = torch.zeros(T, 2, H, D, dtype=dtype).unbind(1)
    angles = torch.zeros(L, D // 4)
    out, lse = torch.zeros(T, T, 32, D, dtype=dtype), torch.zeros(T, T, 32)
    near, far = torch.arange(T) % P, P + torch.arange(T)
    q, shape = torch.zeros(T, 32, D, dtype=dtype), (T, 32)
    tree = Tree(num_pages=P)
    root = tree.root(20)
    plan = tree.plan([(tree.fork(root, 20, 0 if i else 1), 1) for i in range(T)]).args
    results = (torch.empty_like(q), torch.empty(shape))
    tables, lengths = torch.zeros(T, 4, dtype=torch.int32), torch.full((T,), 60, dtype=torch.int32)
    return {
        "tree_attention": (
            (TreeAttention(q, k_caches[0], v_caches[0], **plan, scale=0.1), *results),
            {},
        ),
        "paged_attention": (
            (PagedAttention(q, k_caches[0], v_caches[0], tables, lengths, scale=0.1, chunk=16), *results),
            {},
        ),
        "append_kv": ((k, v, k_caches[0], v_caches[0], far), {}),
        "copy_pages": ((k_caches, v_caches, near[: P // 2] % 8, 8 + near[: P // 2]), {}),
        "join_append": ((k_caches, v_caches, near, far, angles, angles.clone()), {"interleaved": True}),
        "merge_states": ((out, lse, out[0].clone(), lse[0].clone()), {}),
    }


def listed(variant: Any) -> dict[str, Any]:
    return {
        "types": variant.types,
        "constants": {name: str(value) for name, value in variant.constants.items()},
        "aligned": sorted(variant.aligned),
        "warps": variant.num_warps,
        "stages": variant.num_stages,
        "options": {**OPTIONS, **variant.options},
    }


def main() -> None:
    driver.set_active(NoDriver())
    _attention.architecture = lambda tensor: ARCH  # type: ignore[assignment]
    triton.knobs.runtime.jit_cache_hook = write_down
    found: dict[str, Any] = {}
    for op in OPS:
        module = importlib.import_module(f"asyncthink_kernels.backends.triton.{op}")
        found[op] = {"calls": [], "variants": [listed(variant) for variant in module.variants(ARCH)]}
        for dtype in (torch.float32, torch.bfloat16):
            for T in (1, 3, 16):
                compiled.clear()
                arguments, options = calls(dtype, T)[op]
                getattr(module, op)(*arguments, **options)
                found[op]["calls"].append(list(compiled))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
