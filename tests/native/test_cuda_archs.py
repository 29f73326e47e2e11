"""For which GPUs the build compiles: those that are present, one and its PTX, a list, or all."""

from __future__ import annotations

import runpy
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """``cuda_archs`` of setup.py where ``ASYNCTHINK_CUDA_ARCHS`` is ``wish`` and nvidia-smi is the given script."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    chosen = runpy.run_path(str(ROOT / "setup.py"))["cuda_archs"]

    def choose(wish: str | None = None, smi: str | None = None) -> str:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("ASYNCTHINK_CUDA_ARCHS", raising=False)
        if wish is not None:
            monkeypatch.setenv("ASYNCTHINK_CUDA_ARCHS", wish)
        if smi is not None:
            tool = tmp_path / "nvidia-smi"
            tool.write_text(f"#!/bin/sh\n{smi}\n")
            tool.chmod(stat.S_IRWXU)
        return str(chosen())

    return choose


@pytest.mark.parametrize(
    ("smi", "chosen"),
    [
        ("echo 9.0", "90a-real"),
        ("echo 10.0; echo 8.9; echo 10.0", "89-real;100-real"),
        ("echo 12.1", "121-real"),
        ("echo 7.5; echo 8.6", "86-real"),
        ("echo 7.5", "80"),  # too old for the kernels
        ("echo 'no devices were found'; exit 6", "80"),
        ("echo '[N/A]'", "80"),
        (None, "80"),
    ],
)
def test_the_gpus_that_are_present_or_one_and_its_ptx(archs: Callable[..., str], smi: str | None, chosen: str) -> None:
    assert archs(smi=smi) == chosen
    assert archs("", smi) == chosen


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [("all", ""), ("90a-real", "90a-real"), ("80, 90a-real;100f 90-virtual", "80;90a-real;100f;90-virtual")],
)
def test_a_wish_counts_whatever_is_present(archs: Callable[..., str], wish: str, chosen: str) -> None:
    assert archs(wish, "echo 8.0") == chosen


@pytest.mark.parametrize("wish", ["native", "sm_90", "9.0", "80,,x", "90a-real -DX=1"])
def test_an_unknown_wish_is_refused(archs: Callable[..., str], wish: str) -> None:
    with pytest.raises(SystemExit, match="ASYNCTHINK_CUDA_ARCHS: expected all, or a list such as 90a-real,80, got"):
        archs(wish)
