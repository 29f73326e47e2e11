"""Decode steps recorded ahead (:mod:`asyncthink.model.recorded`), so that no request waits for it."""

from __future__ import annotations

from typing import Any

import torch

from asyncthink.model.checks import probe_tokens
from asyncthink.model.recorded import MAX_ROWS
from asyncthink_kernels.cache import OutOfPages, OutOfStates
from asyncthink_kernels.ops.step_program import native

MAX_AGENTS = MAX_ROWS
"""Steps of more agents are never recorded."""

_TRIES = 6  # one more than the first sizes take: seen, recorded twice, compared


def why_not_recorded(decoder: Any) -> str | None:
    """Why steps of this decoder (a :class:`.contract.BranchDecoder`) are not recorded; None where they are."""
    steps = getattr(decoder, "recorded", None)
    if steps is None:
        return str(decoder.explain().get("recorded", "no: each branch has a cache of its own")).removeprefix("no: ")
    if native() is None:
        return "the native CPU kernels do not run here"
    reason: str | None = steps.reason
    return reason


def record_decoding(decoder: Any, agents: int) -> bool:
    """Record decode steps of ``agents`` agents -> whether they run by a program now.

    The agents begin with an empty context, draw nothing, and are released: the cache holds afterwards what it held
    before. Without room for them, and where steps are not recorded, nothing is done. The caller holds the gate.
    """
    if why_not_recorded(decoder) is not None:
        return False
    tokens = torch.tensor(probe_tokens(decoder.model, agents), device="cpu")
    branches = [decoder.cache.root() for _ in range(agents)]
    try:
        for _ in range(_TRIES):
            if decoder.recorded.serves(agents) or why_not_recorded(decoder) is not None:
                break
            plan = decoder.cache.plan([(branch, 1) for branch in branches])
            decoder.forward(tokens, plan, list(range(agents)))
    except (OutOfPages, OutOfStates):  # what runs needs the room
        pass
    finally:
        for branch in branches:
            decoder.cache.release(branch)
    return bool(decoder.recorded.serves(agents))
