"""The numbers in which a run multiplies matrices: chosen once, and kept by every resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from asyncthink.train.distributed import World
from asyncthink.train.loading import ModelOptions, bfloat16_for
from asyncthink.train.runs import CONFIG


def settle(options: ModelOptions, out: Path, resume: bool, world: World) -> tuple[ModelOptions, str]:
    """``options`` with ``bfloat16`` as a bool, and the reason for it in one sentence.

    "auto" is what the run in ``out`` began with where it is resumed, so that another machine does not change its
    numbers; else it is measured (:func:`asyncthink.model.auto_dtype.choose_dtype`), by the first process for all.
    """
    if options.bfloat16 != "auto":
        return options, f"{_numbers(options.bfloat16)}, as the options say"
    begun = _begun(out) if resume else None
    if begun is not None:
        return dataclasses.replace(options, bfloat16=begun), f"{_numbers(begun)}, as the run began"
    mine = [bfloat16_for(options)] if world.is_main else []
    chosen, why = world.gather(mine)[0]
    return dataclasses.replace(options, bfloat16=chosen), why


def _numbers(bfloat16: bool) -> str:
    return "bfloat16 products (autocast)" if bfloat16 else "products in the dtype of the weights"


def _begun(out: Path) -> bool | None:
    """What ``out/config.json`` holds; None where there is no such file or entry."""
    path = out / CONFIG
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8")).get("model", {}).get("bfloat16")
    return value if isinstance(value, bool) else None
