"""One episode on the tree cache: carries out its wishes as branches, forks, joins and queues of tokens to compute."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from asyncthink.engine.agent import Agent, Opening
from asyncthink.engine.jobs import Participant
from asyncthink.engine.tools import Pending, Toolbox
from asyncthink.episode.contexts import contexts
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import JoinMode
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.wishes import Begin, Call, Feed, Fork, Release, Splice, Wish

if TYPE_CHECKING:
    from torch import Tensor

    from asyncthink.model.contract import BranchCache


class Prefixes(Protocol):
    """Begins and ends contexts with what of their tokens is cached."""

    prompt_tokens: int
    prefix_tokens: int

    def begin(self, agent: Agent) -> int | None:
        """Give an agent's opening a branch; returns the tokens found computed, None if it has to wait."""
        ...

    def end(self, agent: Agent) -> None:
        """Take the branch of an agent from it."""
        ...


class EpisodeRun:
    """An :class:`EpisodeCore` with its branches. :meth:`release` returns every page, in any state.

    Args:
        core: the state machine of the episode.
        cache: has the branches.
        prefixes: heads of contexts in that cache.
        bytes_per_token: of K and V that a fork reads in place, in all layers; 0 where forks copy.
        toolbox: carries out calls of tools.
        first: added to the number of an agent and to its count of draws, where random numbers depend on them.
    """

    def __init__(
        self,
        core: EpisodeCore,
        cache: BranchCache,
        prefixes: Prefixes,
        bytes_per_token: int,
        toolbox: Toolbox | None = None,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.core, self._first = core, first
        self.agents: list[Agent] = []  # by their numbers; a released agent has no branch and an empty queue
        self._cache, self._prefixes, self._bytes_per_token = cache, prefixes, bytes_per_token
        self.calls: dict[int, Pending] = {}  # by the agent that waits; a pause keeps them
        self._toolbox = toolbox
        # Agents that are counted (their prompts; their shared prefix or linked return in kv_bytes_shared): a pause must
        # not count them twice.
        self._begun: set[int] = set()
        self._forked: set[int] = set()
        self._linked: set[int] = set()

    @property
    def done(self) -> bool:
        return self.core.done

    @property
    def params(self) -> SamplingParams:
        return self.core.params

    @property
    def pages_to_start(self) -> int:
        """Pages that a new or paused episode needs for its contexts, and one more for each agent's next tokens."""
        lengths = [len(s.trace.tokens) for s in self.core.speakers if not s.done] or [len(self.core.prompt)]
        return sum(-(-length // self._cache.page_size) + 1 for length in lengths)

    def start(self) -> None:
        """Begin the episode, or continue it after a pause."""
        self.carry_out(_merged(contexts(self.core)) if self.core.speakers else self.core.start())

    def release(self) -> None:
        """Return all pages, but for heads that are kept. :meth:`start` computes again, in chunks, what is gone then."""
        for agent in self.agents:
            self._release(agent)
        self.agents.clear()

    def carry_out(self, wishes: Sequence[Wish]) -> None:
        """Carry out the core's wishes in their order. Tokens are queued here, and computed by the next steps."""
        for wish in wishes:
            match wish:
                case Begin(number, tokens, name):
                    agent = self._agent(number)
                    agent.opening = Opening(name, tuple(tokens))
                    self._begin(agent)
                case Fork(number, parent, length):
                    self._fork(self._agent(number), self.agents[parent], length)
                case Feed(number, tokens):
                    self.agents[number].put(tokens)
                case Splice(number):
                    self.agents[number].put(wish)
                case Call(number, name, arguments):
                    assert self._toolbox is not None
                    self.calls[number] = self._toolbox.start(name, arguments)
                case Release(number):
                    if number < len(self.agents):
                        self._release(self.agents[number])

    def fork_ready(self) -> None:
        """Fork the agents that waited for their source to hold the tokens that they share.

        An agent with an opening waits for another episode's, which may have ended: it looks for those tokens again.
        """
        for agent in self.agents:
            if agent.source is None or agent.held is not None:
                continue
            source, length = agent.source
            if agent.opening is not None:
                if source.held is None or source.computed >= length:
                    self._begin(agent)
            elif source.held is not None and source.held.length >= length:
                cached = self._cache.forkable(source.held, length)
                agent.held, agent.source = self._cache.fork(source.held, cached), None
                agent.put_first(self._context(source, cached, length))
                self._count_shared(agent)

    def accept(self, agent: Participant, drawn: tuple[int, float] | None) -> None:
        """Pass a drawn token to the core; None: the logits hold NaN or no finite value."""
        number = self._own(agent).speaker.number
        if drawn is None:
            self.carry_out(self.core.fail(number, "its logits hold NaN or no finite value"))
        else:
            self.carry_out(self.core.accept(number, *drawn))

    def score(self, agent: Participant, logits: Tensor) -> None:
        raise NotImplementedError("no agent's own tokens are scored")

    def told(self, number: int, text: str) -> None:
        """A tool has replied to an agent."""
        self.carry_out(self.core.told(number, text))

    def tick(self) -> None:
        """End the step."""
        self.carry_out(self.core.tick() or ())

    def crash(self, error: Exception) -> None:
        """End as "failed", with a warning."""
        message = f"an episode failed and was ended: {type(error).__name__}: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        self.core.crash(error)

    def end(self, reason: str) -> None:
        self.core.end(reason)

    def mute(self) -> None:
        self.core.record.mute()

    def ready_splice(self, agent: Participant) -> Splice | None:
        """The splice at the front of the agent's queue, if the K/V that it reads are computed."""
        splice = self._own(agent).splice
        if splice is None:
            return None
        held = self.agents[splice.worker].held
        return splice if held is not None and held.length >= splice.stop else None

    def spliced(self, agent: Participant, splice: Splice) -> None:
        """The K/V of a join have entered their new context: release the worker's."""
        self._own(agent).queue.popleft()
        size = (splice.stop - splice.start) * self._bytes_per_token
        if splice.mode == JoinMode.APPEND:
            self.core.episode.kv_bytes_copied += size
        elif splice.worker not in self._linked:
            self._linked.add(splice.worker)
            self.core.episode.kv_bytes_shared += size
        self._release(self.agents[splice.worker])

    def _begin(self, agent: Agent) -> None:
        """Begin an agent's own context with what is computed of it, or wait for the agent that computes it now."""
        assert agent.opening is not None
        found, number = self._prefixes.begin(agent), agent.speaker.number
        if found is None:
            return
        if number not in self._begun:
            self._begun.add(number)
            self._prefixes.prompt_tokens += len(agent.opening.tokens)
            self._prefixes.prefix_tokens += found
            if number == 0:
                self.core.episode.prefix_tokens = found
        self._count_shared(agent)

    def _fork(self, agent: Agent, parent: Agent, length: int) -> None:
        """Fork now if all tokens but the last are computed, as when the parent has just drawn it; else wait."""
        cached = 0 if parent.held is None else min(parent.held.length, length)
        if parent.held is None or length - cached > 1:
            agent.source = (parent, length)
            parent.marks.add(length)
            return
        # The agent computes that token itself, so that it starts in the next step.
        cached = self._cache.forkable(parent.held, cached)
        agent.held = self._cache.fork(parent.held, cached)
        agent.put(self._context(parent, cached, length))
        self._count_shared(agent)

    def _context(self, agent: Agent, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of an agent's context."""
        speaker = agent.speaker
        tokens = speaker.trace.tokens[max(start - speaker.offset, 0) : max(stop - speaker.offset, 0)]
        if start >= speaker.offset or speaker.trace.parent is None:
            return tokens
        parent = self.agents[speaker.trace.parent]
        return [*self._context(parent, start, min(stop, speaker.offset)), *tokens]

    def _own(self, agent: Participant) -> Agent:
        assert isinstance(agent, Agent)
        return agent

    def _agent(self, number: int) -> Agent:
        """Agent ``number``, made if it is new."""
        while len(self.agents) <= number:  # after a pause, released agents keep their numbers
            self.agents.append(Agent(self.core.speakers[len(self.agents)], self._first))
        return self.agents[number]

    def _count_shared(self, agent: Agent) -> None:
        """Add the K/V that an agent shares to the episode's bytes, once, even after a pause.

        The cached head of the first agent's prompt does not count, because all episodes share it.
        """
        number = agent.speaker.number
        if number and number not in self._forked:
            self._forked.add(number)
            self.core.episode.kv_bytes_shared += agent.branch.length * self._bytes_per_token

    def _release(self, agent: Agent) -> None:
        if agent.held is not None:
            self._prefixes.end(agent)
        agent.source = agent.opening = None
        agent.queue.clear()


def _merged(wishes: Sequence[Wish]) -> list[Wish]:
    """The wishes with the tokens that follow at once upon the beginning of a context as a part of that beginning."""
    merged: list[Wish] = []
    for wish in wishes:
        before = merged[-1] if merged else None
        if isinstance(wish, Feed) and isinstance(before, Begin) and wish.agent == before.agent:
            merged[-1] = Begin(before.agent, [*before.tokens, *wish.tokens], before.prompt)
        else:
            merged.append(wish)
    return merged
