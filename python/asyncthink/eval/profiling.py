"""Where the time of a decode step goes: :func:`profile`.

The sampler's own steps are timed, with a clock at the borders of each part: around linear layers, our ops, the planner,
the scheduler, drawing and parsing. A part's time is its own: what runs inside of it and is
another part is subtracted, so shares add up to the whole. The same steps are run without the clock first, which shows
what it costs.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.sampling import SamplingParams
from asyncthink.episode.core import EpisodeCore
from asyncthink.model import linear as model_pack
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat
from asyncthink_kernels.ops import wrap_ops

PARTS = {
    "linear": "linear layers",
    "attention": "attention",
    "append": "append to the cache",
    "transformers": "the rest of the model",
    "plan": "plan",
    "schedule": "schedule",
    "draw": "draw tokens",
    "parse": "parse and record",
    "rest": "the rest of the sampler",
}
"""Key in the result -> what a table calls it."""

_OPS = {"append_kv": "append", "tree_attention": "attention"}
_WARM = 3  # steps before any is timed


class Clock:
    """Own time of nested parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0  # when the innermost open part began, or went on

    def enter(self, part: str) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._open.append(part)
        self._since = now

    def leave(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open.pop()] += now - self._since
        self._since = now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, its time that of ``part``."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed


@contextmanager
def watched(sampler: ForkJoinSampler, clock: Clock) -> Iterator[None]:
    """The sampler with a clock at every border; afterwards it is as it was."""
    with ExitStack() as stack:
        stack.enter_context(wrap_ops(lambda name, run: clock.around(_OPS[name], run) if name in _OPS else run))
        for module in sampler.decoder.model.modules() if sampler.decoder.linears is None else ():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(lambda *_: clock.enter("linear")).remove)
                stack.callback(module.register_forward_hook(lambda *_: clock.leave()).remove)
        places: list[tuple[Any, str, str]] = [
            (model_pack, "_linear", "linear"),
            (sampler.decoder, "forward", "transformers"),
            (sampler.cache, "plan", "plan"),
            (sampler.scheduler, "admit", "schedule"),
            (sampler.scheduler, "select", "schedule"),
            (sampler.scheduler, "retire", "schedule"),
            (sampler, "_draw", "draw"),
            (EpisodeCore, "accept", "parse"),
            (EpisodeCore, "tick", "parse"),
        ]
        for owner, name, part in places:
            own = name in vars(owner)
            before = getattr(owner, name)
            setattr(owner, name, clock.around(part, before))
            stack.callback(*((setattr, owner, name, before) if own else (delattr, owner, name)))
        yield


def profile(decoder: Decoder, tokenizer: Any, *, agents: int, prefix: int, tokens: int) -> dict[str, Any]:
    """Let ``agents`` agents behind one prompt of at least ``prefix`` words decode ``tokens`` steps, twice.

    Returns:
        agents, steps; ms (median of a step without the clock), tokens_per_second, ms_watched (mean with the clock);
        parts: own milliseconds of a step, by :data:`PARTS`; shares: of the whole, adding up to 1.

    Raises:
        ValueError: a number below 1; agents that end before there are steps to time; a compiled decoder whose linear
            layers are not packed, so that no clock can see them.
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
    plain = _steps(sampler, agents, tokens)
    clock = Clock()
    with watched(sampler, clock):
        seen = _steps(sampler, agents, tokens, clock)
    if not plain or not seen:
        raise ValueError(f"agents ended within {_WARM} steps: nothing to time")
    parts = {part: 1e3 * clock.seconds[part] / len(seen) for part in PARTS}
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


def _steps(sampler: ForkJoinSampler, agents: int, tokens: int, clock: Clock | None = None) -> list[float]:
    """Seconds of each step in which all agents decode, behind the first few."""
    params = [SamplingParams(max_tokens=tokens + _WARM + 1, seed=seed) for seed in range(agents)]
    sampler.engine.prepare_prefixes(["solo"])
    runs = [sampler._new("5", sampler._prompt("5", "question"), each, None) for each in params]
    sampler.scheduler.waiting.extend(runs)
    found: list[float] = []
    warm = 0
    try:
        while len(found) < tokens and not all(run.done for run in runs):
            before = None if clock is None else clock.seconds.copy()
            start = time.perf_counter()
            if clock is None:
                rows = sampler.step()
            else:
                clock.enter("rest")
                try:
                    rows = sampler.step()
                finally:
                    clock.leave()
            passed = time.perf_counter() - start
            if rows == agents and all(len(run.agents) == 1 for run in sampler.scheduler.running):
                warm += 1
                if warm > _WARM:
                    found.append(passed)
                    continue
            if clock is not None and before is not None:
                clock.seconds = before  # prefill and the first steps are not asked about
    finally:
        before = None if clock is None else clock.seconds.copy()
        for run in runs:
            sampler.engine.drop(run)
        if clock is not None and before is not None:
            clock.seconds = before  # nor is the end
    return found
