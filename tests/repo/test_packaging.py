"""What is shipped: metadata, pins, and native modules that bring no second torch and no second OpenMP."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import asyncthink
from asyncthink_kernels.backends import native

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def closure(requirements: list[str]) -> dict[str, Requirement]:
    """Every distribution that installing ``requirements`` here pulls, by canonical name."""
    found: dict[tuple[str, frozenset[str]], Requirement] = {}
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        if requirement.name == PROJECT["project"]["name"]:  # an extra that contains another
            own = PROJECT["project"]["optional-dependencies"]
            queue += [Requirement(text) for extra in requirement.extras for text in own[extra]]
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        extras = ("", *requirement.extras)
        if key in found or (requirement.marker and not requirement.marker.evaluate()):
            continue
        found[key] = requirement
        for text in importlib.metadata.requires(requirement.name) or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                child.marker = None
                queue.append(child)
    return {name: requirement for (name, _), requirement in found.items()}


def test_build_environment_has_no_torch() -> None:
    names = {Requirement(text).name for text in PROJECT["build-system"]["requires"]}
    assert names == {"setuptools", "cmake", "ninja", "pybind11"}


@pytest.mark.parametrize(
    ("name", "version"),
    [("torch", "2.11.0+cu130"), ("torch", "2.13.0"), ("triton", "3.6.0"), ("transformers", "5.17.0")],
)
def test_metadata_admits_the_versions_of_gpu_machines(name: str, version: str) -> None:
    requirements = {each.name: each for each in map(Requirement, PROJECT["project"]["dependencies"])}
    assert requirements[name].specifier.contains(version)


def test_installed_metadata() -> None:
    metadata = importlib.metadata.metadata("asyncthink-kernels")
    assert metadata["Version"] == asyncthink.__version__ == PROJECT["project"]["version"]
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert set(metadata.get_all("Provides-Extra")) == PROJECT["project"]["optional-dependencies"].keys()
    scripts = importlib.metadata.distribution("asyncthink-kernels").entry_points
    assert {(each.name, each.value) for each in scripts} == {("asyncthink", "asyncthink.cli.app:main")}


def test_constraints_pin_the_whole_tree() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = closure(PROJECT["project"]["dependencies"] + extras["test"])
    wanted |= {Requirement(text).name: Requirement(text) for text in PROJECT["build-system"]["requires"]}
    bundled = ("cuda-", "nvidia-")  # torch pins what its own wheel needs
    wanted = {name: each for name, each in wanted.items() if not name.startswith(bundled)}
    pinned = pins()
    assert not wanted.keys() - pinned.keys()
    wrong = [f"{each}, pinned {pinned[name]}" for name, each in wanted.items() if pinned[name] not in each.specifier]
    assert not wrong


def test_every_native_source_is_listed_once() -> None:
    listed = re.findall(r"csrc/\S+\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    present = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")}
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_native_modules_link_no_torch_and_no_openmp(name: str) -> None:
    module = native.load(name)
    if module is None:
        pytest.skip(f"{name} was not built here")
    image = Path(module.__file__).read_bytes()  # names of needed libraries stand in the file as plain text
    assert b"libc.so" in image
    for library in (b"libtorch", b"libc10", b"libgomp", b"libomp", b"libiomp", b"libcudart.so"):
        assert library not in image


@pytest.mark.parametrize("variable", ["ASYNCTHINK_CUDA", "ASYNCTHINK_NATIVE"])
def test_unknown_wish_is_refused(variable: str) -> None:
    environment = os.environ | {variable: "maybe"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == f"{variable} must be 0, 1 or unset, got 'maybe'"


@pytest.mark.slow
def test_wheel_contents(tmp_path: Path) -> None:
    stale = ROOT / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/asyncthink/deleted.py"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"asyncthink_kernels/_cpu\.[\w-]+\.so", name) for name in names)
    assert {"asyncthink_kernels/py.typed", "asyncthink/py.typed", "asyncthink/cli/app.py"} <= set(names)
    checkpoints = [path for path in (ROOT / "python/asyncthink/checkpoints").rglob("*") if path.is_file()]
    assert {str(path.relative_to(ROOT / "python")) for path in checkpoints} <= set(names)
    assert any(name.endswith(".safetensors") for name in names)
    assert "asyncthink/deleted.py" not in names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "csrc/", "python/"))]


@pytest.mark.slow
def test_a_wheel_of_the_python_files_alone(tmp_path: Path) -> None:
    """No compiler is asked, and the wheel is for every machine: what a trainer that pins another torch installs."""
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", str(tmp_path)]
    environment = os.environ | {"ASYNCTHINK_NATIVE": "0", "PATH": ""}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"asyncthink/episode/core.py", "asyncthink/protocol/codec.py", "asyncthink_kernels/ops/sample.py"} <= set(
        names
    )
    assert not [name for name in names if name.endswith((".so", ".cpp", ".cu"))]
