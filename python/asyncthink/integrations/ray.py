"""Episodes drawn by decoders on Ray actors: one process with a decoder each, on one machine or many.

Questions go out in small batches, and a free actor takes the next one. An actor that dies is replaced, and its batch
is drawn again: seeds make the episodes the same. Batches are cut by the numbers of questions, whoever draws them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.integrations.actor_pool import ActorPool, Say
from asyncthink.integrations.ray_actor import Job, Opener, SamplerOptions, Served, Weights
from asyncthink.integrations.ray_cluster import RayCluster, check_resources, connect, gpus_for
from asyncthink.protocol.messages import Question

if TYPE_CHECKING:
    from asyncthink.engine.loaded import LoadedModel


class RayPool:
    """Actors that hold the same models.

    Args:
        opener: opens the models, by name, in each actor's process (:func:`open_models` for folders and hub ids).
        actors: how many.
        cpus: CPUs that each actor reserves: its number of threads. Results differ by rounding between numbers.
        gpus: GPUs that each actor reserves; 0: the actor sees none.
        address: the cluster to join; None: that of ``RAY_ADDRESS`` or one that runs on this machine, else a new one
            here, which ends with this process.
        attempts, patience, say: see :class:`.actor_pool.ActorPool`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: more actors than the cluster has CPUs or GPUs for. Also whatever ``opener`` raises in an actor.
        RuntimeError: see :class:`.actor_pool.ActorPool`.

    Example:
        >>> from functools import partial
        >>> opener = partial(open_models, ["path/to/model"])
        >>> with RayPool(opener, actors=2) as pool:                                         # doctest: +SKIP
        ...     sampler = pool.sampler("path/to/model", pool=4)
        ...     episodes = sampler.generate(["3 5 7 9 = 24"] * 100)
    """

    def __init__(
        self,
        opener: Opener,
        actors: int,
        *,
        cpus: int = 1,
        gpus: float = 0,
        address: str | None = None,
        attempts: int = 3,
        patience: float = 600.0,
        say: Say | None = None,
    ) -> None:
        if actors < 1 or cpus < 1 or gpus < 0:
            raise ValueError(
                f"ray: expected at least 1 actor, 1 CPU and 0 GPUs each, got actors={actors}, cpus={cpus}, gpus={gpus}"
            )
        connect(address)
        check_resources(actors, {"CPU": cpus, "GPU": gpus})
        self.actors, self.cpus, self.gpus = actors, cpus, gpus
        self.cluster = RayCluster(opener, cpus, gpus)
        self.pool = ActorPool(self.cluster, actors, attempts=attempts, patience=patience, say=say)

    def sampler(self, model: str, *, batch: int = 16, **options: Any) -> RaySampler:
        """A sampler of one of the models; ``options`` as in :meth:`asyncthink.engine.loaded.LoadedModel.sampler`.

        ``batch`` questions are drawn together by one actor. Raises ValueError as that method does.
        """
        return RaySampler(self, model, batch, tuple(sorted(options.items())))

    def refresh(self, weights: Weights) -> int:
        """Give all actors new weights of their one model; returns the version that they now have.

        The weights are put into Ray's store once. An actor that draws with another version raises RuntimeError.
        """
        self.cluster.put(weights)
        version = self.cluster.version
        job = Job("take", (version, self.cluster.weights[-1]), f"its version {version} of the weights")
        taken = self.pool.everywhere(job)
        if set(taken) != {version}:
            raise RuntimeError(f"weights: expected version {version} on every actor, got {taken}")
        return version

    def close(self) -> None:
        """End the actors, not the cluster."""
        self.pool.close()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RaySampler:
    """Draws episodes on a pool's actors (:class:`asyncthink.episode.source.EpisodeSource`)."""

    def __init__(self, pool: RayPool, model: str, batch: int, options: SamplerOptions) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self.pool, self.model, self.batch, self._options = pool, model, batch, options
        self.served: Served
        (self.served,) = pool.pool.run([Job("serve", (model, options), f"the sampler {dict(options)}")])

    @property
    def options(self) -> Options:
        return self.served.options

    def generate(
        self,
        questions: Sequence[Question],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_event: Callable[[int, Event | TokenEvent], None] | None = None,
    ) -> list[Episode]:
        """Answer every question; episodes in the order of the questions.

        ``on_event`` is called with an episode's recorded events, all at once, when its batch has arrived; not with its
        tokens. Raises as :meth:`asyncthink.ForkJoinSampler.generate` does, though other batches may have run by then,
        and RuntimeError if several actors die over one batch.
        """
        from asyncthink.engine.requests import params_for

        sets = params_for(questions, params)
        starts = range(0, len(questions), self.batch)
        version = self.pool.cluster.version
        jobs = []
        for start in starts:
            stop = min(start + self.batch, len(questions))
            arguments = (version, self.model, self._options, list(questions[start:stop]), sets[start:stop])
            jobs.append(Job("generate", arguments, f"questions {start} to {stop - 1}"))

        def done(number: int, episodes: list[Episode]) -> None:
            for episode_number, episode in enumerate(episodes, starts[number]):
                for event in episode.events if on_event is not None else ():
                    on_event(episode_number, event)  # type: ignore[misc]

        return [episode for batch in self.pool.pool.run(jobs, done) for episode in batch]


class RayModel:
    """A model of a pool, with the surface of :class:`asyncthink.engine.loaded.LoadedModel` that evaluation needs."""

    def __init__(self, pool: RayPool, name: str, batch: int) -> None:
        self._pool, self._name, self._batch = pool, name, batch
        self._served: Served
        (self._served,) = pool.pool.run([Job("serve", (name, ()), f"the model {name}")])

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self._served.parameters

    @property
    def machine(self) -> str:
        """Where its actors run."""
        actors = self._pool.actors
        return f"{actors} Ray actor{'s' if actors > 1 else ''}, each on {self._served.machine}"

    def sampler(self, **options: Any) -> RaySampler:
        return self._pool.sampler(self._name, batch=self._batch, **options)


@contextlib.contextmanager
def load_on_actors(
    paths: Collection[str],
    actors: int,
    *,
    cpus: int = 1,
    gpus: float | None = None,
    batch: int = 16,
    address: str | None = None,
    say: Say | None = None,
    device: str = "auto",
    **options: Any,
) -> Iterator[dict[str, RayModel]]:
    """Models by folder or hub id, each on all of the actors, which end with the context.

    ``gpus``: None: :func:`.ray_cluster.gpus_for`. ``options`` as in :meth:`asyncthink.engine.loaded.LoadedModel.load`.
    Raises as :class:`RayPool` does.
    """
    gpus = gpus_for(device, gpus, address)
    names = {path: absolute(path) for path in paths}
    opener = functools.partial(open_models, list(names.values()), device="cuda" if gpus else "cpu", **options)
    with RayPool(opener, actors, cpus=cpus, gpus=gpus, address=address, say=say) as pool:
        yield {path: RayModel(pool, name, batch) for path, name in names.items()}


def absolute(model: str) -> str:
    """A folder's absolute path, since actors have another working directory; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def open_models(paths: Sequence[str], **options: Any) -> dict[str, LoadedModel]:
    """An :data:`.ray_actor.Opener` with its arguments bound: folders or hub ids, loaded with the same options."""
    from asyncthink.engine.loaded import LoadedModel

    return {path: LoadedModel.load(path, **options) for path in paths}
