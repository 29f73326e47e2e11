"""One episode on the tree cache: its wishes become branches, forks, joins and queues of tokens to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from asyncthink.engine.agent import Agent
from asyncthink.episode.contexts import contexts
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Splice, Wish

if TYPE_CHECKING:
    from asyncthink_kernels.cache import Branch, TreeCache


class Heads(Protocol):
    """Where a prompt's first tokens may be in the cache already."""

    def branch(self, name: str, tokens: Sequence[int]) -> Branch:
        """A new branch that holds the first tokens of a prompt from template ``name``, as many as are cached."""
        ...


class EpisodeRun:
    """An :class:`EpisodeCore` with its branches. :meth:`release` gives every page back, whatever happened before.

    Args:
        core: the state machine that is told what was drawn.
        cache: where branches live.
        heads: prompt heads in that cache.
        bytes_per_token: of K and V, in all layers.
    """

    def __init__(self, core: EpisodeCore, cache: TreeCache, heads: Heads, bytes_per_token: int) -> None:
        self.core = core
        self.agents: list[Agent] = []  # by their numbers; one that holds nothing has no branch and an empty queue
        self._cache, self._heads, self._bytes_per_token = cache, heads, bytes_per_token
        # Whose shared prefix and whose linked return are in kv_bytes_shared: a pause counts nothing twice.
        self._forked: set[int] = set()
        self._linked: set[int] = set()

    @property
    def done(self) -> bool:
        return self.core.done

    @property
    def pages_to_start(self) -> int:
        """Pages that a fresh or paused episode takes at once, and one more for each agent to draw into."""
        lengths = [len(s.trace.tokens) for s in self.core.speakers if not s.done] or [len(self.core.prompt)]
        return sum(-(-length // self._cache.page_size) + 1 for length in lengths)

    def start(self) -> None:
        """Admission: the first agents begin, or all go on where they were paused."""
        self.carry_out(contexts(self.core) if self.core.speakers else self.core.start())

    def release(self) -> None:
        """Give all pages back. What was drawn stays: :meth:`start` computes it again, in chunks, and goes on."""
        for agent in self.agents:
            self._let_go(agent)
        self.agents.clear()

    def carry_out(self, wishes: Sequence[Wish]) -> None:
        """Do what the core asks for, in its order. Forks and queues are set at once; computing is left to the steps."""
        for wish in wishes:
            match wish:
                case Begin(number, tokens, name):
                    agent = self._agent(number)
                    agent.held = self._heads.branch(name, tokens)
                    agent.put(tokens[agent.held.length :])
                    self._count_shared(agent)
                case Fork(number, parent, length):
                    self._fork(self._agent(number), self.agents[parent], length)
                case Feed(number, tokens):
                    self.agents[number].put(tokens)
                case Splice(number):
                    self.agents[number].put(wish)
                case Release(number):
                    if number < len(self.agents):
                        self._let_go(self.agents[number])

    def settle(self) -> None:
        """Before a step: agents whose source holds the tokens they share by now fork from it."""
        for agent in self.agents:
            if agent.source is not None and agent.held is None:
                source, length = agent.source
                if source.held is not None and source.held.length >= length:
                    agent.held, agent.source = self._cache.fork(source.held, length), None
                    self._count_shared(agent)

    def ready_splice(self, agent: Agent) -> Splice | None:
        """The splice that stands first in the agent's queue, once the K/V it reads are computed."""
        splice = agent.splice
        if splice is None:
            return None
        held = self.agents[splice.worker].held
        return splice if held is not None and held.length >= splice.stop else None

    def spliced(self, agent: Agent, splice: Splice) -> None:
        """The K/V of a join have entered their new context: the worker's are not needed any more."""
        agent.queue.popleft()
        size = (splice.stop - splice.start) * self._bytes_per_token
        if splice.mode == "append":
            self.core.episode.kv_bytes_copied += size
        elif splice.worker not in self._linked:
            self._linked.add(splice.worker)
            self.core.episode.kv_bytes_shared += size
        self._let_go(self.agents[splice.worker])

    def _fork(self, agent: Agent, parent: Agent, length: int) -> None:
        """Fork now where all but the last token are computed, as when the parent has just drawn it; else wait."""
        cached = 0 if parent.held is None else min(parent.held.length, length)
        if parent.held is None or length - cached > 1:
            agent.source = (parent, length)
            return
        # The agent computes its own copy of that token, and so starts in the very next step.
        agent.held = self._cache.fork(parent.held, cached)
        agent.put(self._context(parent, cached, length))
        self._count_shared(agent)

    def _context(self, agent: Agent, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of an agent's context."""
        speaker = agent.speaker
        own = speaker.trace.tokens[max(start - speaker.offset, 0) : max(stop - speaker.offset, 0)]
        if start >= speaker.offset or speaker.trace.parent is None:
            return own
        parent = self.agents[speaker.trace.parent]
        return [*self._context(parent, start, min(stop, speaker.offset)), *own]

    def _agent(self, number: int) -> Agent:
        """A new place for agent ``number``."""
        while len(self.agents) <= number:  # agents that hold nothing any more keep their numbers
            self.agents.append(Agent(self.core.speakers[len(self.agents)]))
        return self.agents[number]

    def _count_shared(self, agent: Agent) -> None:
        """Add what an agent reads in place to the episode's bytes, once, however often it is paused.

        The head of the agent that opens the episode is not counted: it is every episode's.
        """
        number = agent.speaker.number
        if number and number not in self._forked:
            self._forked.add(number)
            self.core.episode.kv_bytes_shared += agent.branch.length * self._bytes_per_token

    def _let_go(self, agent: Agent) -> None:
        if agent.held is not None:
            self._cache.release(agent.held)
            agent.held = None
        agent.source = None
        agent.queue.clear()
