"""The worker's contract with TRL's trainer: start, samples of whole groups, versions, health, stop."""

from __future__ import annotations

import inspect
import math
from concurrent.futures import Future
from typing import Any

import pytest
from rollouts import InstantPolicy, SilentPolicy, answered

from asyncthink import Options, SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.trl.policy import LocalPolicy
from asyncthink.integrations.trl.samples import Sample
from asyncthink.integrations.trl.server import ServerPolicy
from asyncthink.integrations.trl.worker import RolloutWorker
from toy_task import Counting

WAIT = 30  # seconds, far more than any of these take


def worker(policy: Any, **options: Any) -> RolloutWorker:
    return RolloutWorker(policy, [Counting()], **{"group_size": 4, "groups": 2, **options})


def taken(made: RolloutWorker, count: int) -> list[Sample]:
    return [made.rollout_buffer.get(timeout=WAIT) for _ in range(count)]


def failed(made: RolloutWorker) -> BaseException:
    """What the worker's health says, once its thread has ended by itself."""
    assert made._thread is not None
    made._thread.join(WAIT)
    with pytest.raises(RuntimeError, match="the rollout worker failed") as caught:
        made.check_health(WAIT)
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


def test_a_group_shares_its_number_and_an_episode_its_advantage() -> None:
    made = worker(InstantPolicy(lambda seed: answered(" 1" if seed % 2 else None)), queue_size=8)
    made.update_model_version(5)
    made.start()
    made.check_health(WAIT)
    got = taken(made, 16)
    made.stop()
    groups: dict[int, list[Sample]] = {}
    for sample in got:
        groups.setdefault(sample.group_id, []).append(sample)
    assert [len(group) for group in groups.values()] == [4] * 4
    assert list(groups) == [0, 1, 2, 3]
    for group in groups.values():
        mean = sum(sample.metrics["reward"] for sample in group) / 4
        assert [s.advantage for s in group] == pytest.approx([s.metrics["reward"] - mean for s in group])
        assert sum(sample.advantage > 0 for sample in group) == 2
    assert {sample.model_version for sample in got} == {5}
    stamps = [sample.enqueued_at for sample in got]
    assert None not in stamps and stamps == sorted(stamps)
    told = made.metrics_queue.get(timeout=WAIT)
    assert told["rollout/tokens_per_s"][0] == 8 and told["rollout/left_out_total"] == 0  # type: ignore[index]


def test_samples_have_the_version_that_their_episode_began_with() -> None:
    policy = SilentPolicy()
    made = worker(policy, groups=1)
    made.start()
    while len(policy.futures) < 4:
        made.check_health(WAIT)
    made.update_model_version(1)
    for future in policy.futures[:4]:
        future.set_result(answered(" 1"))
    assert [sample.model_version for sample in taken(made, 4)] == [0] * 4
    while len(policy.futures) < 8:
        made.check_health(WAIT)
    for future in policy.futures[4:8]:
        future.set_result(answered(" 1"))
    assert [sample.model_version for sample in taken(made, 4)] == [1] * 4
    made.stop()


def test_stop_cancels_what_runs_and_a_full_queue_does_not_hold_it() -> None:
    silent = SilentPolicy()
    made = worker(silent)
    made.stop()
    made = worker(silent)
    made.start()
    while len(silent.futures) < 8:
        made.check_health(WAIT)
    made.stop()
    made.stop()
    assert all(future.cancelled() for future in silent.futures)
    full = worker(InstantPolicy(lambda seed: answered(" 1")), queue_size=1)
    full.start()
    while not full.rollout_buffer.full():
        full.check_health(WAIT)
    full.stop()
    with pytest.raises(RuntimeError, match="the rollout worker has ended"):
        full.check_health(WAIT)
    with pytest.raises(RuntimeError, match="was started before"):
        full.start()


def test_a_worker_that_makes_nothing_is_reported() -> None:
    made = worker(SilentPolicy())
    with pytest.raises(RuntimeError, match="was not started"):
        made.check_health(WAIT)
    made.start()
    made.check_health(WAIT)
    with pytest.raises(RuntimeError, match="expected an episode in -1 s, got none in 0 s"):
        made.check_health(-1)
    made.stop()


def test_a_worker_whose_policy_died_is_reported() -> None:
    def die(seed: int) -> Episode:
        raise ConnectionError("nobody answers")

    made = worker(InstantPolicy(die))
    made.start()
    assert isinstance(failed(made), ConnectionError)
    made.stop()


def test_a_killed_worker_is_reported_and_its_episodes_are_cancelled() -> None:
    class Killed(SilentPolicy):
        def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
            if len(self.futures) == 6:  # in the midst of the second group
                raise SystemExit("killed")
            return super().submit(question, params, options)

    policy = Killed()
    made = worker(policy)
    made.start()
    assert isinstance(failed(made), SystemExit)
    assert len(policy.futures) == 6 and all(future.cancelled() for future in policy.futures)


def test_episodes_that_no_update_may_use_give_no_samples() -> None:
    """Three of each four have a log-probability that is not finite: their groups are left out, and counted."""
    seen: list[int] = []

    def answer(seed: int) -> Episode:
        seen.append(seed)
        return answered(" 1", logprob=-0.5 if len(seen) % 4 == 0 or len(seen) > 8 else -math.inf)

    made = worker(InstantPolicy(answer), queue_size=4)
    made.start()
    assert {sample.group_id for sample in taken(made, 4)} == {2}
    told = [made.metrics_queue.get(timeout=WAIT) for _ in range(3)]
    made.stop()
    assert [each["rollout/left_out_total"] for each in told] == [4, 4, 0]
    assert [each["rollout/logprobs_not_finite_total"] for each in told] == [3, 3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": Options(join="append")}, "options.join: expected 'exact'"),
        ({"options": Options(guide="legal")}, "options.guide: expected 'off'"),
        ({"params": SamplingParams(temperature=0.0)}, "params.temperature: expected more than 0"),
        ({"group_size": 1}, "group_size: expected at least 2, got 1"),
        ({"groups": 0}, "groups: expected at least 1, got 0"),
        ({"queue_size": 0}, "queue_size: expected at least 1, got 0"),
    ],
)
def test_what_training_cannot_use_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worker(SilentPolicy(), **options)
    with pytest.raises(ValueError, match="tasks: expected at least one, got none"):
        RolloutWorker(SilentPolicy(), [])


def test_worker_and_policies_meet_the_protocols_of_trl() -> None:
    theirs = pytest.importorskip("trl.experimental.async_grpo.async_grpo_trainer", exc_type=ImportError)
    for protocol, ours in (
        (theirs.RolloutWorkerProtocol, [RolloutWorker]),
        (theirs.WeightTransferProtocol, [LocalPolicy, ServerPolicy]),
    ):
        methods = [name for name, each in vars(protocol).items() if inspect.isfunction(each) and name[0] != "_"]
        assert methods
        for cls in ours:
            for name in methods:
                expected = list(inspect.signature(getattr(protocol, name)).parameters)
                assert list(inspect.signature(getattr(cls, name)).parameters) == expected, name
    made = worker(SilentPolicy())
    assert all(hasattr(made, name) for name in theirs.RolloutWorkerProtocol.__annotations__)
