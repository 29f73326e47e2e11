"""Written traces in a file: one JSON object a line, a question and what its organizer and its workers write.

A line holds no prompts, no tokens and no text that the runtime inserts, so that any model, or a person, can write it,
and any tokenizer, prompt format and context can be trained on it::

    {"question": "What is 2*3 + 4*5?", "pool": 3, "agents": [
      {"text": "<FORK-1>What is 2*3?</FORK-1> 4*5=20 <JOIN-1> 6+20=26 <ANSWER>26</ANSWER>"},
      {"parent": 0, "index": 1, "text": "2*3=6 <RETURN>6</RETURN>"}]}

The sub-query of a worker is the text of its ``<FORK-i>``; behind ``<JOIN-i>`` the runtime inserts what the worker
returns and ``</JOIN-i>``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator

from asyncthink.episode.options import Context
from asyncthink.files import write_whole
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import Answer, Fork, FormatError, Join, Return, Role, join_insert
from asyncthink.tasks.script import Demonstration, Piece, Script

Act: TypeAlias = Fork | Join | Answer | Return

_AGENT = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string"},
        "parent": {"type": "integer", "minimum": 0},
        "index": {"type": "integer", "minimum": 1, "maximum": 999},
    },
    "dependentRequired": {"parent": ["index"], "index": ["parent"]},
}
#: What a line must look like, as a JSON schema. :class:`WrittenTrace` checks the rules of the protocol.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["question", "agents"],
    "additionalProperties": False,
    "properties": {
        "question": {"type": "string", "minLength": 1},
        "agents": {"type": "array", "minItems": 1, "items": _AGENT},
        "id": {"type": "string"},
        "mode": {"enum": ["asyncthink", "sequential"]},
        "context": {"enum": [str(context) for context in Context]},
        "pool": {"type": "integer", "minimum": 1},
        "depth": {"type": "integer", "minimum": 1},
        "score": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "source": {"type": "object"},
    },
}
_VALIDATOR = Draft202012Validator(SCHEMA)


@dataclass(frozen=True, slots=True)
class WrittenAgent:
    """What one agent writes. A worker is the one that agent number ``parent`` forks by ``<FORK-index>``."""

    text: str
    parent: int | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class WrittenTrace:
    """One question and its agents: the organizer (mode "asyncthink") or the one agent alone ("sequential") first.

    Args:
        context: what the workers could see when the trace was written; it may be learned in another one.
        pool: most agents that live at the same time, a worker living from its fork to its join.
        depth: levels of workers.
        score: the graded share of the answer in [0, 1]; None: it was not graded.
        source: where the trace comes from; nothing here reads it.

    Raises ValueError for agents that break the protocol: a format error of the parser's, text behind the answer or the
    return, a fork without its worker or a worker without its fork, a worker before its parent, a pool that overflows.

    >>> organizer = WrittenAgent("<FORK-1>2*3?</FORK-1> 4*5=20 <JOIN-1> 6+20=26 <ANSWER>26</ANSWER>")
    >>> trace = WrittenTrace("What is 2*3 + 4*5?", (organizer, WrittenAgent("<RETURN>6</RETURN>", 0, 1)))
    >>> trace.answer, trace.demonstration().scripts[0].text
    ('26', '<FORK-1>2*3?</FORK-1> 4*5=20 <JOIN-1>6</JOIN-1> 6+20=26 <ANSWER>26</ANSWER>')
    """

    question: str
    agents: tuple[WrittenAgent, ...]
    id: str = ""
    mode: str = "asyncthink"
    context: str = Context.SHARED.value
    pool: int = 4
    depth: int = 1
    score: float | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        alive = _most_alive(self.agents, self.acts(), 0)
        if alive > self.pool:
            raise ValueError(f"pool: expected at most {self.pool} agents alive, got {alive}")

    @property
    def answer(self) -> str:
        """The text of the answer."""
        return _result(self.acts()[0])

    def acts(self) -> list[list[Act]]:
        """What the tags of each agent do, in order, with their places in its text."""
        acts: list[list[Act]] = []
        levels: list[int] = []
        for number, agent in enumerate(self.agents):
            parent = -1 if agent.parent is None else agent.parent
            if not (parent < 0 if number == 0 else 0 <= parent < number):
                expected = "none for the first agent" if number == 0 else "an agent before it"
                raise ValueError(f"agents[{number}].parent: expected {expected}, got {agent.parent}")
            levels.append(levels[parent] + 1 if number else 0)
            parser = Parser(self._role(number), may_fork=levels[number] < self.depth)
            acts.append(_whole(parser, agent.text, f"agents[{number}].text"))
        _check_pairs(self.agents, acts)
        return acts

    def demonstration(self, context: str | None = None) -> Demonstration:
        """The trace as a demonstration, in its own context or in the one that is given.

        Its pieces are not trusted: their tags are the only control tokens that they can become.
        """
        acts = self.acts()
        scripts = [
            Script(self._role(number), agent.index, parent=agent.parent or 0)
            for number, agent in enumerate(self.agents)
        ]
        for number, agent in enumerate(self.agents):
            script, begin = scripts[number], 0
            for act in acts[number]:
                script.pieces.append(Piece(agent.text[begin : act.span.stop], trusted=False))
                begin = act.span.stop
                if isinstance(act, Join):
                    script.insert(join_insert(act.index, _result(acts[_worker(self.agents, number, act.index)])))
                elif isinstance(act, Fork):
                    worker = scripts[_worker(self.agents, number, act.index)]
                    worker.subquery, worker.fork_at = act.subquery, len(script.pieces)
        return Demonstration(self.question, self.mode, context or self.context, self.pool, scripts, self.depth)

    def to_dict(self) -> dict[str, Any]:
        """As JSON of :data:`SCHEMA`."""
        data = asdict(self)
        data["agents"] = [{k: value for k, value in agent.items() if value is not None} for agent in data["agents"]]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> WrittenTrace:
        """The trace of a line. Raises ValueError for JSON that :data:`SCHEMA` or the protocol refuses."""
        if error := next(iter(sorted(_VALIDATOR.iter_errors(data), key=lambda error: list(error.path))), None):
            raise ValueError(f"{error.json_path.removeprefix('$.')}: {error.message:.300}")
        return cls(**{**data, "agents": tuple(WrittenAgent(**agent) for agent in data["agents"])})

    def _role(self, number: int) -> Role:
        first: Role = "organizer" if self.mode == "asyncthink" else "solo"
        return "worker" if number else first


def read_traces(path: str | Path) -> list[WrittenTrace]:
    """The traces of a JSONL file, in order, all in memory; empty lines are skipped.

    Raises ValueError for a missing or empty file and, with its number, for a line that is no such trace.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"traces: there is no file {path}")
    traces = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                traces.append(WrittenTrace.from_dict(json.loads(line)))
            except json.JSONDecodeError as error:
                got = f"got {line!r:.80} ({error})"
                raise ValueError(f"traces: {path}, line {number}: expected JSON, {got}") from None
            except ValueError as error:
                raise ValueError(f"traces: {path}, line {number}: {error}") from None
    if not traces:
        raise ValueError(f"traces: {path} holds no traces")
    return traces


def write_traces(path: str | Path, traces: Iterable[WrittenTrace]) -> None:
    """Write a JSONL file that :func:`read_traces` reads, whole or not at all. Raises OSError."""
    write_whole(path, "".join(map(to_line, traces)))


def to_line(trace: WrittenTrace) -> str:
    """The line of a trace, with the line feed that ends it."""
    return json.dumps(trace.to_dict(), ensure_ascii=False) + "\n"


def _whole(parser: Parser, text: str, where: str) -> list[Act]:
    """The acts of an agent that ends with its answer or return and writes nothing behind it."""
    acts: list[Act] = []
    for action in [*parser.feed(text), *parser.close()]:
        if isinstance(action, FormatError):
            raise ValueError(f"{where}: {action}")
        acts.append(action)
    if rest := text[acts[-1].span.stop :]:
        raise ValueError(f"{where}: expected nothing behind the end, got {rest!r:.80}")
    return acts


def _check_pairs(agents: Sequence[WrittenAgent], acts: Sequence[list[Act]]) -> None:
    """Every fork has one worker, and every worker has its fork."""
    forks = [(k, act.index) for k, ours in enumerate(acts) for act in ours if isinstance(act, Fork)]
    workers = [(agent.parent, agent.index) for agent in agents[1:]]
    for number, worker in enumerate(workers, 1):
        if worker not in forks:
            raise ValueError(f"agents[{number}]: expected a <FORK-{worker[1]}> of agent {worker[0]}, got none")
    for parent, index in forks:
        if workers.count((parent, index)) != 1:
            count = workers.count((parent, index))
            raise ValueError(f"agents: expected one worker for <FORK-{index}> of agent {parent}, got {count}")


def _worker(agents: Sequence[WrittenAgent], parent: int, index: int) -> int:
    return next(k for k, agent in enumerate(agents) if (agent.parent, agent.index) == (parent, index))


def _result(acts: Sequence[Act]) -> str:
    end = acts[-1]
    assert isinstance(end, Answer | Return)
    return end.text


def _most_alive(agents: Sequence[WrittenAgent], acts: Sequence[list[Act]], number: int) -> int:
    """The most agents that live at the same time among agent ``number`` and its workers, with theirs."""
    alive: dict[int, int] = {}
    most = 0
    for act in acts[number]:
        if isinstance(act, Fork):
            alive[act.index] = _most_alive(agents, acts, _worker(agents, number, act.index))
            most = max(most, sum(alive.values()))
        elif isinstance(act, Join):
            del alive[act.index]
    return 1 + most
