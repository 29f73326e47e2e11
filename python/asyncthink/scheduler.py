"""Which agents step now: admission, the row budget of a step, and what happens when pages run out."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from asyncthink.agent import Agent
from asyncthink.run import EpisodeRun

if TYPE_CHECKING:
    from asyncthink_kernels.cache import TreeCache

Work = list[tuple[Agent, int]]


class Scheduler:
    """Continuous batching over episodes, first come first served.

    Every runnable agent advances in every step: by one token when it decodes, by a chunk of its queue when it
    prefills, within ``max_rows`` rows a step (decoding agents come first). When the pages a step needs are not there,
    the newest episode gives its pages back and goes on later: what its agents drew stays, their K/V are computed again.
    An episode that is alone and still does not fit ends as "out_of_pages".

    Args:
        cache: where pages are counted.
        max_rows: new tokens in one step.
        max_episodes: episodes that run at once.

    Raises:
        ValueError: a bound below 1.
    """

    def __init__(self, cache: TreeCache, *, max_rows: int = 1024, max_episodes: int = 64) -> None:
        if max_rows < 1 or max_episodes < 1:
            raise ValueError(f"max_rows, max_episodes: expected at least 1, got {max_rows}, {max_episodes}")
        self._cache = cache
        self.max_rows = max_rows
        self.max_episodes = max_episodes
        self.waiting: deque[EpisodeRun] = deque()
        self.running: list[EpisodeRun] = []
        self.preemptions = 0
        # After a preemption, nobody is admitted until somebody has finished and given pages back.
        self._full = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def admit(self) -> None:
        """Start waiting episodes while there is room for at least their prompt and a page for each agent."""
        while self.waiting and len(self.running) < self.max_episodes and not (self._full and self.running):
            run = self.waiting[0]
            if self.running and self._cache.free_pages < run.pages_to_start + sum(len(r.agents) for r in self.running):
                return
            self.waiting.popleft()
            self.running.append(run)
            run.start()

    def select(self) -> Work:
        """The next step's work: (agent, new tokens), for which the cache has pages."""
        while True:
            work = self._fill()
            free, size = self._cache.free_pages, self._cache.page_size
            # No branch takes more than the pages its new tokens would fill alone: mostly there is no need to count.
            if sum(-(-n // size) for _, n in work) <= free:
                return work
            if self._cache.pages_needed([(agent.place, n) for agent, n in work]) <= free:
                return work
            self.make_room()

    def make_room(self) -> None:
        """Pages ran out: put the newest episode back into the queue, or end the only one there is."""
        victim = self.running[-1]
        if len(self.running) == 1:
            victim.finish("out_of_pages")
            self.retire()
            return
        self.running.pop()
        victim.pause()
        self.waiting.appendleft(victim)
        self.preemptions += 1
        self._full = True

    def retire(self) -> None:
        """Forget episodes that are done."""
        left = [run for run in self.running if not run.done]
        if len(left) < len(self.running):
            self._full = False
        self.running = left

    def drop(self, run: EpisodeRun, reason: str) -> None:
        """End an episode now, wherever it is."""
        run.finish(reason)
        if run in self.waiting:
            self.waiting.remove(run)
        self.retire()

    def _fill(self) -> Work:
        ready = [(agent, agent.ready) for run in self.running for agent in run.agents]
        work = [one for one in ready if one[1] == 1]
        # Decoding agents are never cut off; prefills share what is left, and one of them always advances.
        room = max(self.max_rows - len(work), 1)
        for agent, tokens in ready:
            if tokens > 1 and room:
                work.append((agent, min(tokens, room)))
                room -= work[-1][1]
        return work
