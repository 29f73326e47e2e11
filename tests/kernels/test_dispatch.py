"""Which backend runs: the default, the one asked for, and an explanation for the one that cannot."""

from __future__ import annotations

import runpy
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import asyncthink_kernels
from asyncthink_kernels import backends_for, copy_pages, dispatch, explain, use_backend


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice made outside, nothing remembered from before."""
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    monkeypatch.setattr(dispatch, "_found", {})


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three backends in order of preference: one that is not there, one that lacks copy_pages, one that has all."""
    calls: list[str] = []
    for name in ("partial", "whole"):
        module = types.ModuleType(f"toy_{name}")
        module.unavailable_reason = lambda op, device, name=name: (
            "not written yet" if (name, op) == ("partial", "copy_pages") else None
        )
        module.note = lambda device, name=name: f"{name} on {device}"
        for op in dispatch.OPS:
            setattr(module, op, lambda *args, name=name, op=op, **kwargs: calls.append(f"{name}.{op}"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    toys = [("absent", ("cpu",)), ("partial", ("cpu", "xpu")), ("whole", None)]
    backends = tuple(dispatch.Backend(name, f"toy_{name}", devices) for name, devices in toys)
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    return calls


def run_copy_pages() -> None:
    caches = torch.zeros(1, 2, 1, 1, 1)
    copy_pages(caches, caches.clone(), torch.tensor([0]), torch.tensor([1]))


def test_every_op_is_exported_and_served_on_the_cpu() -> None:
    for op in dispatch.OPS:
        assert op in asyncthink_kernels.__all__ and callable(getattr(asyncthink_kernels, op))
        assert hasattr(torch.ops.asyncthink, op)
        assert "reference" in backends_for(op, "cpu")


def test_the_first_that_can_is_the_default_and_a_missing_one_is_told_once(toys: list[str]) -> None:
    with pytest.warns(
        RuntimeWarning, match="copy_pages on cpu .*'whole'.*absent .*toy_absent.*; partial .*not written"
    ):
        run_copy_pages()
    run_copy_pages()  # a second warning would be an error
    assert toys == ["whole.copy_pages"] * 2


def test_a_named_backend_is_used_or_refused_never_replaced(toys: list[str]) -> None:
    with use_backend("partial"):
        dispatch.find("append_kv", "cpu")()
        with pytest.raises(ValueError, match=r"backend 'partial' cannot run copy_pages on cpu: not written yet"):
            run_copy_pages()
        with pytest.raises(ValueError, match=r"backend 'partial' cannot run append_kv on cuda: serves cpu, xpu only"):
            dispatch.find("append_kv", "cuda")
    with use_backend("absent"), pytest.raises(ValueError, match=r"backend 'absent' .* No module named 'toy_absent'"):
        run_copy_pages()
    assert toys == ["partial.append_kv"]


def test_what_a_named_backend_leaves_to_others_runs_by_default(
    toys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, partial, whole = dispatch.BACKENDS
    monkeypatch.setattr(dispatch, "BACKENDS", (absent, replace(partial, without=("copy_pages",)), whole))
    with use_backend("partial"):
        with pytest.warns(RuntimeWarning, match="copy_pages on cpu runs on the slow backend 'whole'"):
            run_copy_pages()
        dispatch.find("append_kv", "cpu")()
        assert [row.backend for row in explain("copy_pages") if row.default] == ["whole"]
        assert [row.backend for row in explain("append_kv") if row.default] == ["partial"]
    with use_backend("absent"), pytest.raises(ValueError, match="backend 'absent' cannot run copy_pages"):
        run_copy_pages()
    assert toys == ["whole.copy_pages", "partial.append_kv"]


def test_triton_has_every_kernel_but_what_it_leaves_to_others() -> None:
    (triton,) = [backend for backend in dispatch.BACKENDS if backend.name == "triton"]
    rows = {row.op: row for row in explain(device="cpu") if row.backend == "triton"}
    assert triton.without == ("sample", "quantized_linear", "packed_linear")
    for op in dispatch.OPS:
        left = op in triton.without
        assert not (left and rows[op].available) and (rows[op].reason == f"leaves {op} to others") == left


def test_the_environment_names_one_for_the_process(toys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.ENVIRONMENT, "partial")
    dispatch.find("append_kv", "cpu")()
    with use_backend("whole"):  # the block wins over the process
        dispatch.find("append_kv", "cpu")()
    assert toys == ["partial.append_kv", "whole.append_kv"]
    monkeypatch.setenv(dispatch.ENVIRONMENT, "fastest")
    with pytest.raises(ValueError, match=r"backend must be one of absent, partial, whole, got 'fastest'"):
        dispatch.find("append_kv", "cpu")


def test_use_backend_nests_ends_with_an_error_and_knows_its_names(toys: list[str]) -> None:
    with use_backend("partial"):
        with pytest.raises(KeyError), use_backend("whole"):
            raise KeyError
        dispatch.find("append_kv", "cpu")()
    assert toys == ["partial.append_kv"]
    with (
        pytest.raises(ValueError, match=r"backend must be one of absent, partial, whole, got 'gpu'"),
        use_backend("gpu"),
    ):
        pass


def test_use_backend_holds_for_its_own_thread(toys: list[str]) -> None:
    with use_backend("whole"):
        thread = threading.Thread(target=lambda: dispatch.find("append_kv", "xpu")())
        thread.start()
        thread.join()
    assert toys == ["partial.append_kv"]


def test_a_library_too_old_for_a_backend_is_its_reason(
    toys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_absent.py").write_text("import torch\nINTERPRETED = torch.knobs.runtime.interpret\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert explain("append_kv")[0].reason == "AttributeError: module 'torch' has no attribute 'knobs'"
    dispatch.find("append_kv", "xpu")()
    assert toys == ["partial.append_kv"]


def test_no_backend_at_all(toys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", dispatch.BACKENDS[:2])
    with pytest.raises(ValueError, match=r"no backend runs copy_pages on cpu: absent .*; partial .*not written yet"):
        run_copy_pages()
    with pytest.raises(ValueError, match=r"no backend runs append_kv on mps"):
        dispatch.find("append_kv", "mps")


def test_explain(toys: list[str]) -> None:
    rows = {row.backend: row for row in explain("copy_pages")}
    assert [rows[name].available for name in ("absent", "partial", "whole")] == [False, False, True]
    assert "toy_absent" in rows["absent"].reason
    assert rows["partial"].reason == "not written yet"
    assert rows["whole"].reason == "whole on cpu" and rows["whole"].default
    assert [row.backend for row in explain("append_kv") if row.default] == ["partial"]
    with use_backend("partial"):
        assert not any(row.default for row in explain("copy_pages"))
    assert {row.op for row in explain()} == {*dispatch.OPS, dispatch.PREFILL}
    assert not any(row.available for row in explain("append_kv", device="cuda") if row.backend != "whole")
    with pytest.raises(ValueError, match=r"op must be one of .*, got 'softmax'"):
        explain("softmax")


def test_float64_is_for_the_reference() -> None:
    caches = torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64)
    arguments = (caches, caches.clone(), torch.tensor([0]), torch.tensor([1]))
    with use_backend("reference"):
        copy_pages(*arguments)
    for backend in backends_for("copy_pages", "cpu"):
        if backend != "reference":
            with use_backend(backend), pytest.raises(ValueError, match=r"k_caches.*float64"):
                copy_pages(*arguments)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m asyncthink_kernels``: every op and backend, one default in each line, a reason for each backend."""
    runpy.run_module("asyncthink_kernels", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    for op in dispatch.OPS:
        (line,) = [line for line in lines if line.startswith(f"{op} ")]
        assert line.count("*") == 1
    for backend in dispatch.BACKENDS:
        assert backend.name in lines[2] and any(line.startswith(backend.name) for line in lines[9:])
