"""A fork-join episode inside llama.cpp: our episode core drives it, an agent is a sequence, a fork a sequence copy.

Joins are exact: llama.cpp has no way to splice a worker's K and V into another sequence at other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.records import Episode
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Wish
from engines.llama_cpp_wheel import BATCH, LlamaCppWheel

Logits = NDArray[np.float32]  # [V]
#: (the core, the number of the agent, its logits) -> its next token and that one's log-probability.
Draw = Callable[[EpisodeCore, int, Logits], tuple[int, float]]


class LlamaCppEpisode:
    """Runs one episode at a time, all agents in one ``llama_decode`` a step.

    ``engine`` must have a sequence for every agent of the episode.
    """

    def __init__(self, engine: LlamaCppWheel) -> None:
        self.engine = engine
        self.steps = 0
        self.lengths: dict[int, int] = {}  # computed tokens of an agent
        self.pending: dict[int, list[int]] = {}  # tokens that are not computed yet
        self.forks: list[Fork] = []  # that wait for their parents' tokens

    def run(self, core: EpisodeCore, draw: Draw) -> Episode:
        """The record of an episode."""
        self.engine.c.llama_memory_seq_rm(self.engine.memory, -1, -1, -1)
        self.steps, self.lengths, self.pending, self.forks = 0, {}, {}, []
        self._carry_out(core.start())
        while not core.done:
            found = self._step()
            self.steps += 1
            for agent, logits in found.items():
                if core.speakers[agent].draws and not core.done:
                    self._carry_out(core.accept(agent, *draw(core, agent, logits)))
            self._carry_out(core.tick())
        return core.episode

    def _carry_out(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            match wish:
                case Begin(agent, tokens, _):
                    self.lengths[agent], self.pending[agent] = 0, list(tokens)
                case Fork(agent):
                    self.forks.append(wish)
                    self.pending[agent] = []
                case Feed(agent, tokens):
                    self.pending[agent] += tokens
                case Release(agent):
                    self.engine.c.llama_memory_seq_rm(self.engine.memory, agent, -1, -1)
                    self.pending.pop(agent, None)  # all are released at the end, again
                case _:
                    raise ValueError(f"wish: expected exact joins and no tools, got {wish}")
        self._fork()

    def _fork(self) -> None:
        """Copy sequences whose parents are long enough by now."""
        for fork in [fork for fork in self.forks if self.lengths[fork.parent] >= fork.length]:
            self.engine.c.llama_memory_seq_cp(self.engine.memory, fork.parent, fork.agent, 0, fork.length)
            self.lengths[fork.agent] = fork.length
            self.forks.remove(fork)

    def _step(self) -> dict[int, Logits]:
        """Compute all that can be; the logits behind the last token of each agent that had some."""
        rows = list[tuple[int, int, int, bool]]()
        for agent, tokens in self.pending.items():
            if agent in self.lengths and tokens:
                at, last = self.lengths[agent], len(tokens) - 1
                rows += [(token, at + k, agent, k == last) for k, token in enumerate(tokens)]
                self.lengths[agent], self.pending[agent] = at + len(tokens), []
        if not rows:
            raise RuntimeError("step: expected tokens to compute, got none")
        found = dict[int, Logits]()
        for begin in range(0, len(rows), BATCH):
            part = rows[begin : begin + BATCH]
            self.engine.decode(part)
            found |= {agent: self.engine.logits(k).numpy().copy() for k, (*_, agent, last) in enumerate(part) if last}
        self._fork()
        return found


def forced(tokens: dict[str, list[int]], kept: dict[tuple[int, int], Tensor] | None = None) -> Draw:
    """Draws as a sampler does, at temperature 1, and takes the next token of the role's script instead.

    ``kept`` gets the logits, by agent and by the tokens that it has drawn.
    """

    random = np.random.default_rng(0)

    def draw(core: EpisodeCore, agent: int, logits: Logits) -> tuple[int, float]:
        trace = core.speakers[agent].trace
        if kept is not None:
            kept[agent, trace.decoded] = torch.from_numpy(logits)
        # By numpy: torch's threads would spin for a while behind each of its ops, on llama.cpp's cores.
        below = np.cumsum(np.exp(logits - logits.max()))
        drawn = int(np.searchsorted(below, random.random() * below[-1]))
        return tokens[trace.role][trace.decoded], float(logits[drawn] - logits.max() - np.log(below[-1]))

    return draw
