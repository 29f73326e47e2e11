"""The arrows of the design, read from the source: imports run one way, and each room knows only what it may.

``python tests/repo/test_layering.py`` prints the rooms with their floors and arrows.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncthink_kernels.dispatch import OPS

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
KERNELS, SAMPLER = "asyncthink_kernels", "asyncthink"


def find_modules() -> dict[str, Path]:
    modules = {}
    for base, package in ((ROOT, KERNELS), (ROOT / "python", SAMPLER)):
        for path in (base / package).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = find_modules()


def imports_of(module: str) -> set[str]:
    """All that a module imports, anywhere in it, for type checkers too. Submodules count as themselves."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) | ({base} if names - MODULES.keys() else set())
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}


def inside(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def reached(module: str) -> set[str]:
    """All that comes along with a module, through the project's own modules."""
    found: set[str] = set()
    todo = [module]
    while todo:
        new = IMPORTS.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def offenders(who: list[str], *what: str) -> list[str]:
    return [f"{module} imports {name}" for module in who for name in IMPORTS[module] if inside(name, *what)]


def in_rooms(*rooms: str) -> list[str]:
    return [module for module in MODULES if inside(module, *rooms)]


#: What each room of the sampler's package may know: rooms of its own package.
ARROWS: dict[str, set[str]] = {
    "files": set(),
    "protocol": {"files"},
    "episode": {"protocol", "files"},
    "tasks": {"episode", "protocol"},
    "view": {"episode", "protocol"},
    "model": set(),
    "engine": {"episode", "model", "protocol"},
    "eval": {"engine", "episode", "model", "protocol", "tasks"},
    "train": {"engine", "episode", "files", "model", "protocol", "tasks"},
    "serve": {"engine", "episode", "protocol", "view"},
    "integrations": {"engine", "episode", "model", "protocol", "tasks", "train"},
    "cli": {
        "engine",
        "episode",
        "eval",
        "files",
        "integrations",
        "model",
        "protocol",
        "serve",
        "tasks",
        "train",
        "view",
    },
    "__main__": {"cli"},
}


def room(module: str) -> str:
    """The folder of a module of the sampler's package; the package itself has none."""
    return module.split(".")[1] if module.startswith(f"{SAMPLER}.") else ""


def arrows() -> dict[str, set[str]]:
    """Which room knows which, from all imports."""
    found: dict[str, set[str]] = {room(module): set() for module in MODULES if room(module)}
    for module in filter(room, MODULES):
        found[room(module)] |= {room(name) for name in IMPORTS[module] if room(name) not in ("", room(module))}
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """How high each room stands: one above the highest that it knows. Raises CycleError with a circle of rooms."""
    height: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        height[name] = max((height[each] + 1 for each in graph[name]), default=0)
    return height


def test_the_walk_sees_the_imports() -> None:
    assert f"{KERNELS}.cache.pages" in IMPORTS[f"{KERNELS}.cache.tree"], "relative"
    assert f"{KERNELS}.dispatch" in IMPORTS[f"{KERNELS}.ops.append_kv"], "from package import module"
    assert f"{SAMPLER}.engine.sampler" in IMPORTS[SAMPLER], "inside a function"
    assert f"{SAMPLER}.model.contract" in IMPORTS[f"{SAMPLER}.engine.run"], "for type checkers"
    assert {"torch", f"{KERNELS}.cache"} <= reached(f"{SAMPLER}.engine.sampler")


def test_no_module_imports_itself_round_a_corner() -> None:
    graph = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}
    graph[SAMPLER] = set()  # its names load on first use, after everything else
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_rooms_of_the_sampler() -> None:
    """Each room knows what it may and nothing else, every arrow is used, and there is no circle."""
    assert arrows() == ARROWS
    floors(ARROWS)


def test_kernels_know_nothing_of_text_models_or_the_sampler() -> None:
    assert not offenders(in_rooms(KERNELS), SAMPLER, "transformers", "tokenizers", "safetensors", "rich", "typer")


def test_rooms_of_the_kernels() -> None:
    inner = [f"{KERNELS}.{room}" for room in ("ops", "cache", "backends", "testing", "__main__")]
    others = {
        f"{KERNELS}.ops": [f"{KERNELS}.{room}" for room in ("cache", "backends", "testing", "__main__")],
        f"{KERNELS}.cache": [f"{KERNELS}.{room}" for room in ("ops", "dispatch", "backends", "testing", "__main__")],
        f"{KERNELS}.dispatch": inner,  # it finds the backends by name
        f"{KERNELS}.backends": [f"{KERNELS}.{room}" for room in ("ops", "cache", "dispatch", "testing", "__main__")],
        f"{KERNELS}.testing": [f"{KERNELS}.{room}" for room in ("cache", "backends", "__main__")],
    }
    for room, forbidden in others.items():
        assert in_rooms(room), room
        assert not offenders(in_rooms(room), *forbidden)


def test_the_sampler_uses_cache_and_ops_alone() -> None:
    beneath = [f"{KERNELS}.{name}" for name in ("backends", "testing", "__main__", "_cpu", "_cuda")]
    assert not offenders(in_rooms(SAMPLER), *beneath)


def test_only_the_model_and_those_above_it_use_the_kernels() -> None:
    users = {room(module) for module in MODULES if any(inside(name, KERNELS) for name in IMPORTS[module])} - {""}
    assert users <= {"model", "engine", "eval", "train", "cli"}


@pytest.mark.parametrize("name", ["protocol", "episode", "tasks", "view"])
def test_no_torch_comes_along(name: str) -> None:
    """A trainer that pins another transformers installs and uses these alone."""
    for module in in_rooms(f"{SAMPLER}.{name}"):
        assert not [each for each in reached(module) if inside(each, "torch", "transformers", "triton", KERNELS)]


def test_no_torch_is_loaded_with_them() -> None:
    """The same at run time, with what the package itself pulls in."""
    names = ", ".join(f"{SAMPLER}.{name}" for name in ("episode.core", "protocol.codec", "tasks", "view.html"))
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "python", check=False).returncode == 0


def test_native_modules_have_one_user() -> None:
    for native, user in (("_cpu", "native"), ("_cuda", "cuda")):
        users = [name for name in in_rooms(KERNELS, SAMPLER) if re.search(rf"\b{native}\b", MODULES[name].read_text())]
        assert users == [f"{KERNELS}.backends.{user}"]


def test_triton_stays_in_its_room() -> None:
    room = f"{KERNELS}.backends.triton"
    assert not offenders([module for module in MODULES if not inside(module, room)], "triton")


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_stem_everywhere(op: str) -> None:
    for place in (f"{KERNELS}/ops/{op}.py", f"csrc/cpu/{op}.cpp", f"tests/kernels/test_{op}.py"):
        assert (ROOT / place).is_file(), place
    assert re.search(rf"^def {op}\(", (ROOT / KERNELS / "backends/reference.py").read_text(), re.MULTILINE)


SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def test_arrows_of_the_native_code() -> None:
    may_see = {
        "common": {"common"},
        "cpu": {"common", "cpu"},
        "cuda": {"common", "cuda"},
        "bindings": {"common", "cpu", "cuda", "bindings"},
    }
    assert {path.relative_to(CSRC).parts[0] for path in SOURCES} == set(may_see)
    for path in SOURCES:
        for name in included(path):
            room = name.partition("/")[0]
            if room in may_see:
                assert room in may_see[path.relative_to(CSRC).parts[0]], f"{path.relative_to(ROOT)} includes {name}"
                assert (CSRC / name).is_file(), f"{path.relative_to(ROOT)} includes {name}, which does not exist"


def test_only_the_bindings_include_python_and_nobody_torch() -> None:
    for path in SOURCES:
        for name in included(path):
            where = f"{path.relative_to(ROOT)} includes {name}"
            assert not name.startswith(("torch/", "ATen/", "c10/")), where
            if path.relative_to(CSRC).parts[0] != "bindings":
                assert not name.startswith(("pybind11/", "Python.h")), where


if __name__ == "__main__":
    graph = arrows()
    height = floors(graph)
    for name in sorted(graph, key=lambda name: (-height[name], name)):
        size = len(in_rooms(f"{SAMPLER}.{name}"))
        print(f"floor {height[name]}  {name:10} {size:3} modules -> {', '.join(sorted(graph[name])) or '-'}")
    print(f"{len(graph)} rooms, {max(height.values()) + 1} floors, {sum(map(len, graph.values()))} arrows, no circle")
