"""Which agents step now: admission, the row budget of a step, who makes room when pages run out. It only chooses."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from asyncthink.engine.agent import Agent
from asyncthink.engine.run import EpisodeRun

if TYPE_CHECKING:
    from asyncthink_kernels.cache import TreeCache

Work = list[tuple[EpisodeRun, Agent, int]]


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

    def admit(self) -> list[EpisodeRun]:
        """Those of the waiting episodes that run from now on: as many as find room for their prompts and a page for
        each agent."""
        admitted: list[EpisodeRun] = []
        free = self._cache.free_pages
        while self.waiting and len(self.running) < self.max_episodes and not (self._full and self.running):
            run = self.waiting[0]
            if self.running and free < run.pages_to_start + sum(max(len(r.agents), 1) for r in self.running):
                break
            admitted.append(self.waiting.popleft())
            self.running.append(run)
        return admitted

    def select(self) -> Work | None:
        """The next step's work: (episode, agent, new tokens). None where the cache lacks the pages for it."""
        work = self._fill()
        free, size = self._cache.free_pages, self._cache.page_size
        # No branch takes more than the pages its new tokens would fill alone: mostly there is no need to count.
        if sum(-(-n // size) for _, _, n in work) <= free:
            return work
        enough = self._cache.pages_needed([(agent.branch, n) for _, agent, n in work]) <= free
        return work if enough else None

    def victim(self) -> EpisodeRun | None:
        """The newest episode, which goes back to the head of the queue; None if it is the only one."""
        if len(self.running) == 1:
            return None
        self.waiting.appendleft(self.running.pop())
        self.preemptions += 1
        self._full = True
        return self.waiting[0]

    def retire(self) -> None:
        """Forget episodes that are done."""
        left = [run for run in self.running if not run.done]
        if len(left) < len(self.running):
            self._full = False
        self.running = left

    def forget(self, run: EpisodeRun) -> None:
        """Forget an episode that is done, wherever it is."""
        if run in self.waiting:
            self.waiting.remove(run)
        self.retire()

    def _fill(self) -> Work:
        ready = [(run, agent, agent.ready) for run in self.running for agent in run.agents]
        work = [one for one in ready if one[2] == 1]
        # Decoding agents are never cut off; prefills share what is left, and one of them always advances.
        room = max(self.max_rows - len(work), 1)
        for run, agent, tokens in ready:
            if tokens > 1 and room:
                work.append((run, agent, min(tokens, room)))
                room -= work[-1][2]
        return work
