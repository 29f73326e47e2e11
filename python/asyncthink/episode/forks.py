"""What the tags FORK and JOIN do: a worker begins, and its return enters the context of the agent that forked it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from asyncthink.episode.endings import Endings
from asyncthink.episode.guides import Legal
from asyncthink.episode.joins import enter
from asyncthink.episode.options import Context, Guide, Options
from asyncthink.episode.recorder import Recorder
from asyncthink.episode.records import Trace
from asyncthink.episode.speaker import Speaker, Texts
from asyncthink.episode.wishes import Begin, Feed, Fork, Wish
from asyncthink.protocol.prompts import worker_template
from asyncthink.protocol.tags import POOL_OVERFLOW
from asyncthink.protocol.tags import Fork as ForkTag


class Running(Protocol):
    """The running episode, as forks and joins see it."""

    options: Options
    texts: Texts
    record: Recorder
    endings: Endings
    guide: Legal | None
    workers: dict[tuple[int, int], Speaker]

    @property
    def speakers(self) -> Sequence[Speaker]: ...

    def free_seats(self) -> int: ...

    def add(self, trace: Trace, offset: int) -> Speaker: ...

    def insert(self, speaker: Speaker, tokens: Sequence[int]) -> None: ...

    def lead(self, speaker: Speaker) -> None: ...

    def wish(self, *wishes: Wish) -> None: ...


class Forks:
    """The forks and joins of one episode."""

    def __init__(self, core: Running) -> None:
        self._core = core

    def fork(self, parent: Speaker, action: ForkTag) -> None:
        """A worker begins, unless the pool is full."""
        core = self._core
        if (seats := core.free_seats()) <= 0:
            live = core.options.pool - 1 - seats
            detail = f"<FORK-{action.index}> with {live} live workers, pool {core.options.pool}"
            core.endings.fail(parent, parent.parser.fail(POOL_OVERFLOW, detail))
            return
        number, shared = len(core.speakers), core.options.context == Context.SHARED
        trace = Trace(number, "worker", parent.number, action.index, len(parent.trace.tokens))
        worker = core.add(trace, parent.length if shared else 0)
        name = worker_template(str(core.options.context), worker.parser.may_fork)
        planned = core.options.guide == Guide.PLAN  # a line of its own, with the newline that ended it
        tokens = core.texts.prompt(name, action.subquery.strip() if planned else action.subquery)
        worker.prompt(tokens, core.record.step)
        if shared:
            core.wish(Fork(number, parent.number, parent.length), Feed(number, tokens))
        else:
            core.wish(Begin(number, tokens, name))
        core.workers[parent.number, action.index] = worker
        core.record.event("fork", parent, action.index, number, action.subquery)
        if core.guide is not None:
            core.lead(worker) if core.guide.fits(worker) else core.endings.give_up(worker, "length")
        elif core.endings.full(worker.length):
            core.endings.run_out(worker)

    def join(self, speaker: Speaker) -> None:
        """The worker that ``speaker`` waits for is done: insert its return and the closing tag."""
        core = self._core
        worker, speaker.waiting_for = speaker.waiting_for, None
        assert worker is not None
        assert worker.trace.fork_index is not None
        index, trace = worker.trace.fork_index, worker.trace
        insert = core.texts.insert(index, worker.stream, trace.tokens, worker.returned)
        if core.guide is not None:
            insert = core.guide.fit(speaker, insert)
        elif core.endings.full(speaker.length + insert.length + len(insert.closing)):
            core.endings.run_out(speaker)
            return
        join, wishes = enter(speaker, worker, insert, str(core.options.join))
        core.record.event("join", speaker, index, worker.number, trace.returned or "")
        core.insert(speaker, insert.tokens(trace.tokens))
        core.wish(*wishes)
        speaker.trace.joins.append(join)
