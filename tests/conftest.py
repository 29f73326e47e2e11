"""Where op tests run: each backend there is, on each device it serves, with each instruction set of this chip."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker and what it starts: one thread each, as there is a worker a core
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks when it is first imported
os.environ.setdefault("ASYNCTHINK_CHECK", "1")

import interpreted
from asyncthink_kernels import dispatch
from targets import DEVICES, Target, forced, targets

if interpreted.in_use():
    interpreted.install()

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Cases of tree and paged attention that the interpreter runs by default: each takes another way through the kernels.
INTERPRETED = {
    "one token",
    "fork mid-page",
    "fork, group 40",
    "chain, chunks of 1",
    "three levels, D 40 Dv 72",
    "forest, all options",
    "prefill, empty rows, sinks",
    "links, interleaved",
    "links, partial interleaved, window",
    "plain",
    "nothing to see",
    "group 40, split",
    "D 40 Dv 72",
    "all options",
}
#: Ten seconds and more there; the tests of one branch without its siblings and of a row over two tiles stand for them.
LONG_INTERPRETED = {"test_bitwise_the_same_beside_many_siblings", "test_a_branch_gone_wrong_harms_no_sibling"}
#: Folders with files that take ten seconds and more.
LONG = ("train", "kernels", "aot", "model", "engine", "cli")
#: What they compare is the same in every dtype: one stands for all.
ONE_DTYPE = {"test_capacity_beyond_the_plan_changes_nothing"}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two workers for the whole suite on a CPU; one process where files or tests are named, or a GPU is shared.

    Only where pytest-xdist is installed and ``-n`` is not given. A file's tests share a worker, and so their fixtures.
    """
    if hasattr(config, "workerinput"):
        return  # a worker, which runs this hook too and must not begin workers of its own
    whole = all(Path(argument).is_dir() for argument in config.args)
    if not whole or not config.pluginmanager.hasplugin("xdist") or config.option.usepdb or DEVICES != ("cpu",):
        return
    if config.option.numprocesses is None and (os.cpu_count() or 1) > 1:
        config.option.numprocesses, config.option.dist, config.option.loadscopereorder = 2, "loadfile", False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``target`` runs over the targets of the op that names the file, ``device`` and ``dtype`` over all."""
    if "target" in metafunc.fixturenames:
        name = metafunc.module.__name__.removeprefix("test_")
        (op,) = [op for op in dispatch.OPS if name.startswith(op)]
        metafunc.parametrize("target", targets(op), ids=str, indirect=True)
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreter and emulator take seconds where a kernel takes milliseconds: they are spared what repeats itself.

    What no other case of theirs stands for is run by default, and the rest of their grid as slow tests.
    """
    spared = [item for item in items if _repeats_in_the_interpreter(item)]
    config.hook.pytest_deselected(items=spared)
    skipped = set(spared)
    items[:] = sorted((item for item in items if item not in skipped), key=_place)
    for item in items:
        if _stood_for_by_another(item):
            item.add_marker(pytest.mark.slow)


def _place(item: pytest.Item) -> int:
    """Folders with long files come first, so that no worker waits for another one at the end."""
    folder = item.path.parent.name
    return LONG.index(folder) if folder in LONG else len(LONG)


def _stood_for_by_another(item: pytest.Item) -> bool:
    """float32 and float16 beside bfloat16, but for all options; in the interpreter also most shapes of attention."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    target, name = str(given.get("target")), str(given.get("name"))
    if target not in ("triton-cpu", "cuda-cpu"):
        return False
    test, _, _ = item.name.partition("[")
    if given.get("dtype", torch.bfloat16) != torch.bfloat16:
        return "all options" not in name or test in ONE_DTYPE
    if target != "triton-cpu":
        return False
    shapes = test == "test_against_the_float64_reference" and "attention" in item.path.name
    return (shapes and name not in INTERPRETED) or given.get("seed", 0) not in (0, 3) or test in LONG_INTERPRETED


def _repeats_in_the_interpreter(item: pytest.Item) -> bool:
    """bfloat16 runs nearly all; float32 the cases of few programs; float16 a handful."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    dtype, name = given.get("dtype"), str(given.get("name"))
    if str(given.get("target")) != "triton-cpu" or dtype is None:
        return False
    if name in ("many siblings", "long prefill", "prefill and decode", "prefill, empty rows"):
        return True  # as "many siblings, group 7", "prefill, window" and "prefill, empty rows, sinks"
    if given.get("poison") == math.inf:
        return True  # as NaN
    if dtype == torch.float32:
        return (
            "bitwise" in item.name or "gone_wrong" in item.name or name.startswith(("many", "prefill", "forest, links"))
        )
    return dtype == torch.float16 and name not in ("fork mid-page", "forest, all options", "all options")


@pytest.fixture
def unwritten_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out of its results is NaN, and not what the last call left in the same memory."""
    empty = torch.empty

    def full_of_nan(*size: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*size, **options)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", full_of_nan)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Runs the test on the target, and puts the instruction set back after it."""
    chosen: Target = request.param
    with forced(chosen):
        yield chosen
