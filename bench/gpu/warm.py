"""`python -m bench.gpu.warm`: lets those who compile do it ahead, in processes of their own, while nothing is timed.

Each writes a file of lines `[name, cell, reason]`: the cells that it is ready for (reason null), or why it is not. What
is compiled lies in the caches of torch and FlashInfer, where the process that times finds it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import grid
from .contestant import Contestant
from .measure import CONTESTANTS
from .problem import Problem
from .timing import first_line, synchronize

#: Enough to compile everything of those who compile once: two levels, tensor cores, the merge.
ONCE = "32/8 1,2|512,32"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    who = next(each for each in CONTESTANTS if each.name == options.who)
    missing = who.missing(options.device)
    if missing is not None:
        print(f"{who.name}: {missing}")
        return 0
    names = [ONCE] if who.compiles == "once" else [cell.name for cell in grid.chosen(options.cells)]
    part, parts = map(int, options.part.split("/"))
    options.to.mkdir(parents=True, exist_ok=True)
    slug = "".join(letter if letter.isalnum() else "-" for letter in who.name)
    with open(options.to / f"{slug}-{part}.jsonl", "w", encoding="utf-8") as file:
        for name in names[part::parts]:
            reason = compile_for(who, name, options)
            print(f"{who.name}: {name}: {reason or 'ready'}", flush=True)
            file.write(json.dumps([who.name, name, reason]) + "\n")
            file.flush()
    return 0


def compile_for(who: type[Contestant], name: str, options: argparse.Namespace) -> str | None:
    """Run it once on a cell; the reason where that failed."""
    try:
        problem = Problem(grid.parse_cell(name), options.device, getattr(torch, options.dtype))
        made = who(problem)
        made.plan()
        made.run()
        synchronize(problem.device)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        torch.cuda.empty_cache()  # others share the device
    return None


def read(folder: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """What the processes wrote: the cells that each is ready for; why those failed that are ready for none."""
    ready: dict[str, set[str]] = {}
    failed: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            name, cell, reason = json.loads(text)
            if reason is None:
                ready.setdefault(name, set()).add(cell)
            else:
                failed[name] = f"failed when compiled ahead: {reason}"
    return ready, {name: reason for name, reason in failed.items() if name not in ready}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu.warm", description=__doc__.partition("\n")[0])
    made.add_argument("--who", required=True, choices=[each.name for each in CONTESTANTS if each.compiles])
    made.add_argument("--cells", default="quick")
    made.add_argument("--part", default="0/1", help="this process's share of the cells, i/n")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--to", type=Path, required=True, help="folder for the lines")
    return made


if __name__ == "__main__":
    sys.exit(main())
