"""Cold start: written demonstrations -> episodes of tokens -> training batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from asyncthink.engine.detokenize import TextStream, join_tokens
from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.episode.tree import lineage
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.prompts import Part, PromptFormat, worker_template
from asyncthink.protocol.tags import TAG, Return, join_insert
from asyncthink.tasks import Demonstration, Piece, Script, Task
from asyncthink.train.packing import Batch, Row, pack
from asyncthink.train.rows import rows


def encode(
    demonstration: Demonstration, tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, join: str = "exact"
) -> Episode:
    """The episode that a sampler would have recorded if its agents had drawn the demonstration's text.

    Prompts and joins get the token ids of the sampler, from the same functions. ``join`` is "exact" or "append":
    whether an agent attends to its own K/V of a returned text or to the worker's. Raises ValueError when the
    demonstration inserts a text that the worker did not return, and for a worker script that precedes its parent's.
    """
    codec, said = Codec(tokenizer), demonstration
    episode = Episode(said.question, said.mode, said.context, join, said.pool, depth=said.depth)
    for agent, script in enumerate(said.scripts):
        trace = Trace(agent, script.role, text=script.text)
        if script.role == "worker":
            if not 0 <= script.parent < agent:
                raise ValueError(f"scripts[{agent}]: expected a parent before it, got script {script.parent}")
            trace.parent, trace.fork_index = script.parent, script.fork_index
        episode.traces.append(trace)
        may_fork = len(lineage(episode.traces, agent)) <= said.depth
        _extend(trace, _prompt(codec, script, said, prompts, may_fork), sampled=False)
    for trace in reversed(episode.traces):  # workers stand behind their parents, who need their returns
        workers = {worker.fork_index: worker for worker in episode.traces if worker.parent == trace.agent}
        offsets: list[int] = []  # number of tokens before each piece
        for piece in said.scripts[trace.agent].pieces:
            offsets.append(len(trace.tokens))
            if piece.said:
                _extend(trace, codec.encode(_parts(piece), continues=True), sampled=True)
            else:
                _insert(codec, trace, workers, piece.text, join)
        for worker in workers.values():
            worker.fork_at = offsets[said.scripts[worker.agent].fork_at]
    return episode


def _prompt(
    codec: Codec, script: Script, demonstration: Demonstration, prompts: PromptFormat, may_fork: bool
) -> list[int]:
    name = worker_template(demonstration.context, may_fork) if script.role == "worker" else script.role
    parts = prompts.parts(name, question=demonstration.question, subquery=script.subquery)
    return codec.encode(parts, continues=name.endswith("worker_shared"))


def _parts(piece: Piece) -> list[Part]:
    """The text of a piece that an agent says, with what may become control tokens."""
    if piece.trusted:
        return [(piece.text, True)]
    cuts = [0, *(cut for match in TAG.finditer(piece.text) for cut in match.span()), len(piece.text)]
    return [(piece.text[a:b], number % 2 == 1) for number, (a, b) in enumerate(pairwise(cuts))]


def _insert(codec: Codec, trace: Trace, workers: dict[int | None, Trace], text: str, join: str) -> None:
    """Append what the runtime inserts at a join: ``text`` is the returned text and the closing tag."""
    index = int(text.rpartition("-")[2].rstrip(">"))
    worker = workers[index]
    stream, (begin, end) = _replay(codec, worker)
    if text != join_insert(index, stream.text[begin:end]):
        raise ValueError(f"join {index}: expected what the worker returned, {stream.text[begin:end]!r}, got {text!r}")
    insert = join_tokens(codec, index, stream, worker.tokens, (begin, end))
    record = Join(index, worker.agent, len(trace.tokens), insert.length, join, lead=len(insert.lead))
    if join == "append" and insert.span[0] < insert.span[1]:
        record.source = insert.span
    trace.joins.append(record)
    span = worker.tokens[slice(*insert.span)]
    _extend(trace, [*insert.lead, *span, *insert.rest, *insert.closing], sampled=False)


def _replay(codec: Codec, worker: Trace) -> tuple[TextStream, tuple[int, int]]:
    """The worker's text as the sampler would have decoded it, and the range of characters that it returned."""
    stream, parser, start, returned = TextStream(codec), Parser("worker", may_fork=True), 0, (0, 0)
    for number, (token, drawn) in enumerate(zip(worker.tokens, worker.sampled, strict=True)):
        piece = stream.push(token)
        if not drawn and True not in worker.sampled[:number]:  # the prompt
            stream.flush()
            start = len(stream.text)
        elif not drawn:  # the return of a worker of its own
            parser.insert(piece)
        for action in parser.feed(piece) if drawn else ():
            if isinstance(action, Return):
                returned = start + action.span.begin, start + action.span.end
    return stream, returned


def _extend(trace: Trace, tokens: Sequence[int], sampled: bool) -> None:
    for token in tokens:
        trace.add(token, sampled, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the kinds of demonstrations.

    Args:
        solo: one agent alone.
        part: one agent whose question names the parts to search.
        shared, isolated: an organizer whose workers see its tokens, or do not.
        append: share of the organized demonstrations whose returns enter by ``append`` instead of ``exact``.
        workers: share of the other organized demonstrations in which the workers' traces are learned too. In the rest
            only the organizer's is: workers write most of an episode's tokens, and their work is learned sooner.

    ``solo`` to ``isolated`` are weights and need not sum to 1. Raises ValueError for a share outside [0, 1].
    """

    solo: float = 0.3
    part: float = 0.0
    shared: float = 0.4
    isolated: float = 0.3
    append: float = 0.0
    workers: float = 1.0

    def __post_init__(self) -> None:
        for name in ("solo", "part", "shared", "isolated", "append", "workers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.solo + self.part + self.shared + self.isolated == 0:
            raise ValueError("mixture: expected a share above 0, got none")

    def draw(self, rng: random.Random) -> tuple[str, str, str]:
        """(mode, context, join) of one demonstration."""
        kinds = {
            ("sequential", "shared"): self.solo,
            ("part", "shared"): self.part,
            ("asyncthink", "shared"): self.shared,
            ("asyncthink", "isolated"): self.isolated,
        }
        mode, context = rng.choices(list(kinds), list(kinds.values()))[0]
        append = rng.random() < self.append
        return mode, context, "append" if append and mode == "asyncthink" else "exact"


@dataclass(frozen=True, slots=True)
class DemonstrationPacker:
    """Packs demonstrations into training batches, for one tokenizer and prompt format.

    Each demonstration is of a task chosen at random. ``max_tokens`` leaves out demonstrations in which some agent
    writes more tokens (None: leaves out none).
    """

    tasks: Sequence[Task]
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptFormat
    mixture: Mixture = field(default_factory=Mixture)
    pool: int = 4
    max_tokens: int | None = None
    depth: int = 1

    def stream(self, seed: str, held_out: bool = False) -> Iterator[list[Row]]:
        """Endless episodes, a pure function of ``seed``: of held-out puzzles with ``held_out``, else of the others."""
        rng = random.Random(seed)
        while True:
            task = rng.choice(self.tasks)
            puzzle = task.sample(rng.getrandbits(62), held_out)
            mode, context, join = self.mixture.draw(rng)
            demonstration = task.demonstrate(puzzle, rng.getrandbits(62), mode, context, self.pool, self.depth)
            episode = encode(demonstration, self.tokenizer, self.prompts, join)
            if self.max_tokens is None or max(trace.decoded for trace in episode.traces) <= self.max_tokens:
                episode_rows = rows(episode)
                # Drawn for every join, so that the share of append changes no other draw.
                with_workers = rng.random() < self.mixture.workers
                yield episode_rows if with_workers or join == "append" else episode_rows[:1]

    def batch(self, seed: int, step: int, batch_tokens: int) -> Batch:
        """The training batch of one step: a pure function of its arguments, so a resumed run sees the same data."""
        return pack(self.stream(f"batch {seed} {step}"), batch_tokens)
