"""Where the time of a decode step goes: :func:`profile`.

torch.profiler watches the sampler's own steps. A part is a label of the engine, or one of torch's ops: linear layers,
attention, appending to the cache. Its time is its own: what runs inside of it and is another part is subtracted, so
shares add up to the whole. The same steps run without the profiler first, which shows what it costs. Times are the
host's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from asyncthink.engine.labels import PREFIX, label
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.sampling import SamplingParams
from asyncthink.model.contract import BranchDecoder
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat

PARTS = {
    "linear": "linear layers",
    "attention": "attention",
    "append": "append to the cache",
    "transformers": "the rest of the model",
    "plan": "plan",
    "schedule": "schedule",
    "guide": "token masks of a guide",
    "draw": "draw tokens",
    "parse": "parse and record",
    "rest": "the rest of the sampler",
}
"""Key in the result -> what a table calls it."""

PARTS_OF_PROGRAMS = ("linear", "append", "attention")
"""What a recorded step (:mod:`asyncthink.model.recorded`) tells apart by itself."""

_STEP = f"{PREFIX}step"
_EVENTS = {
    "aten::linear": "linear",
    "asyncthink::packed_linear": "linear",
    "asyncthink::quantized_linear": "linear",
    "asyncthink::tree_attention": "attention",
    "asyncthink::append_kv": "append",
    f"{PREFIX}model": "transformers",
    _STEP: "rest",
} | {f"{PREFIX}{part}": part for part in ("plan", "schedule", "guide", "draw", "parse")}
"""Name of an event -> the part that its own time belongs to."""

_WARM = 5  # steps before any is timed: more than it takes to record one


def own_times(events: Iterable[Any], counted: list[bool]) -> dict[str, float]:
    """Milliseconds of each part over the steps that are ``counted``, of a profiler's events.

    The n-th step, by its start, is counted where ``counted[n]``. An event's time goes to its part and is taken from the
    part around it; an event of no part counts to the part around it.
    """
    ordered = sorted(events, key=lambda event: event.time_range.start)
    steps = [event for event in ordered if event.name == _STEP]
    kept = {step.id for step, one in zip(steps, counted, strict=True) if one}
    parts = dict.fromkeys(PARTS, 0.0)
    for event in ordered:
        if event.name not in _EVENTS:
            continue
        around = [event, *_parents(event)]
        if not any(one.name == _STEP and one.id in kept for one in around):
            continue
        milliseconds = event.time_range.elapsed_us() / 1e3
        parts[_EVENTS[event.name]] += milliseconds
        outer = next((one for one in around[1:] if one.name in _EVENTS), None)
        if outer is not None:
            parts[_EVENTS[outer.name]] -= milliseconds
    return parts


def _parents(event: Any) -> Iterable[Any]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def profile(decoder: BranchDecoder, tokenizer: Any, *, agents: int, prefix: int, tokens: int) -> dict[str, Any]:
    """Let ``agents`` agents behind one prompt of at least ``prefix`` words decode ``tokens`` steps, twice.

    Returns:
        agents, prefix, steps; ms (median of a step without the profiler), tokens_per_second, ms_watched (mean with it);
        parts: own milliseconds of a step, by :data:`PARTS`; shares: of the whole, adding up to 1.

    Raises:
        ValueError: a number below 1; agents that end before there are steps to time; a compiled decoder whose linear
            layers are not packed: the compiler fuses them with others.
    """
    for name, value in (("agents", agents), ("prefix", prefix), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if decoder.compiled and decoder.linears is None:
        why = decoder.unavailable.get("pack", "pack=False")
        raise ValueError(f"a compiled decoder shows its linear layers only where they are packed: {why}")
    text = "3 " * prefix
    prompts = PromptFormat(
        organizer=text + "{question}", worker_shared=text, worker_isolated=text + "{subquery}", solo=text + "{question}"
    )
    sampler = ForkJoinSampler(
        decoder, tokenizer, prompts=prompts, mode="sequential", max_rows=max(1024, agents), max_episodes=agents
    )
    plain = [step.seconds for step in _steps(sampler, agents, tokens) if step.counted]
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps = list(_steps(sampler, agents, tokens))
    watched = [step.counted for step in steps]
    if not plain or not any(watched):
        raise ValueError(f"agents ended within {_WARM} steps: nothing to time")
    total = own_times(profiler.events(), watched)
    for part in PARTS_OF_PROGRAMS:  # a recorded step's ops are no events, but in the time of the model
        native = 1e3 * sum(step.native[part] for step in steps if step.counted)
        total[part] += native
        total["transformers"] -= native
    parts = {part: ms / sum(watched) for part, ms in total.items()}
    whole = sum(parts.values())
    ms = 1e3 * statistics.median(plain)
    return {
        "agents": agents,
        "prefix": prefix,
        "steps": len(plain),
        "ms": ms,
        "tokens_per_second": 1e3 * agents / ms,
        "ms_watched": whole,
        "parts": parts,
        "shares": {part: value / whole for part, value in parts.items()},
    }


class _Timed(NamedTuple):
    """One step. ``counted``: all agents decode in it, and it is none of the first few. ``native``: of a program."""

    seconds: float
    counted: bool
    native: dict[str, float]


def _steps(sampler: ForkJoinSampler, agents: int, tokens: int) -> list[_Timed]:
    steps: list[_Timed] = []
    decoding = 0
    decoder = sampler.decoder
    recorded = decoder.recorded if isinstance(decoder, Decoder) else None
    with ExitStack() as stack:
        for seed in range(agents):
            params = SamplingParams(max_tokens=tokens + _WARM + 1, seed=seed)
            stack.enter_context(sampler.stream("5", params))
        while decoding < tokens + _WARM and not sampler.scheduler.idle:
            before = {} if recorded is None else recorded.seconds
            start = time.perf_counter()
            with label("step"):
                rows = sampler.step()
            seconds = time.perf_counter() - start
            after = {} if recorded is None else recorded.seconds
            native = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in PARTS_OF_PROGRAMS}
            whole = rows == agents and all(len(run.agents) == 1 for run in sampler.scheduler.running)
            decoding += whole
            steps.append(_Timed(seconds, whole and decoding > _WARM, native))
    return steps
