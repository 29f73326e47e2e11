"""Drives the core of one episode over a transport. No HTTP, no torch, no tokenizer.

Each agent that draws has a request under way. What comes is kept until the core takes it, token by token: a fork starts
another request, a join waits for the worker and asks again behind its return, and a request whose agent draws no more
is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from uuid import uuid4

from asyncthink.engine.remote.line import Line
from asyncthink.engine.remote.stops import drawn_under, stops
from asyncthink.engine.remote.transport import Ask, Transport
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import JoinMode
from asyncthink.episode.records import Episode
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Wish


class Order(StrEnum):
    """When the core takes tokens that have come."""

    #: One of every agent that draws, together, as the local engine steps: results do not depend on the network's speed.
    STEPS = "steps"
    #: As they come. An agent that lags holds up nobody. Which worker ends first may then decide whether a fork finds a
    #: seat, which agents share the last tokens of the episode, and how far workers come whom nobody joins.
    ARRIVAL = "arrival"


class Driver:
    """One episode on an engine elsewhere.

    A step of the record is one token of each agent that draws ("steps"), or of each whose next token has come.

    Args:
        core: the episode, not started yet; exact joins, and no tools.
        transport: draws tokens.
        order: see :class:`Order`; "steps" needs a transport that streams, as agents would else wait for each other's
            whole texts.
        session: names the episode to the transport; None: a random name.

    Raises:
        ValueError: another join mode (K and V cannot be joined from here); "steps" without streams.

    Example (a transport that has one text for every agent):
        >>> from asyncthink.engine.remote.transport import Chunk
        >>> from asyncthink.engine.prompting import texts_for
        >>> from asyncthink.episode.options import Options
        >>> from asyncthink.episode.params import SamplingParams
        >>> from asyncthink.protocol.codec import Codec
        >>> from asyncthink.protocol.prompts import DEFAULT_PROMPTS
        >>> from asyncthink.train.tokenizer import build_tokenizer
        >>> codec = Codec(build_tokenizer())
        >>> class Says:
        ...     streams = True
        ...     async def draw(self, ask):
        ...         for token in codec.encode([("<ANSWER>7</ANSWER>", True)]):
        ...             yield Chunk([token], [-1.0])
        >>> core = EpisodeCore("3 + 4", codec.encode([("3 + 4 = ", True)]), SamplingParams(), Options(),
        ...                    texts_for(codec, DEFAULT_PROMPTS))
        >>> asyncio.run(Driver(core, Says()).run()).answer
        '7'
    """

    def __init__(
        self, core: EpisodeCore, transport: Transport, *, order: str = Order.STEPS, session: str | None = None
    ) -> None:
        self.core, self.transport, self.order = core, transport, Order(order)
        self.session = session if session is not None else uuid4().hex
        if core.options.join != JoinMode.EXACT:
            join = str(core.options.join)
            raise ValueError(f"join: expected 'exact' on a remote engine, whose K and V nobody can join, got {join!r}")
        if self.order == Order.STEPS and not transport.streams:
            raise ValueError("order: expected 'arrival' for a transport that does not stream, got 'steps'")
        self._contexts: dict[int, list[int]] = {}
        self._fed: Counter[int] = Counter()  # tokens of a context since its agent's last draw
        self._lines: dict[int, Line] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def run(self) -> Episode:
        """Run the episode to its end. However it ends, no request is left under way.

        Raises:
            Exception: what the transport raised; the episode has ended as "failed" then.
            asyncio.CancelledError: the episode has ended as "cancelled".
        """
        try:
            self._carry_out(self.core.start())
            while not self.core.done:
                self._ask()
                if ready := await self._ready():
                    self._step(ready)
                self._carry_out(self.core.tick())
        except asyncio.CancelledError:
            self.core.end("cancelled")
            raise
        except Exception as error:
            self.core.crash(error)
            raise
        finally:
            for number in list(self._lines):
                self._close(number)
            await asyncio.gather(*self._closing, return_exceptions=True)
        return self.core.episode

    # -- requests -------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """A request for each agent that draws; none for others, and none that the agent's context has left behind."""
        for speaker in self.core.speakers:
            number = speaker.number
            if speaker.draws:
                rule = self.core.rule(number)
                line = self._lines.get(number)
                if line is not None and not line.fits(len(self._contexts[number]), rule):
                    self._close(number)
                if number not in self._lines:
                    self._lines[number] = Line(self.transport, self._request(speaker), self._news)
            elif number in self._lines:
                self._close(number)

    def _request(self, speaker: Speaker) -> Ask:
        core, context = self.core, self._contexts[speaker.number]
        left = [core.params.max_tokens - speaker.trace.decoded]
        if core.params.max_episode_tokens is not None:
            left.append(core.params.max_episode_tokens - core.episode.total_tokens)
        if core.max_length is not None:
            left.append(core.max_length - len(context))
        if speaker.rule is not None and (most := drawn_under(speaker.rule)) is not None:
            left.append(most)
        return Ask(
            tuple(context),
            max(1, min(left)),
            core.params,
            stops(speaker, tuple(core.params.stop), pool=core.options.pool, streams=self.transport.streams),
            speaker.number,
            speaker.trace.decoded,
            self.session,
            rule=speaker.rule,
            tail=speaker.parser.tail,
        )

    def _close(self, number: int) -> None:
        """Cancel an agent's request, if it is still under way, and forget what came of it."""
        task = self._lines.pop(number).cancel()
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _ready(self) -> list[int]:
        """The agents that draw in the next step. Waits for their tokens, but no longer than the episode may take."""
        while True:
            self._news.clear()
            waiting: list[int] = []
            ready: list[int] = []
            for number, line in list(self._lines.items()):
                if line.drawn:
                    ready.append(number)
                elif line.over:
                    self._again(number, line)
                    waiting.append(number)
                else:
                    waiting.append(number)
            if ready and (self.order == Order.ARRIVAL or not waiting):  # in a step of ours, prefills come last
                return sorted(ready, key=lambda number: (self._fed[number] > 1, number))
            if not await self._wait():
                return []

    def _again(self, number: int, line: Line) -> None:
        """The request has ended, and its agent goes on: ask behind it."""
        if line.error is not None:
            raise line.error
        if not line.taken:
            raise RuntimeError(f"transport: expected at least one token for {len(line.ask.prompt)}, got none")
        self._lines[number] = Line(self.transport, self._request(self.core.speakers[number]), self._news)

    async def _wait(self) -> bool:
        """Wait for news; False if the episode's time is over."""
        core = self.core
        left = None if core.params.timeout is None else max(core.params.timeout - core.record.now(), 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._news.wait()
                return True
        return False

    # -- one step -------------------------------------------------------------------------------------------------

    def _step(self, agents: Sequence[int]) -> None:
        for number in agents:
            if self.core.done:
                return
            token, logprob = self._lines[number].take()
            self._fed[number] = 0
            self._carry_out(self.core.accept(number, token, logprob))

    def _carry_out(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            match wish:
                case Begin(number, tokens):
                    self._contexts[number] = list(tokens)
                    self._fed[number] = len(tokens)
                case Fork(number, parent, length):
                    self._contexts[number] = self._contexts[parent][:length]
                    self._fed[number] = 1  # its last token
                case Feed(number, tokens):
                    self._contexts[number].extend(tokens)
                    self._fed[number] += len(tokens)
                case Release(number):
                    self._contexts.pop(number, None)
                case _:
                    raise TypeError(f"expected a wish that a remote engine can carry out, got {wish}")
