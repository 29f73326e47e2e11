"""The folder of a training run: created once, resumed after any interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from asyncthink.files import write_whole
from asyncthink.tasks import task_names
from asyncthink.train.checkpoint import checkpoints, remove_leftovers
from asyncthink.train.distributed import World

CONFIG = "config.json"


def find_run(out: Path, resume: bool) -> Path | None:
    """The newest checkpoint in ``out`` to resume from; None to start at the beginning. Changes no file.

    A run that died before its first checkpoint starts at the beginning. Raises ValueError for an ``out`` that holds
    checkpoints when not resuming, and for one that holds no run when resuming.
    """
    stored = checkpoints(out)
    if stored and not resume:
        raise ValueError(f"out: {out} already holds a run; resume it or name another folder")
    if resume and not stored and not (out / CONFIG).is_file():
        raise ValueError(f"resume: {out} holds no checkpoint")
    return stored[-1] if stored else None


def begin_run(out: Path, config: Any, world: World) -> None:
    """Write ``config`` (a dataclass) to ``out/config.json`` and remove what an interrupted save left behind."""
    world.barrier()  # rank 0 writes only after every process has called find_run
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        write_whole(out / CONFIG, json.dumps(_plain(config), indent=2, default=str) + "\n")
    world.barrier()


def _plain(config: Any) -> dict[str, Any]:
    """The configuration for JSON: tasks by their names, functions by where they are defined."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    made = {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in fields.items()
        if name != "task"
    }
    rule: Any = fields.get("rule")
    if hasattr(rule, "__qualname__"):
        made["rule"] = f"{rule.__module__}:{rule.__qualname__}"
    return {name: task_names(fields[name]) if name == "task" else made[name] for name in fields}


def stored_bfloat16(out: Path) -> bool | None:
    """The ``bfloat16`` in ``out/config.json``; None if there is no such file or entry.

    It is the only option that a resume reads from there. Runs of earlier versions hold it outside of ``model``.
    """
    path = out / CONFIG
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    options = config["model"] if isinstance(config.get("model"), dict) else config
    bfloat16 = options.get("bfloat16")
    return bfloat16 if isinstance(bfloat16, bool) else None
