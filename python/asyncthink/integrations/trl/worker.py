"""The rollout worker of TRL's AsyncGRPOTrainer: a thread that has groups of episodes drawn, and grades them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from asyncthink.episode.options import Guide, JoinMode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.trl.policy import Policy
from asyncthink.integrations.trl.samples import Sample, samples
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.metrics import COUNTS, episode_metrics
from asyncthink.train.rollout import Grading, Question, Rollout, draw_questions, graded

#: A gauge, or (numerator, denominator) of a rate, as TRL reads them.
Metric = float | tuple[float, float]

_POLL = 0.1  # seconds between two looks for the end, while the trainer does not take samples


@dataclass(slots=True, eq=False)
class _Group:
    """The episodes of one question, being drawn with weights of ``version`` or later."""

    number: int
    question: Question
    version: int
    futures: list[Future[Episode]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return all(future.done() for future in self.futures)


class RolloutWorker:
    """Draws groups of episodes without a pause, and puts one :class:`.samples.Sample` an agent where the trainer looks.

    Questions are a pure function of seed and group number, never held-out ones. An episode that its group's update may
    not use (:class:`asyncthink.train.rollout.Rollout`) gives no samples; it is counted in ``metrics_queue``.

    Args:
        policy: draws the episodes (:class:`.policy.LocalPolicy`, :class:`.server.ServerPolicy`).
        tasks: questions are of a random one of them.
        options: how episodes are organized: joins "exact" and guide "off", as rows of tokens hold neither K/V of other
            rows nor the masks that tokens were drawn under.
        params: how tokens are drawn. The trainer's temperature must be the same.
        group_size: episodes of a question.
        groups: questions whose episodes are drawn at the same time. More use the engine better, with older weights.
        grading: the reward, and how a group's rewards become advantages.
        queue_size: samples that wait for the trainer; then the worker waits.

    Raises ValueError for options that training cannot use, and numbers outside their range.
    """

    def __init__(
        self,
        policy: Policy,
        tasks: Sequence[Task],
        *,
        options: Options | None = None,
        params: SamplingParams | None = None,
        group_size: int = 8,
        groups: int = 4,
        grading: Grading | None = None,
        seed: int = 0,
        queue_size: int = 1024,
    ) -> None:
        self.policy, self.tasks, self.seed = policy, list(tasks), seed
        self.options = options if options is not None else Options()
        self.params = params if params is not None else SamplingParams()
        self.grading = grading if grading is not None else Grading(RewardRule())
        self.group_size, self.groups = group_size, groups
        self._check(queue_size)
        self.rollout_buffer: queue.Queue[Sample] = queue.Queue(queue_size)
        self.metrics_queue: queue.Queue[dict[str, Metric]] = queue.Queue()
        self.model_version = 0
        self._thread: threading.Thread | None = None
        self._events: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()  # a group whose episode ended; None: stop
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._alive_at = self._told_at = time.monotonic()

    def _check(self, queue_size: int) -> None:
        if not self.tasks:
            raise ValueError("tasks: expected at least one, got none")
        if self.options.join != JoinMode.EXACT:
            raise ValueError(f"options.join: expected 'exact' (rows of tokens), got {str(self.options.join)!r}")
        if self.options.guide != Guide.OFF:
            raise ValueError(f"options.guide: expected 'off' (TRL has no masks), got {str(self.options.guide)!r}")
        if not self.params.temperature > 0:
            raise ValueError(f"params.temperature: expected more than 0, got {self.params.temperature}")
        for name, value, least in (("group_size", self.group_size, 2), ("groups", self.groups, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if queue_size < 1:
            raise ValueError(f"queue_size: expected at least 1, got {queue_size}")

    # -- what the trainer calls ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to draw. Raises RuntimeError if it was started before."""
        if self._thread is not None:
            raise RuntimeError("the rollout worker was started before")
        self._alive_at = self._told_at = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="asyncthink-rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancel the episodes that run, and end the thread. May be called again, and without a start."""
        self._stopping.set()
        self._events.put(None)
        if self._thread is not None:
            self._thread.join()

    def update_model_version(self, model_version: int) -> None:
        """Episodes that begin from now on are tagged with this version."""
        self.model_version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Raises RuntimeError if the worker failed (``__cause__`` says how), has ended, or made nothing for so long.

        Time in which it waited for the trainer does not count.
        """
        if self._failure is not None:
            what = f"{type(self._failure).__name__}: {self._failure}"
            raise RuntimeError(f"the rollout worker failed: {what}") from self._failure
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError(f"the rollout worker {'was not started' if self._thread is None else 'has ended'}")
        silent = time.monotonic() - self._alive_at
        if silent > stale_after_s:
            raise RuntimeError(
                f"rollout worker: expected an episode in {stale_after_s:g} s, got none in {silent:.0f} s"
            )

    # -- in the thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        running: list[_Group] = []
        try:
            self._draw(running)
        except BaseException as error:  # the trainer asks for it in its own thread
            self._failure = error
        for group in running:
            for future in group.futures:
                future.cancel()

    def _draw(self, running: list[_Group]) -> None:
        number = 0
        while not self._stopping.is_set():
            while len(running) < self.groups:
                (question,) = draw_questions(self.tasks, self.seed, number, 1)
                running.append(_Group(number, question, self.model_version))
                self._submit(running[-1])
                number += 1
            group = self._events.get()
            self._alive_at = time.monotonic()
            if group is not None and group.done and group in running:
                running.remove(group)
                self._deliver(group)

    def _submit(self, group: _Group) -> None:
        question = group.question
        prompt = question.task.prompt(question.puzzle)
        for member in range(self.group_size):
            params = self.params.with_seed((question.seed + member) % 2**64)
            group.futures.append(self.policy.submit(prompt, params, self.options))
        for future in group.futures:
            future.add_done_callback(lambda _: self._events.put(group))

    def _deliver(self, group: _Group) -> None:
        episodes = [future.result() for future in group.futures]
        rollouts = graded(group.question, episodes, self.grading)
        waited = 0.0
        for rollout in rollouts:
            for sample in samples(rollout, group.number, group.version) if rollout.usable else ():
                waited += self._put(sample)
        self._report(rollouts, waited)

    def _put(self, sample: Sample) -> float:
        """Wait until the trainer has room for a sample, or the worker must end; returns the seconds."""
        begun = time.monotonic()
        while not self._stopping.is_set():
            sample.enqueued_at = time.time()
            with contextlib.suppress(queue.Full):
                self.rollout_buffer.put(sample, timeout=_POLL)
                break
            self._alive_at = time.monotonic()
        return time.monotonic() - begun

    def _report(self, rollouts: Sequence[Rollout], waited: float) -> None:
        now = time.monotonic()
        seconds, self._told_at = now - self._told_at, now
        figures = [episode_metrics(rollout) for rollout in rollouts]
        told: dict[str, Metric] = {f"rollout/{name}_total": sum(each[name] for each in figures) for name in COUNTS}
        told["rollout/tokens_per_s"] = (sum(each["total_tokens"] for each in figures), seconds)
        told["rollout/backpressure_s"] = waited
        self.metrics_queue.put(told)
