"""What a trainer that pins another transformers uses is imported, and runs an episode, where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import importlib, pkgutil, sys

class Blocker:
    names = ("torch", "transformers", "triton", "safetensors", "huggingface_hub", "asyncthink_kernels", "verl", "ray")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not in this environment", name=name)

sys.meta_path.insert(0, Blocker())
modules = [f"asyncthink.integrations.{name}" for name in ("agent_rows", "verl_outputs", "verl_transport")]
for name in ("episode", "protocol", "tasks", "view", "engine.remote"):
    package = importlib.import_module(f"asyncthink.{name}")
    modules += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
for module in modules:
    importlib.import_module(module)
assert not sys.modules.keys() & set(Blocker.names), sys.modules.keys() & set(Blocker.names)

import test_verl_outputs
test_verl_outputs.test_rows_of_an_episode("vllm", "shared")
print(len(modules))
"""


def test_the_core_runs_without_torch_and_transformers() -> None:
    paths = [str(ROOT / "python"), str(ROOT / "tests/integrations")]
    program = f"import sys; sys.path[:0] = {paths}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
