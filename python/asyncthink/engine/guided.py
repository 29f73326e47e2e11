"""Draws within a guide: the logits of a step without the tokens that the agents' rules forbid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asyncthink.engine.agent import Agent
from asyncthink.engine.grammar import Bits
from asyncthink.engine.jobs import Job, Participant
from asyncthink.engine.masks import RuleMasks
from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.sampling import forbid
from asyncthink.protocol.codec import Codec


class GuidedLogits:
    """Applies the rules of running episodes and the masks of threads to the logits of a step.

    The rules' masks are made when the first rule is met.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._masks: dict[int, RuleMasks] = {}  # by V

    def masks(self, vocabulary: int) -> RuleMasks:
        """The masks for logits of this width."""
        if vocabulary not in self._masks:
            self._masks[vocabulary] = RuleMasks(self._codec, vocabulary)
        return self._masks[vocabulary]

    def __call__(self, logits: Tensor, drawing: Sequence[tuple[Job, Participant]]) -> Tensor:
        """logits [N, V] of the agents that draw; tokens that their rules or masks forbid become -inf.

        Other rows stay as they are, and without any rule or mask nothing is computed. A rule that a client sent, and
        that leaves no token, makes all of its row -inf: its agent fails, and nobody else.

        Raises:
            ValueError: a guide's rule that leaves none of the tokenizer's tokens; the error names the agent.
        """
        rows, bits, hopeless = list[int](), list[Bits](), list[int]()
        for row, (run, agent) in enumerate(drawing):
            mask = agent.mask
            if isinstance(run, EpisodeRun) and isinstance(agent, Agent):
                mask = self._of_rule(run, agent, logits.shape[1])
                if mask is not None and not mask.any():
                    hopeless.append(row)
                    continue
            if mask is not None:
                rows.append(row)
                bits.append(mask)
        if rows:
            logits = forbid(logits, torch.from_numpy(np.stack(bits)), rows)
        return logits.index_fill(0, torch.tensor(hopeless, device=logits.device), -torch.inf) if hopeless else logits

    def _of_rule(self, run: EpisodeRun, agent: Agent, vocabulary: int) -> Bits | None:
        """The tokens that an agent's rule permits; None where it has no rule."""
        rule = run.core.rule(agent.speaker.number)
        if rule is None:
            return None
        mask = self.masks(vocabulary).row(rule, agent.speaker.parser.tail)
        if not mask.any() and run.core.guide is not None:
            name, tail = agent.speaker.name, agent.speaker.parser.tail
            raise ValueError(f"{name}: expected a token that its guide allows behind {tail!r}, got none: {rule}")
        return mask
