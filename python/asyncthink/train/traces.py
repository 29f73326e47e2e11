"""Cold start: written demonstrations -> episodes of tokens -> training rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from asyncthink.protocol import PromptFormat
from asyncthink.records import Episode, Join, Trace
from asyncthink.tasks import Countdown, Demonstration, Script
from asyncthink.train.packing import Batch, Move, Row, pack


def encode(
    demonstration: Demonstration, tokenizer: PreTrainedTokenizerBase, prompts: PromptFormat, join: str = "exact"
) -> Episode:
    """The episode that a sampler would have recorded, had the agents said what the demonstration says.

    ``join`` is "exact" or "append": whether the organizer sees its own K/V of a returned text or the worker's.
    """
    made = Episode(demonstration.question, demonstration.mode, demonstration.context, join, demonstration.pool)
    offsets: list[int] = []  # of the organizer: number of tokens before each piece
    for agent, script in enumerate(demonstration.scripts):
        trace = Trace(agent, script.role)
        if script.role == "worker":
            trace.parent, trace.fork_index, trace.fork_at = 0, script.fork_index, offsets[script.fork_at]
        _extend(trace, tokenizer, _prompt(script, demonstration, prompts), sampled=False)
        for piece in script.pieces:
            if agent == 0:
                offsets.append(len(trace.tokens))
            start = len(trace.tokens)
            _extend(trace, tokenizer, piece.text, sampled=piece.said)
            if not piece.said:
                index = int(piece.text.rpartition("-")[2].rstrip(">"))
                trace.joins.append(Join(index, index, start, len(trace.tokens) - start - 1, join))
        trace.text = script.text
        made.traces.append(trace)
    if join == "append":
        for record in made.traces[0].joins:
            end = len(made.traces[record.worker].tokens) - 1  # of the returned text: </RETURN> is one token
            record.source = (end - record.length, end)
    return made


def _prompt(script: Script, demonstration: Demonstration, prompts: PromptFormat) -> str:
    name = f"worker_{demonstration.context}" if script.role == "worker" else script.role
    return prompts.fill(name, question=demonstration.question, subquery=script.subquery)


def _extend(trace: Trace, tokenizer: PreTrainedTokenizerBase, text: str, sampled: bool) -> None:
    for token in tokenizer.encode(text, add_special_tokens=False):
        trace.add(token, sampled, 0.0, 0)


def rows(episode: Episode) -> list[Row]:
    """One row per trace: the agent's own tokens, the loss only on what it drew."""
    made = []
    for trace in episode.traces:
        sees = trace.parent if episode.context == "shared" else None
        at = trace.fork_at if sees is not None else 0
        moves = tuple(
            Move(join.at + join.lead, join.worker, *join.source) for join in trace.joins if join.source is not None
        )
        made.append(Row(trace.role, episode.context, tuple(trace.tokens), tuple(trace.sampled), sees, at, moves))
    return made


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of demonstrations: one agent alone, workers that see the organizer's text, workers that do not.

    ``append`` is the share of the organized ones in which returns enter by ``append`` instead of ``exact``.
    """

    solo: float = 0.3
    shared: float = 0.4
    isolated: float = 0.3
    append: float = 0.0

    def __post_init__(self) -> None:
        for name in ("solo", "shared", "isolated", "append"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.solo + self.shared + self.isolated == 0:
            raise ValueError("mixture: expected a share above 0, got none")


@dataclass(frozen=True, slots=True)
class Cutter:
    """Makes demonstrations of one task into rows for one tokenizer and prompt format."""

    task: Countdown
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptFormat
    mixture: Mixture = field(default_factory=Mixture)
    pool: int = 4

    def stream(self, seed: str, held_out: bool = False) -> Iterator[list[Row]]:
        """Endless episodes, a pure function of ``seed``; held-out puzzles appear only with ``held_out=True``."""
        rng, joins = random.Random(seed), random.Random(f"joins {seed}")
        kinds = ("solo", "shared", "isolated")
        weights = (self.mixture.solo, self.mixture.shared, self.mixture.isolated)
        while True:
            puzzle = self.task.sample(rng.getrandbits(62), held_out)
            kind = rng.choices(kinds, weights)[0]
            mode, context = ("sequential", "shared") if kind == "solo" else ("asyncthink", kind)
            demonstration = self.task.demonstrate(puzzle, rng.getrandbits(62), mode, context, self.pool)
            join = "append" if mode == "asyncthink" and joins.random() < self.mixture.append else "exact"
            yield rows(encode(demonstration, self.tokenizer, self.prompts, join))

    def batch(self, seed: int, step: int, length: int) -> Batch:
        """The training batch of one step: a pure function of its arguments, so a resumed run sees the same data."""
        return pack(self.stream(f"batch {seed} {step}"), length)
