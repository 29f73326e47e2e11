"""Plain records of an episode. No torch, no tokenizer.

An :class:`Episode` is one query with its answer. It holds one :class:`Trace` for each agent (the organizer first, then
the workers in the order of their forks) and the :class:`Event` list in the order of time. It has all that a trainer or
a viewer needs; derived figures (critical path, concurrency) are properties.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncthink.episode.critical_path import critical_path
from asyncthink.episode.options import Context, JoinMode, Mode
from asyncthink.files import write_whole
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.tags import Role

#: Kinds of :class:`Event`.
EVENT_KINDS = ("start", "fork", "wait", "join", "return", "answer", "error", "stop", "call", "tool")

#: How a trace or an episode can end. "end": the model wrote its end-of-text token; "error": a format error; "length":
#: the model has no more positions; "failed": the model or the program failed (:attr:`Episode.failures` has the error).
FINISHES = (
    *("answer", "return", "end", "stop", "budget", "length", "error"),
    *("timeout", "cancelled", "out_of_pages", "failed"),
)


@dataclass(slots=True)
class Event:
    """One thing that happened to one agent. A worker whose parent ended before it has a "stop": it was cancelled.

    ``step`` counts forward passes since the episode was admitted; ``time`` is seconds since then. ``index`` is the i of
    ``<FORK-i>`` / ``<JOIN-i>``; ``peer`` is the other agent (the worker of a fork or join, the organizer of a return).
    The text of "call" is ``name(arguments)``, that of "tool" the result.
    """

    kind: str
    agent: int
    step: int
    time: float
    index: int | None = None
    peer: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token that entered an agent's context: drawn by it, or inserted by the runtime (prompt, returned text).

    Of a token that was drawn, ``token`` is the id and ``logprob`` as in :class:`Trace`. Both are None where text that
    was held back for the rest of a character comes without one.
    """

    agent: int
    text: str
    sampled: bool
    step: int
    token: int | None = None
    logprob: float | None = None


@dataclass(slots=True)
class Join:
    """A worker's return as it entered its parent: ``tokens[at : at + length]`` of the parent's trace.

    ``source`` is the half-open range of the worker's own ``tokens`` whose K/V was joined at ``at + lead`` (``append``,
    ``link``); ``None`` when all of the text was prefilled (``exact``, or no token is wholly inside the text). The
    ``lead`` tokens before the range, and the rest after it, were encoded again and prefilled, because the worker's
    tokens there hold part of a tag as well.
    """

    index: int
    worker: int
    at: int
    length: int
    mode: str
    source: tuple[int, int] | None = None
    lead: int = 0


@dataclass(slots=True)
class ToolUse:
    """A tool's result as it entered an agent's context: ``tokens[at : at + length]`` of its trace, turn marks included.

    ``arguments`` is the JSON object that the agent wrote, ``result`` the text that it was told.
    """

    at: int
    length: int
    name: str
    arguments: str
    result: str


@dataclass(slots=True)
class Trace:
    """One agent's own tokens: prompt, sampled and inserted, in the order of its context.

    ``fork_at`` is the number of the parent's own tokens that existed when this worker was forked. With
    ``context="shared"`` exactly those tokens precede ``tokens`` in the agent's context; with ``"isolated"`` none do.
    ``sampled[k]`` is True when token k was drawn by this agent; ``logprobs[k]`` is then its natural-log probability
    under softmax(logits / temperature), before top-k, top-p and min-p (0.0 when inserted); ``steps[k]`` is the step
    that drew or inserted it; ``pieces[k]`` is the text it added. ``text`` is the text after the prompt.

    Under a guide, ``forced`` are the numbers of the tokens that the guide inserted for the agent: they act as tags, and
    are no more ``sampled`` than a prompt. ``rules`` are (k, the rule under which token k and later ones were drawn).
    """

    agent: int
    role: Role
    parent: int | None = None
    fork_index: int | None = None
    fork_at: int = 0
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    text: str = ""
    returned: str | None = None
    finish: str = ""  # one of FINISHES
    tools: list[ToolUse] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    rules: list[tuple[int, Rule]] = field(default_factory=list)

    def add(self, token: int, sampled: bool, logprob: float, step: int, piece: str = "") -> None:
        self.tokens.append(token)
        self.sampled.append(sampled)
        self.logprobs.append(logprob)
        self.steps.append(step)
        self.pieces.append(piece)

    def ruled(self, rule: Rule) -> None:
        """The next token is drawn under ``rule``."""
        if not self.rules or self.rules[-1][1] != rule:
            self.rules.append((len(self.tokens), rule))

    @property
    def decoded(self) -> int:
        """Number of tokens that this agent drew."""
        return sum(self.sampled)


@dataclass(slots=True)
class Episode:
    """One query, its traces, its answer.

    ``mode``, ``context`` and ``join_mode`` are values of the enumerations in :mod:`asyncthink.episode.options`;
    ``depth`` is the most levels of workers.
    ``critical_path_seconds`` runs from admission to the answer,
    prefill included; ``wall_seconds`` also counts the wait for admission. ``step_times[s]`` is the end of step s in
    seconds since admission. ``kv_bytes_shared`` is what workers (and ``link`` joins) read in place instead of owning a
    copy, ``kv_bytes_copied`` what ``append`` joins scattered, ``state_bytes_copied`` the recurrent states that forks
    copied, in models that have such layers. ``prefix_tokens`` of the first agent's prompt were in the
    engine's cache when it began (from a template or an earlier context), and were not computed again. ``failures`` are
    faults of the model or the program, not of the format: logits that are not finite, an exception.
    """

    question: str
    mode: str
    context: str = Context.SHARED.value
    join_mode: str = JoinMode.EXACT.value
    pool: int = 4
    seed: int = 0
    traces: list[Trace] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answer: str | None = None
    format_errors: list[str] = field(default_factory=list)
    finish: str = ""
    wall_seconds: float = 0.0
    critical_path_seconds: float = 0.0
    kv_bytes_shared: int = 0
    kv_bytes_copied: int = 0
    step_times: list[float] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    prefix_tokens: int = 0
    depth: int = 1
    state_bytes_copied: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens drawn by all agents."""
        return sum(trace.decoded for trace in self.traces)

    @property
    def forks(self) -> int:
        return sum(event.kind == "fork" for event in self.events)

    @property
    def joins(self) -> int:
        return sum(len(trace.joins) for trace in self.traces)

    @property
    def critical_path_tokens(self) -> int:
        """Longest chain of drawn tokens through forks and joins (AsyncThink, arXiv 2510.26658, section 2.3).

        A worker starts at the clock of the agent that forks it, a join waits for the later of the two. Inserted tokens
        cost nothing. In ``parallel`` mode the traces are independent and the longest one counts.
        """
        if self.mode == Mode.PARALLEL:
            return max((trace.decoded for trace in self.traces), default=0)
        return sum(sum(self.traces[agent].sampled[first:last]) for agent, first, last in critical_path(self.traces))

    @property
    def concurrency(self) -> float:
        """eta = (tokens drawn by all agents) / (critical path): mean number of agents decoding along it."""
        path = self.critical_path_tokens
        return self.total_tokens / path if path else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON. A depth of 1 and 0 bytes of states are left out: such a file is the one that it always was."""
        data = dataclasses.asdict(self)
        if self.depth == 1:
            del data["depth"]
        if not self.state_bytes_copied:
            del data["state_bytes_copied"]
        return data

    def save(self, path: str | Path) -> None:
        write_whole(path, json.dumps(self.to_dict()))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Episode:
        data = dict(data)
        data["events"] = [Event(**event) for event in data.get("events", [])]
        data["traces"] = [_trace(trace) for trace in data.get("traces", [])]
        return cls(**data)

    @classmethod
    def load(cls, path: str | Path) -> Episode:
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _trace(data: dict[str, Any]) -> Trace:
    joins = [Join(**{**j, "source": tuple(j["source"]) if j["source"] else None}) for j in data.get("joins", [])]
    tools = [ToolUse(**use) for use in data.get("tools", [])]
    rules = [(first, Rule.from_dict(rule)) for first, rule in data.get("rules", [])]
    return Trace(**{**data, "joins": joins, "tools": tools, "rules": rules})
