"""Whether a run multiplies matrices in bfloat16: decided once, and kept by every resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from asyncthink.train.distributed import World
from asyncthink.train.loading import ModelOptions, bfloat16_for
from asyncthink.train.runs import stored_bfloat16


def settle(options: ModelOptions, out: Path, resume: bool, world: World) -> tuple[ModelOptions, str]:
    """``options`` with ``bfloat16`` as a bool, and the reason for it in one sentence.

    For "auto", a resumed run keeps what it began with, also on another machine. Any other run takes what rank 0
    measures (:func:`asyncthink.model.auto_dtype.choose_dtype`).
    """
    if options.bfloat16 != "auto":
        return options, f"{_describe(options.bfloat16)}, as the options say"
    stored = stored_bfloat16(out) if resume else None
    if stored is not None:
        return dataclasses.replace(options, bfloat16=stored), f"{_describe(stored)}, as the run began"
    measured = [bfloat16_for(options)] if world.is_main else []
    chosen, reason = world.gather(measured)[0]
    return dataclasses.replace(options, bfloat16=chosen), reason


def _describe(bfloat16: bool) -> str:
    return "bfloat16 products (autocast)" if bfloat16 else "products in the dtype of the weights"
