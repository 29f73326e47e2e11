"""Rollouts of a GRPO run on Ray actors. The trainer's weights go to all of them after each step."""

from __future__ import annotations

import dataclasses
import functools
import os
from types import TracebackType

from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.integrations.actor_pool import Say
from asyncthink.integrations.ray import RayPool, RaySampler, absolute
from asyncthink.integrations.ray_actor import weights_of
from asyncthink.integrations.ray_cluster import check_resources, connect, gpus_for
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import Loaded, load
from asyncthink.train.rollout_sampler import cache_options, sampler_options

_NAME = "policy"


class RayRollouts:
    """Opens the sampler of a GRPO run on actors: an :data:`asyncthink.train.rollout_sampler.OpenSampler`.

    Every actor loads the initial model, and gets the trainer's weights before the first episode: all of them once,
    after each step those that are trained (with LoRA the adapters alone). A replaced actor gets both again.

    Args:
        actors, cpus, address, say: see :class:`.ray.RayPool`.
        gpus: GPUs of an actor; None: 1 if the model trains on a GPU and the cluster has any, else 0.
        batch: episodes that an actor draws together.

    Raises ImportError without Ray, ValueError for more actors than the cluster has room for, and under torchrun.

    Example:
        >>> with RayRollouts(actors=2) as rollouts:                                          # doctest: +SKIP
        ...     train_grpo(config, rollouts)
    """

    def __init__(
        self,
        actors: int,
        *,
        cpus: int = 1,
        gpus: float | None = None,
        batch: int = 16,
        address: str | None = None,
        say: Say | None = None,
    ) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            raise ValueError(f"ray_actors: expected one training process, got {processes}")
        connect(address)
        check_resources(actors, {"CPU": cpus, "GPU": gpus or 0})
        self.actors, self.cpus, self.gpus, self.batch, self.address, self.say = actors, cpus, gpus, batch, address, say
        self.pool: RayPool | None = None

    def __call__(self, loaded: Loaded, config: GRPOConfig) -> RayRolloutSampler:
        """Start the actors for a run. Raises as :class:`.ray.RayPool` does."""
        gpus = gpus_for(config.model.device, self.gpus, self.address)
        folder = None if config.model.model is None else absolute(config.model.model)
        model = dataclasses.replace(config.model, model=folder, device="cuda" if gpus else "cpu")
        opener = functools.partial(open_policy, dataclasses.replace(config, model=model))
        self.pool = RayPool(opener, self.actors, cpus=self.cpus, gpus=gpus, address=self.address, say=self.say)
        return RayRolloutSampler(self.pool, loaded, config, self.batch)

    def __enter__(self) -> RayRollouts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.close()


class RayRolloutSampler(RaySampler):
    """A sampler on actors that follows the weights of a model in this process."""

    def __init__(self, pool: RayPool, loaded: Loaded, config: GRPOConfig, batch: int) -> None:
        pool.refresh(weights_of(loaded.model))
        super().__init__(pool, _NAME, batch, tuple(sorted(sampler_options(config).items())))
        self._model = loaded.model

    def refresh(self) -> None:
        """Send the weights that are trained to all actors."""
        self.pool.refresh(weights_of(self._model, trainable=True))


def open_policy(config: GRPOConfig) -> dict[str, LoadedModel]:
    """The model that a run trains, before its first step. An :data:`.ray_actor.Opener` with its argument bound."""
    loaded = load(config.model).for_depth(config.depth, [config.context])
    sampler = ForkJoinSampler(loaded.model, loaded.tokenizer, prompts=loaded.prompts, **cache_options(config))
    return {_NAME: LoadedModel(_NAME, sampler.decoder, sampler.tokenizer, sampler.own_prompts)}
