"""A thread's tokens computed as a job of the engine, beside its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from asyncthink.engine.grammar import Bits
from asyncthink.engine.stretch import Joined, Stretch, needed
from asyncthink.engine.stretches import Stretches
from asyncthink.episode.options import JoinMode
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.wishes import Splice

if TYPE_CHECKING:
    from torch import Tensor

    from asyncthink.engine.jobs import Participant
    from asyncthink.model.contract import ContextBranch


class Prefixes(Protocol):
    """Computed heads of contexts."""

    def branch(self, name: str, tokens: Sequence[int]) -> ContextBranch:
        """A new branch with the first of ``tokens``, as many as are computed; at least one is not."""
        ...


class Reader:
    """Computes the first ``stop`` tokens of a stretch's context. One reader at a time works on a stretch.

    ``begin`` is where the stretch's branch begins if it has none. The reader that ``writes`` draws behind the last
    token; one that ``scores`` reads the logits of all tokens that it computes.
    """

    def __init__(
        self, stretch: Stretch, stop: int, begin: int, number: int = 0, *, writes: bool = False, scores: bool = False
    ) -> None:
        self.stretch, self.stop, self.begin, self.number = stretch, stop, begin, number
        self.writes, self.scores = writes, scores
        self.mask: Bits | None = None

    @property
    def branch(self) -> ContextBranch:
        assert self.stretch.branch is not None
        return self.stretch.branch

    @property
    def finished(self) -> bool:
        """Whether it has nothing left to do. One that draws or scores is ended by its job."""
        return not (self.writes or self.scores) and self.stretch.computed >= self.stop

    @property
    def works(self) -> bool:
        """Whether it is this one's turn, and the branch has begun."""
        return self.stretch.reader is self and self.stretch.branch is not None

    @property
    def ready(self) -> int:
        """Tokens before the next join, or before ``stop``."""
        if not self.works:
            return 0
        computed = self.stretch.computed
        behind = next((joined.at for joined in self.stretch.joins if joined.at >= computed), self.stop)
        return max(min(behind, self.stop) - computed, 0)

    @property
    def joining(self) -> Joined | None:
        """The join whose K/V come next."""
        if not self.works or not self.stretch.joins or self.stretch.computed >= self.stop:
            return None
        return next((joined for joined in self.stretch.joins if joined.at == self.stretch.computed), None)

    @property
    def key(self) -> tuple[int, int]:
        return self.number, self.stretch.length

    @property
    def marks(self) -> tuple[int, ...]:
        """Forks and other thoughts begin before the last token, which is computed for its logits."""
        return (self.stop - 1, self.stop)

    def draws(self, count: int) -> bool:
        return self.writes and self.stretch.computed == self.stop

    def entered(self, count: int) -> None:
        """The branch says what is computed."""

    def take(self, count: int) -> list[int]:
        computed = self.stretch.computed  # those of the planned step are counted
        return self.stretch.context(computed - count, computed)


class ThreadJob:
    """Computes a stretch's K/V, with those of the stretches that it needs. Subclasses draw or score behind them.

    ``finish`` is one of :data:`asyncthink.episode.records.FINISHES`, empty while it is not done. ``error`` is why it
    failed.
    """

    def __init__(self, target: Reader, pool: Stretches, prefixes: Prefixes, params: SamplingParams) -> None:
        self.target, self.params = target, params
        self.agents: list[Reader] = []
        self.finish = ""
        self.error: Exception | None = None
        self._pool, self._prefixes = pool, prefixes
        self._kept = False  # whether the K/V are right and stay, as after a regular end

    @property
    def done(self) -> bool:
        return bool(self.finish)

    @property
    def pages_to_start(self) -> int:
        wanted = self._needed()
        return sum(max(stop - max(s.computed, s.start), 0) // self._pool.cache.page_size + 1 for s, stop in wanted)

    def start(self) -> None:
        if self.done:  # ended before the engine took it
            return
        self._pool.drop_stale()
        target, stretch = self.target, self.target.stretch
        self.agents = [Reader(s, stop, s.start) for s, stop in self._needed() if s is not stretch] + [target]
        for reader in self.agents:
            reader.stretch.needed += 1
            self._pool.touch(reader.stretch)
        self.fork_ready()

    def release(self) -> None:
        for reader in self.agents:
            self._let_go(reader, self._kept)
        self.agents = []

    def fork_ready(self) -> None:
        for reader in self.agents:
            if reader.finished:
                continue
            if reader.stretch.reader is None or reader.stretch.reader.finished:
                reader.stretch.reader = reader
                self._pool.resume(reader.stretch)
                if reader is self.target:  # its last token is computed here, for the logits
                    self._pool.cut(reader.stretch, reader.stop - 1)
            if reader.stretch.reader is reader and reader.stretch.branch is None:
                self._begin(reader)
        if len(self.agents) > 1 and self.target.works and self.target.stretch.computed >= self.target.stop - 1:
            for reader in self.agents[:-1]:  # the K/V that the target needed are in its own context
                self._let_go(reader, True)
            self.agents = [self.target]

    def ready_splice(self, agent: Participant) -> Splice | None:
        reader = next(reader for reader in self.agents if reader is agent)
        joined = reader.joining
        if joined is None or joined.source.computed < joined.stop:
            return None
        stretches = [reader.stretch for reader in self.agents]
        numbers = stretches.index(reader.stretch), stretches.index(joined.source)
        return Splice(*numbers, joined.first, joined.stop, JoinMode(joined.mode))

    def spliced(self, agent: Participant, splice: Splice) -> None:
        """Nothing is left to do: the reader looks at the branch."""

    def accept(self, agent: Participant, drawn: tuple[int, float] | None) -> None:
        raise NotImplementedError

    def score(self, agent: Participant, logits: Tensor) -> None:
        raise NotImplementedError

    def tick(self) -> None:
        """Nothing ends by time alone."""

    def crash(self, error: Exception) -> None:
        self.error = error
        self.end("failed")

    def end(self, reason: str) -> None:
        self.finish = self.finish or reason

    def mute(self) -> None:
        """No listener is told anything."""

    def _needed(self) -> list[tuple[Stretch, int]]:
        return list(needed(self.target.stretch, self.target.stop, self.target.begin).items())

    def _begin(self, reader: Reader) -> None:
        """Make the stretch's branch, if the one that it forks is computed."""
        stretch = reader.stretch
        if stretch.parent is None:
            branch = self._prefixes.branch("thread", stretch.context(0, reader.stop))
        elif reader.begin == 0:
            branch = self._pool.cache.root()
        else:
            source = stretch.behind(reader.begin).branch
            if source is None or source.length < reader.begin:
                return
            branch = self._pool.cache.fork(source, self._pool.cache.forkable(source, reader.begin))
        self._pool.keep(stretch, branch)

    def _let_go(self, reader: Reader, kept: bool) -> None:
        reader.stretch.needed -= 1
        if reader.stretch.reader is reader:
            reader.stretch.reader = None
            if not kept:
                self._pool.drop(reader.stretch)
            elif reader.stretch.branch is not None:
                self._pool.cache.park(reader.stretch.branch)
