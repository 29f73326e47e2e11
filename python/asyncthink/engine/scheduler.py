"""Chooses which episodes are admitted, which agents step, and which episode is paused when pages run out.

It only chooses: it neither starts, nor pauses, nor ends an episode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncthink.engine.jobs import Job, Participant

if TYPE_CHECKING:
    from asyncthink.model.contract import BranchCache

Work = list[tuple[Job, Participant, int]]


class Scheduler:
    """Continuous batching over episodes, first come first served.

    Every runnable agent advances in every step: by one token when it decodes, by a chunk of its queue when it
    prefills, within ``max_rows`` rows a step (decoding agents come first). If a step lacks pages, the newest episode is
    paused: it releases its pages and continues later. Its agents keep their tokens; the K/V are computed again. An
    episode that runs alone and still does not fit ends as "out_of_pages".

    Args:
        cache: has the pages.
        evictable: how many more pages giving up kept heads would free; asked where the free ones do not suffice.
        max_rows: the most new tokens in one step.
        max_episodes: the most episodes that run at once.

    Raises:
        ValueError: a bound below 1.
    """

    def __init__(
        self, cache: BranchCache, evictable: Callable[[], int], *, max_rows: int = 1024, max_episodes: int = 64
    ) -> None:
        if max_rows < 1 or max_episodes < 1:
            raise ValueError(f"max_rows, max_episodes: expected at least 1, got {max_rows}, {max_episodes}")
        self._cache, self._evictable = cache, evictable
        self.max_rows = max_rows
        self.max_episodes = max_episodes
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0
        self.lacks_states = False  # whether the last step without room lacked recurrent states; heads hold none
        # After a preemption, no episode is admitted until another one has ended and released its pages.
        self._full = False

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def admit(self) -> list[Job]:
        """Admit waiting episodes while their prompts, and a page for each agent, fit; return the admitted ones.

        Pages of heads that can be evicted count as free.
        """
        admitted: list[Job] = []
        free, counted = self._cache.free_pages, False
        while self.waiting and len(self.running) < self.max_episodes and not (self._full and self.running):
            run = self.waiting[0]
            needed = run.pages_to_start + sum(max(len(r.agents), 1) for r in self.running)
            if self.running and free < needed and not counted:
                free, counted = free + self._evictable(), True
            agents = sum(max(len(r.agents), 1) for r in self.running) + 1
            if self.running and (free < needed or self._cache.free_states < agents):
                break
            admitted.append(self.waiting.popleft())
            self.running.append(run)
        return admitted

    def select(self) -> Work | None:
        """The next step's work: (episode, agent, new tokens). None if the cache lacks the pages, or states, for it."""
        work = self._fill()
        steps = [(agent.branch, n) for _, agent, n in work]
        if self._cache.fits(steps):
            return work
        self.lacks_states = not self._cache.states_fit(steps)
        return None

    def victim(self) -> Job | None:
        """Move the newest episode to the front of the waiting ones and return it; None if it is the only one."""
        if len(self.running) == 1:
            return None
        self.waiting.appendleft(self.running.pop())
        self.preemptions += 1
        self._full = True
        return self.waiting[0]

    def withdraw(self) -> list[Job]:
        """Move all running episodes, in their order, to the front of the waiting ones and return them."""
        paused, self.running = self.running, []
        self.waiting.extendleft(reversed(paused))
        return paused

    def retire(self) -> None:
        """Remove the running episodes that are done."""
        left = [run for run in self.running if not run.done]
        if len(left) < len(self.running):
            self._full = False
        self.running = left

    def forget(self, run: Job) -> None:
        """Remove an episode that is done, whether it was waiting or running."""
        if run in self.waiting:
            self.waiting.remove(run)
        self.retire()

    def _ready(self, agent: Participant) -> int:
        """The tokens that the next step can compute, up to where a snapshot of a recurrent state is wanted."""
        tokens = agent.ready
        return self._cache.room_before_mark(agent.branch, tokens, agent.marks) if tokens > 1 else tokens

    def _fill(self) -> Work:
        ready = [(run, agent, self._ready(agent)) for run in self.running for agent in run.agents]
        work = [(run, agent, tokens) for run, agent, tokens in ready if tokens == 1]
        # All decoding agents step. Prefills share the rest of the rows, and at least one of them advances.
        room = max(self.max_rows - len(work), 1)
        for run, agent, tokens in ready:
            if tokens > 1 and room:
                work.append((run, agent, min(tokens, room)))
                room -= work[-1][2]
        return work
