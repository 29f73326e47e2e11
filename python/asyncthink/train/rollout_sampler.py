"""The sampler that draws the rollouts of a GRPO run: on the trained weights themselves, or on copies elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.episode.source import EpisodeSource
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import Loaded


class RolloutSampler(EpisodeSource, Protocol):
    """What the trainer needs of a sampler."""

    def refresh(self) -> None:
        """The weights have changed: later episodes are drawn with the new ones."""


#: Makes the sampler of a run from the trained model and the run's options.
OpenSampler = Callable[[Loaded, GRPOConfig], RolloutSampler]


def local_sampler(loaded: Loaded, config: GRPOConfig) -> ForkJoinSampler:
    """A sampler in this process that shares the trained weights."""
    return ForkJoinSampler(
        loaded.model,
        loaded.tokenizer,
        prompts=loaded.prompts,
        max_episodes=max(64, (config.drawn or config.questions) * config.group_size),  # all of a step, if they fit
        **cache_options(config),
        **sampler_options(config),
    )


def cache_options(config: GRPOConfig) -> dict[str, Any]:
    """What the rollouts of a run are decoded with."""
    pages = -(-config.cache_tokens // 16)
    return {"num_pages": pages, "num_states": config.num_states, "fallback": config.fallback}


def sampler_options(config: GRPOConfig) -> dict[str, Any]:
    """How the episodes of a run are organized."""
    names = ("mode", "pool", "depth", "context", "join", "guide")
    return {name: getattr(config, name) for name in names}
