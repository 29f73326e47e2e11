"""The policy that draws the rollouts, with the weights that TRL's trainer last sent: a thread of this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor

from asyncthink.engine.async_engine import AsyncEngine
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.weights import check_weights, write_weights
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode

_MOST_WAITING = 2**31  # a worker bounds what it asks for


class Policy(Protocol):
    """What draws episodes. :class:`LocalPolicy` and :class:`.server.ServerPolicy` also take weights for it."""

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        """The future of an episode. Cancelling it cancels the episode."""


class LocalPolicy:
    """A sampler that a thread of this process steps. It is TRL's ``weight_transfer`` as well.

    The sampler's model is its own, of the same class as the trainer's: weights are copied into it between two steps.
    Episodes that run go on with the new weights and keep the tokens and log-probabilities that they have.

    >>> policy = LocalPolicy(ForkJoinSampler("path/to/checkpoint", pool=4))                       # doctest: +SKIP
    >>> policy.submit("3 5 7 9 = 24", SamplingParams(), Options()).result().answer                # doctest: +SKIP
    """

    def __init__(self, sampler: ForkJoinSampler) -> None:
        self.engine = AsyncEngine(sampler, max_waiting=_MOST_WAITING)

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        """The future of an episode. Raises ValueError as :meth:`ForkJoinSampler.request`, and EngineStoppedError."""
        return self.engine.submit(self.engine.sampler.request(question, params, options))

    # -- TRL's weight transfer ----------------------------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Nothing is to be prepared."""

    def pause(self) -> None:
        """Hold the steps. Raises EngineStoppedError if the engine has ended."""
        self.engine.pause()

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        """Copy (name, tensor) pairs over the parameters of these names.

        Raises ValueError, before anything is written, for a name that the model does not have, another shape, and
        values that are not finite; EngineStoppedError.
        """
        model = self.engine.sampler.decoder.model
        tensors = dict(iterator)
        check_weights(tensors, model, "weights")
        self.engine.change_weights(lambda: write_weights(tensors, model)).result()

    def resume(self) -> None:
        """Go on. Raises EngineStoppedError."""
        self.engine.resume()

    def destroy(self) -> None:
        """Cancel what runs, and end the thread. May be called again."""
        self.engine.close(drain=False)
