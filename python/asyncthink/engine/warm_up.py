"""What an engine does before its first request: decode steps of 1, 2, ... agents are recorded, between other steps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from asyncthink.model.contract import BranchDecoder
from asyncthink.model.warm_up import MAX_AGENTS, record_decoding, why_not_recorded


class Call(Protocol):
    """Has work done in the engine's thread, between steps."""

    def __call__(self, work: Callable[[], bool], /) -> Future[bool]: ...


def check_agents(warm_up: int) -> None:
    """Raises ValueError unless steps of so many agents can be recorded."""
    if not 0 <= warm_up <= MAX_AGENTS:
        raise ValueError(f"warm_up: expected a number of agents in [0, {MAX_AGENTS}], got {warm_up}")


def warm_up(call: Call, decoder: BranchDecoder, agents: int, progress: Callable[[str], None] | None) -> Future[str]:
    """Record steps of 1 to ``agents`` agents -> the future of a sentence on what came of it, or of what was raised.

    Each number of agents is a call of its own, so that requests which come meanwhile wait for one of them alone.
    ``progress`` is called with a phrase before each, in the engine's thread.
    """
    told: Future[str] = Future()
    began = time.perf_counter()

    def record(number: int) -> bool:
        if progress is not None:
            progress(f"recording steps: {number} of {agents} agents")
        return record_decoding(decoder, number)

    def go_on(number: int) -> None:
        call(functools.partial(record, number)).add_done_callback(functools.partial(ended, number))

    def ended(number: int, future: Future[bool]) -> None:
        error: Any = future.exception()
        if error is not None:
            told.set_exception(error)
        elif future.result() and number < agents:
            go_on(number + 1)
        else:
            told.set_result(_sentence(decoder, number if future.result() else number - 1, agents, began))

    if agents:
        go_on(1)
    else:
        told.set_result("no steps are recorded ahead")
    return told


def _sentence(decoder: BranchDecoder, recorded: int, agents: int, began: float) -> str:
    if (reason := why_not_recorded(decoder)) is not None:
        return f"no steps are recorded ahead: {reason}"
    said = f"steps of up to {recorded} agents were recorded in {time.perf_counter() - began:.1f} s"
    return said if recorded == agents else f"{said}; there was no room for {recorded + 1}"
