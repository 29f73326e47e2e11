"""Native modules: CMake and ninja build them (CMakeLists.txt), setuptools puts them into the package.

``_cpu`` is built, unless ``ASYNCTHINK_NATIVE=0`` leaves out all native modules: then no compiler is needed, and
protocol, episodes, tasks and engines over HTTP work. ``_cuda`` is built where nvcc is found: $CUDACXX, $CUDA_HOME/bin,
PATH, /usr/local/cuda/bin. ``ASYNCTHINK_CUDA=0`` leaves it out, ``ASYNCTHINK_CUDA=1`` makes a missing nvcc an error.
``CMAKE_ARGS`` is passed on. Objects stay in build/native-*, so a second build compiles what changed.

``ASYNCTHINK_CUDA_ARCHS`` says for which GPUs ``_cuda`` is compiled:

=====================  ===============================================================================================
unset                  the GPUs of this machine, as nvidia-smi tells; without one: sm_80 and its PTX
``all``                all that CMakeLists.txt lists; for wheels that are given away
``90a-real,80``        these, in the words of CMAKE_CUDA_ARCHITECTURES: machine code and PTX, or ``-real``/``-virtual``
=====================  ===============================================================================================

sm_80 is the oldest that the kernels serve. Drivers of all later GPUs compile its PTX when the module is first loaded,
so such a build runs everywhere, at about a quarter of the compile time of ``all``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST = 80


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None."""
    wish = os.environ.get("ASYNCTHINK_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"ASYNCTHINK_CUDA must be 0, 1 or unset, got {wish!r}")
    if wish == "0":
        return None
    named = os.environ.get("CUDACXX")
    folders = [os.path.join(os.environ["CUDA_HOME"], "bin")] if "CUDA_HOME" in os.environ else []
    folders += [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    nvcc = shutil.which(named) if named else shutil.which("nvcc", path=os.pathsep.join(folders))
    if nvcc is None and (wish == "1" or named):
        raise SystemExit(f"asyncthink-kernels: no CUDA compiler: looked for {named or 'nvcc'}")
    return nvcc


def builds_native() -> bool:
    """Whether native modules are built at all."""
    wish = os.environ.get("ASYNCTHINK_NATIVE", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"ASYNCTHINK_NATIVE must be 0, 1 or unset, got {wish!r}")
    return wish != "0"


def cuda_archs() -> str:
    """CMAKE_CUDA_ARCHITECTURES of this build; empty for all that CMakeLists.txt lists."""
    wish = os.environ.get("ASYNCTHINK_CUDA_ARCHS", "").strip()
    if wish == "all":
        return ""
    if not wish:
        return ";".join(f"{arch}-real" for arch in present_archs()) or str(OLDEST)
    archs = re.split(r"[\s,;]+", wish)
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", arch):
            raise SystemExit(f"ASYNCTHINK_CUDA_ARCHS: expected all, or a list such as 90a-real,80, got {wish!r}")
    return ";".join(archs)


def present_archs() -> list[str]:
    """The architectures of this machine's GPUs that the kernels serve, as 90a; empty where nvidia-smi finds none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return []  # the tool without a driver, as in many containers
    numbers = {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", done.stdout, re.MULTILINE)}
    return ["90a" if number == 90 else str(number) for number in sorted(numbers) if number >= OLDEST]


class CMakeBuild(build_ext):
    """Builds all extensions in one CMake run and copies each to where setuptools wants it."""

    def run(self) -> None:
        self.native = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.compile()
        super().run()

    def compile(self) -> None:
        nvcc = find_nvcc()
        options = [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={self.pybind11()}",
            f"-DATK_CUDA={'ON' if nvcc else 'OFF'}",
        ]
        archs = cuda_archs()
        options += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={archs}"] if nvcc else []
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        options += ["--fresh"] if self.elsewhere() else []
        cmake = tool("cmake")
        for command in (
            [cmake, "-S", ROOT, "-B", self.native, "-G", "Ninja", *options],
            [cmake, "--build", self.native],
        ):
            if subprocess.run(command).returncode:
                raise SystemExit(f"asyncthink-kernels: the native build failed: {shlex.join(map(str, command))}")
        cuda = f"built with {nvcc} for {archs or 'all GPUs of CMakeLists.txt'}" if nvcc else "left out: no nvcc"
        self.announce(f"asyncthink-kernels: _cpu built; _cuda {cuda}", 2)

    def pybind11(self) -> Path:
        """pybind11's CMake files, in a copy: pip's build environments come and go, and new paths and times of the
        headers would compile the bindings again in every install."""
        import pybind11

        copy = self.native / f"pybind11-{pybind11.__version__}"
        if not copy.exists():
            part = copy.with_name(f"{copy.name}.part")
            shutil.copytree(Path(pybind11.__file__).parent, part, dirs_exist_ok=True)
            part.rename(copy)
        return copy / Path(pybind11.get_cmake_dir()).relative_to(Path(pybind11.__file__).parent)

    def elsewhere(self) -> bool:
        """A cache made for a source tree at another path: CMake refuses to use it."""
        cache = self.native / "CMakeCache.txt"
        return cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}" not in cache.read_text().splitlines()

    def build_extension(self, ext: Extension) -> None:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.native / f"{ext.name.rpartition('.')[2]}{suffix}", target)


class FreshPackages(build_py):
    """A module deleted since the last wheel must not be in the next: setuptools alone would leave it in build/lib."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def tool(name: str) -> str:
    """cmake or ninja: on the PATH (pip puts the build requirements there), else beside this Python."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), sysconfig.get_path("scripts"))))
    if found is None:
        raise SystemExit(f"asyncthink-kernels: {name} not found; it is a build requirement (pip install {name})")
    return found


names = (["_cpu"] + (["_cuda"] if find_nvcc() else [])) if builds_native() else []
setup(
    ext_modules=[Extension(f"asyncthink_kernels.{name}", sources=[]) for name in names],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshPackages},
)
