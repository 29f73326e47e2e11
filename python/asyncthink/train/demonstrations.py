"""Cold start: written demonstrations -> episodes of tokens -> training rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from asyncthink.engine.detokenize import TextStream, join_tokens
from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.tags import Parser, PromptFormat, Return, join_insert
from asyncthink.tasks import Demonstration, Script, Task
from asyncthink.train.packing import Batch, Move, Row, pack


def encode(
    demonstration: Demonstration, tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, join: str = "exact"
) -> Episode:
    """The episode that a sampler would have recorded, had the agents said what the demonstration says.

    Prompts and joins have the ids that the sampler gives them, through the same functions. ``join`` is "exact" or
    "append": whether the organizer sees its own K/V of a returned text or the worker's. Raises ValueError when the
    demonstration inserts another text than the worker returned.
    """
    codec = Codec(tokenizer)
    made = Episode(demonstration.question, demonstration.mode, demonstration.context, join, demonstration.pool)
    for agent, script in enumerate(demonstration.scripts):
        made.traces.append(Trace(agent, script.role, text=script.text))
        _extend(made.traces[agent], _prompt(codec, script, demonstration, prompts), sampled=False)
    workers = {
        script.fork_index: trace
        for script, trace in zip(demonstration.scripts, made.traces, strict=True)
        if script.role == "worker"
    }
    for trace in workers.values():
        for piece in demonstration.scripts[trace.agent].pieces:
            _extend(trace, codec.encode([(piece.text, True)], continues=True), sampled=True)
    for script, trace in zip(demonstration.scripts, made.traces, strict=True):
        if script.role == "worker":
            continue
        offsets: list[int] = []  # number of tokens before each piece
        for piece in script.pieces:
            offsets.append(len(trace.tokens))
            if piece.said:
                _extend(trace, codec.encode([(piece.text, True)], continues=True), sampled=True)
            else:
                _insert(codec, trace, workers, piece.text, join)
        for worker in workers.values() if trace.agent == 0 else ():
            worker_script = demonstration.scripts[worker.agent]
            worker.parent, worker.fork_index = 0, worker_script.fork_index
            worker.fork_at = offsets[worker_script.fork_at]
    return made


def _prompt(codec: Codec, script: Script, demonstration: Demonstration, prompts: PromptFormat) -> list[int]:
    name = f"worker_{demonstration.context}" if script.role == "worker" else script.role
    parts = prompts.parts(name, question=demonstration.question, subquery=script.subquery)
    return codec.encode(parts, continues=name == "worker_shared")


def _insert(codec: Codec, trace: Trace, workers: dict[int | None, Trace], text: str, join: str) -> None:
    """The runtime's part of a join: ``text`` is what the worker returned and the closing tag."""
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
    """The worker's text as the sampler would have read it, and the characters of it that are its return."""
    stream, parser, start, returned = TextStream(codec), Parser("worker"), 0, (0, 0)
    for token, drawn in zip(worker.tokens, worker.sampled, strict=True):
        piece = stream.push(token)
        if not drawn:
            stream.flush()
            start = len(stream.text)
            continue
        for action in parser.feed(piece):
            if isinstance(action, Return):
                returned = start + action.span.begin, start + action.span.end
    return stream, returned


def _extend(trace: Trace, tokens: Sequence[int], sampled: bool) -> None:
    for token in tokens:
        trace.add(token, sampled, 0.0, 0)


def rows(episode: Episode) -> list[Row]:
    """One row per trace, in their order: the agent's own tokens, the loss only on what it drew.

    A worker with shared context sees the organizer's tokens up to its fork. Agents that begin a context of their own
    (isolated workers, the traces of ``parallel`` mode) with many tokens in common see them in the first one's row, so
    that each is computed once.
    """
    made: list[Row] = []
    skipped: list[int] = []  # tokens of each trace that another row holds
    for trace in episode.traces:
        tokens, learned, parent, at = list(trace.tokens), list(trace.sampled), None, 0
        if trace.parent is not None and episode.context == "shared":
            parent, at = trace.parent, trace.fork_at
            if learned[:1] != [False]:  # an empty prompt: the organizer's last token predicts the first one
                at -= 1
                tokens, learned = [episode.traces[parent].tokens[at], *tokens], [False, *learned]
        else:
            parent, at = _begins_like(trace, episode.traces[: trace.agent], made)
            tokens, learned = tokens[at:], learned[at:]
        skipped.append(len(trace.tokens) - len(tokens))
        made.append(Row(trace.role, episode.context, tuple(tokens), tuple(learned), parent, at))
    for agent, trace in enumerate(episode.traces):
        moves = tuple(
            Move(join.at + join.lead - skipped[agent], join.worker, *(at - skipped[join.worker] for at in join.source))
            for join in trace.joins
            if join.source is not None
        )
        made[agent] = dataclasses.replace(made[agent], moves=moves)
    return made


_WORTH_SHARING = 32  # given tokens; fewer are sooner computed again than looked up in another row


def _begins_like(trace: Trace, others: Sequence[Trace], made: Sequence[Row]) -> tuple[int | None, int]:
    """(earlier agent, number of its first tokens) that this one may see in place of its own; (None, 0) if few."""
    for other, row in zip(others, made, strict=True):
        given = min(_given(trace), _given(other))
        same = next((k for k in range(given) if trace.tokens[k] != other.tokens[k]), given)
        if row.parent is None and same > _WORTH_SHARING:
            return other.agent, same - 1  # one is left: it predicts the first token that is drawn
    return None, 0


def _given(trace: Trace) -> int:
    """Number of tokens before the first one that the agent drew."""
    return trace.sampled.index(True) if True in trace.sampled else len(trace.tokens)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of demonstrations: one agent alone, one agent on named parts, workers that see the organizer, or not.

    Of the organized ones, ``append`` is the share in which returns enter by ``append`` instead of ``exact``. In a share
    of 1 - ``workers`` of the others only the organizer's trace is learned: workers write most of an episode's tokens,
    and what they do is soon known.
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
    """Makes demonstrations of tasks into rows for one tokenizer and prompt format.

    Of several tasks each demonstration takes one at random. ``budget``: demonstrations in which some agent writes more
    tokens are left out (None: none are).
    """

    tasks: Sequence[Task]
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptFormat
    mixture: Mixture = field(default_factory=Mixture)
    pool: int = 4
    budget: int | None = None

    def stream(self, seed: str, held_out: bool = False) -> Iterator[list[Row]]:
        """Endless episodes, a pure function of ``seed``; held-out puzzles appear only with ``held_out=True``."""
        rng = random.Random(seed)
        while True:
            task = rng.choice(self.tasks)
            puzzle = task.sample(rng.getrandbits(62), held_out)
            mode, context, join = self.mixture.draw(rng)
            demonstration = task.demonstrate(puzzle, rng.getrandbits(62), mode, context, self.pool)
            episode = encode(demonstration, self.tokenizer, self.prompts, join)
            if self.budget is None or max(trace.decoded for trace in episode.traces) <= self.budget:
                made = rows(episode)
                whole = rng.random() < self.mixture.workers  # drawn for any join: append moves no other draw
                yield made if whole or join == "append" else made[:1]

    def batch(self, seed: int, step: int, length: int) -> Batch:
        """The training batch of one step: a pure function of its arguments, so a resumed run sees the same data."""
        return pack(self.stream(f"batch {seed} {step}"), length)
