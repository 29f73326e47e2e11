"""Ahead-of-time compilation of a :class:`Variant`: its key, and what it takes of a GPU. Needs no GPU."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from asyncthink_kernels.backends.triton._launch import Variant
from gpu_resources import Resources, from_amd, from_nvidia

#: Part of every key: count up when :class:`Resources` means something else than before.
_EDITION = 1


def key(variant: Variant, arch: str, version: str = triton.__version__) -> str:
    """Sixteen hexadecimal digits that change with whatever the compiled code follows from.

    That is Triton's version, the architecture, the source of the kernel and of all it calls, the global constants in
    them, types, constants, alignment, warps, stages and options; not comments, docstrings and line numbers (with
    Triton's own key, which counts lines, an edit at the top of a file would change everything beneath it).
    """
    content = {
        "edition": _EDITION,
        "triton": version,
        "arch": arch,
        "name": variant.name,
        "kernel": variant.kernel.__name__,
        "source": _sources(variant.kernel),
        "types": dict(variant.types),
        "constants": {name: _spelled(value) for name, value in variant.constants.items()},
        "aligned": sorted(variant.aligned),
        "launch": [variant.num_warps, variant.num_stages],
        "options": {name: repr(value) for name, value in variant.options.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def compile_variant(variant: Variant, arch: str) -> Resources:
    """Compiles for ``arch`` ("sm_90", "gfx942"), anew each time and leaving nothing behind.

    Raises ValueError where the variant does not name each argument of its kernel once, and whatever Triton raises.
    """
    source = _ast_source(variant)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    log = io.StringIO()  # ptxas speaks of spills in its log alone, and Triton prints that
    with _private_cache(), contextlib.redirect_stdout(log):
        binary = triton.compile(source, target=_target(arch), options=options)
    shared = int(binary.metadata.shared)
    if arch.startswith("gfx"):
        return from_amd(binary.asm["amdgcn"], shared)
    tensor = int(getattr(binary.metadata, "tmem_size", None) or 0)
    return from_nvidia(arch, log.getvalue(), _usage(binary.asm["cubin"]), binary.asm["ptx"], shared, tensor)


def intermediate(variant: Variant, arch: str) -> str:
    """Triton's GPU dialect of the variant: layouts, matrix instructions, pipelined loads."""
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **variant.options}
    with _private_cache(), contextlib.redirect_stdout(io.StringIO()):
        binary = triton.compile(_ast_source(variant), target=_target(arch), options=options)
    return str(binary.asm["ttgir"])


def _target(arch: str) -> Any:
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def _ast_source(variant: Variant) -> Any:
    names = variant.kernel.arg_names
    types, constants = variant.types.keys(), variant.constants.keys()
    odd = types ^ constants ^ set(names) | types & constants | variant.aligned - types
    if odd:
        text = "types and constants must name each argument of the kernel once, aligned some of types"
        raise ValueError(f"{variant.name}: {text}; see {', '.join(sorted(odd))}")
    return ASTSource(
        variant.kernel,
        {name: variant.types.get(name, "constexpr") for name in names},
        dict(variant.constants),
        {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )


@contextlib.contextmanager
def _private_cache() -> Iterator[None]:
    """Triton takes nothing from its cache on disk and leaves nothing there, and prints what ptxas prints."""
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = folder
        triton.knobs.nvidia.dump_ptxas_log = True
        yield


def _usage(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def _sources(kernel: Any) -> str:
    """Source of the kernel and of all Triton functions it calls, with the global constants they use."""
    found: dict[str, str] = {}
    todo: list[tuple[str, Any]] = [(kernel.__name__, kernel)]
    while todo:
        name, value = todo.pop()
        if not isinstance(value, JITFunction):
            found[name] = _spelled(value)
        elif name not in found and not value.__module__.startswith("triton."):  # Triton's own go with its version
            tree = ast.parse(value.src)
            found[name] = _without_docstring(tree)
            todo += _used(tree, value)
    return json.dumps(found, sort_keys=True)


def _used(tree: ast.Module, function: Any) -> Iterator[tuple[str, Any]]:
    """Triton functions and constants among the globals that a function names, bare or as ``module.name``."""
    scope = function.fn.__globals__
    for node in ast.walk(tree):
        value = None
        if isinstance(node, ast.Name):
            value = scope.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = scope.get(node.value.id)
            value = getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None
        if isinstance(value, JITFunction):
            yield f"{value.__module__}.{value.__name__}", value
        elif isinstance(value, tl.constexpr):
            yield f"{function.__module__}: {ast.unparse(node)}", value


def _without_docstring(tree: ast.Module) -> str:
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    return ast.unparse(tree)  # an equal text on every Python, other than ast.dump


def _spelled(value: Any) -> str:
    """A constant as text that is equal in each process."""
    if isinstance(value, JITFunction):
        return _sources(value)
    if isinstance(value, tl.constexpr):
        value = value.value
    if isinstance(value, int | float | str | tl.dtype | None):
        return f"{type(value).__name__} {value}"
    raise ValueError(f"a kernel's constant must be a number, text, None, a Triton dtype or function, got {value!r}")
