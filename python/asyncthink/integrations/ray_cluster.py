"""Ray as the cluster of an :class:`.actor_pool.ActorPool`: starting, resources, tickets, and what its errors mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from asyncthink.integrations.actor_pool import LostActorError
from asyncthink.integrations.ray_actor import DecoderActor, Job, Opener, Weights


class RayCluster:
    """Ray as a :class:`.actor_pool.Cluster`, and the weights that a new actor begins with."""

    def __init__(self, opener: Opener, cpus: int, gpus: float) -> None:
        import ray

        self._opener, self._cpus = ray.put(opener), cpus
        self._new = ray.remote(DecoderActor).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self.version = 0
        self.weights: list[Any] = []  # references: those of version 1, then the newest ones

    def put(self, weights: Weights) -> None:
        """Store the weights of the next version. The first ones may be all, later ones those that change."""
        import ray

        self.weights = [*self.weights[:1], ray.put(weights)]
        self.version += 1

    def start(self, number: int) -> tuple[Any, Any]:
        actor = self._new.remote(self._cpus)
        return actor, actor.open.remote(self._opener, self.version, *self.weights)

    def submit(self, actor: Any, job: Job) -> Any:
        return getattr(actor, job.method).remote(*job.arguments)

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Any | None:
        import ray

        ready, _ = ray.wait(list(tickets), num_returns=1, timeout=timeout)
        return ready[0] if ready else None

    def result(self, ticket: Any) -> Any:
        import ray
        from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

        try:
            return ray.get(ticket)
        except RayTaskError as error:  # an exception of ours; the traceback in the actor stays as its cause
            cause = error.cause
            if not isinstance(cause, Exception):
                raise
            raise cause from error
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            raise LostActorError(_reason(error)) from error

    def kill(self, actor: Any) -> None:
        import ray

        ray.kill(actor, no_restart=True)


def connect(address: str | None = None) -> None:
    """Join a Ray cluster, or start one on this machine; nothing if this process is in one.

    Raises ImportError if Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('Ray is not installed: pip install "asyncthink-kernels[ray]"') from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")


def gpus_for(device: str, gpus: float | None, address: str | None = None) -> float:
    """GPUs of an actor. None: 1 for the device "cuda", and for "auto" where the cluster has any; else 0.

    Raises ValueError for a numbered device, since Ray chooses, and for GPUs without effect.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda with Ray, which chooses the GPU, got {device!r}")
    if gpus is not None and device != "auto" and (gpus > 0) != (device == "cuda"):
        raise ValueError(f"ray_gpus: expected {'some' if device == 'cuda' else 'none'} for {device}, got {gpus:g}")
    if gpus is not None:
        return gpus
    connect(address)
    import ray

    return float(device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0))


def check_resources(actors: int, each: dict[str, float]) -> None:
    """Raises ValueError if the cluster has too few CPUs or GPUs for all actors, whether or not they are free."""
    import ray

    total = ray.cluster_resources()
    for kind, wanted in each.items():
        if wanted and wanted * actors > total.get(kind, 0):
            most = math.floor(total.get(kind, 0) / wanted)
            raise ValueError(
                f"ray_actors: expected at most {most} (the cluster has {total.get(kind, 0):g} {kind}s, "
                f"an actor takes {wanted:g}), got {actors}"
            )


def _reason(error: Exception) -> str:
    """The gist of one of Ray's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "died" in line or "killed" in line or "Worker exit" in line]
    return (causes or lines or [type(error).__name__])[-1]
