"""The reward's terms, and both readings of the concurrency ratio."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.tasks import Task, task
from asyncthink.tasks.rewards import REWARDS, Reward, RewardRule, eta, evaluate, joined, marginal, reward


def trace(agent: int, role: str, drawn: int, **fields: object) -> Trace:
    made = Trace(agent, role, finish="return" if role == "worker" else "answer", **fields)  # type: ignore[arg-type]
    for k in range(drawn):
        made.add(k, True, -0.1, k)
    return made


def organized(pool: int = 3) -> Episode:
    """10 tokens, of which the organizer forks after 2 and 4; workers draw 5 and 7; it joins them at its 8th and 9th."""
    organizer = trace(0, "organizer", 10, joins=[Join(1, 1, 7, 0, "exact"), Join(2, 2, 8, 0, "exact")])
    first = trace(1, "worker", 5, parent=0, fork_index=1, fork_at=2)
    second = trace(2, "worker", 7, parent=0, fork_index=2, fork_at=4)
    return Episode("q", "asyncthink", pool=pool, traces=[organizer, first, second], answer="")


def test_eta_readings() -> None:
    episode = organized()
    # The second worker ends at 4 + 7 = 11, the organizer goes on there with 2 more: a path of 13.
    assert episode.critical_path_tokens == 13
    assert eta(episode, "agents") == pytest.approx((10 + 5 + 7) / (13 * 3))
    assert eta(episode, "workers") == pytest.approx((5 + 7) / (13 * 2))
    assert eta(organized(pool=1), "workers") == 0
    with pytest.raises(ValueError, match="reading: expected one of agents, workers, got 'both'"):
        eta(episode, "both")  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 30), min_size=3, max_size=3), st.integers(3, 6))
def test_eta_is_a_ratio(drawn: list[int], pool: int) -> None:
    traces = [trace(0, "organizer", drawn[0])]
    traces += [trace(k, "worker", drawn[k], parent=0, fork_index=k, fork_at=0) for k in (1, 2)]
    traces[0].joins = [Join(k, k, drawn[0] - k, 0, "exact") for k in (1, 2) if drawn[0] > 1]
    for reading in ("agents", "workers"):
        ratio = eta(Episode("q", "asyncthink", pool=pool, traces=traces), reading)  # type: ignore[arg-type]
        assert ratio >= 0
        if drawn[0] > 1:  # with its joins at the end the path is no shorter than any trace
            assert ratio <= 1


class TestRule:
    task = task("countdown")
    puzzle = task.sample(3)

    def answered(self, text: str | None, **fields: object) -> Episode:
        episode = organized(4)
        episode.answer = text
        for name, value in fields.items():
            setattr(episode, name, value)
        return episode

    def test_terms(self) -> None:
        right = self.task.demonstrate(self.puzzle, 0).scripts[0].text.partition("<ANSWER>")[2].partition("<")[0]
        accuracy = self.task.verify(self.puzzle, right)
        rule = RewardRule(weight=0.5, threshold=0.3)
        reward = rule(self.task, self.puzzle, self.answered(right))
        ratio = 22 / (13 * 4)
        assert reward.accuracy == accuracy
        assert reward.eta == pytest.approx(ratio)
        assert not reward.broken
        assert reward.total == pytest.approx(accuracy + 0.5)  # the ratio is above the threshold
        below = RewardRule(weight=0.5, threshold=0.9)(self.task, self.puzzle, self.answered(right))
        assert below.total == pytest.approx(accuracy + 0.5 * ratio / 0.9)

    def test_a_format_error_counts_whatever_the_answer(self) -> None:
        broken = self.answered("1", format_errors=["organizer: unclosed tag"])
        reward = RewardRule(format_error=-0.7)(self.task, self.puzzle, broken)
        assert reward.broken
        assert reward.total == -0.7

    def test_no_answer_is_a_format_error(self) -> None:
        assert RewardRule(format_error=-0.7)(self.task, self.puzzle, self.answered(None)).total == -0.7

    def test_baselines_have_no_concurrency_reward(self) -> None:
        alone = Episode("q", "sequential", pool=4, traces=[trace(0, "solo", 9)], answer="1")
        assert RewardRule(weight=5.0)(self.task, self.puzzle, alone).total == 0.0

    def test_parallel_breaks_when_every_trace_does(self) -> None:
        traces = [trace(k, "solo", 9) for k in range(3)]
        episode = Episode("q", "parallel", pool=3, traces=traces, answer="1", format_errors=["budget"])
        traces[0].finish = traces[1].finish = "budget"
        traces[2].returned = "1"
        assert RewardRule()(self.task, self.puzzle, episode).total == 0.0
        traces[2].finish, traces[2].returned = "budget", None
        assert RewardRule(format_error=-0.7)(self.task, self.puzzle, episode).total == -0.7

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"weight": -1.0}, "weight: expected at least 0, got -1.0"),
            ({"weight": float("nan")}, "weight: expected at least 0, got nan"),
            ({"format_error": float("nan")}, "format_error: expected a finite number, got nan"),
            ({"threshold": 0.0}, "threshold: expected a ratio in"),
            ({"complete": 1.5}, r"complete: expected a share in \[0, 1\], got 1.5"),
            ({"path_weight": 0.4}, "path_reference: expected at least 1 for a path reward, got None"),
            ({"path_weight": -0.4}, "path_weight: expected at least 0, got -0.4"),
            ({"reading": "x"}, "reading: expected one of agents, workers, got 'x'"),
        ],
    )
    def test_bad_numbers(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RewardRule(**fields)  # type: ignore[arg-type]


class Counted:
    """A task whose answers are graded by their length: ten characters are complete."""

    name, asked = "counted", 10

    def verify(self, puzzle: object, answer: str | None) -> float:
        return min(1.0, len(answer or "") / 10)


TEN: Task = Counted()  # type: ignore[assignment]


def test_tokens_of_workers_that_nobody_joins_earn_nothing() -> None:
    rule = RewardRule(weight=1.0, threshold=1.0)
    episode = organized(pool=4)
    assert joined(episode) == {0, 1, 2}
    before = rule(TEN, None, episode).concurrency
    for drawn in (1, 50):  # forked, never joined: whatever it writes
        extra = trace(3, "worker", drawn, parent=0, fork_index=3, fork_at=4)
        episode.traces = [*organized().traces, extra]
        assert joined(episode) == {0, 1, 2}
        assert rule(TEN, None, episode).concurrency == pytest.approx(before)
    assert eta(episode) > eta(episode, only_joined=True)


def test_a_worker_joined_by_a_worker_that_nobody_joins_earns_nothing() -> None:
    episode = organized()
    episode.traces[0].joins.pop()
    episode.traces.append(trace(3, "worker", 4, parent=2, fork_index=1, fork_at=1))
    episode.traces[2].joins = [Join(1, 3, 5, 0, "exact")]
    assert joined(episode) == {0, 1}


def test_the_path_reward_is_for_complete_answers_and_padding_beside_the_path_earns_nothing() -> None:
    rule = RewardRule(weight=0.0, complete=0.5, path_weight=0.4, path_reference=26)
    half, full, long = organized(), organized(), organized()
    half.answer, full.answer, long.answer = "x" * 5, "x" * 10, "x" * 10
    assert rule(TEN, None, half).total == pytest.approx(0.25)
    made = rule(TEN, None, full)
    assert (made.path, made.total) == (pytest.approx(0.2), pytest.approx(1.2))  # a path of 13
    padded = trace(1, "worker", 8, parent=0, fork_index=1, fork_at=2)  # ends at 10, the other one at 11
    full.traces[1] = padded
    assert rule(TEN, None, full).total == pytest.approx(1.2)
    long.traces[0] = trace(0, "organizer", 40)
    assert rule(TEN, None, long).total == 1.0
    alone = Episode("q", "sequential", traces=[trace(0, "solo", 13)], answer="x" * 10)
    assert rule(TEN, None, alone).total == pytest.approx(1.2)


def test_what_a_parallel_trace_adds() -> None:
    class United(Counted):
        def union(self, puzzle: object, answers: list[str]) -> str:
            return "".join(sorted(set("".join(answers))))

    traces = [trace(0, "solo", 9), trace(1, "solo", 9), trace(2, "solo", 9)]
    traces[0].returned, traces[1].returned = "abcd", "cdef"
    episode = Episode("q", "parallel", pool=3, traces=traces)
    united: Task = United()  # type: ignore[assignment]
    assert marginal(RewardRule(), united, None, episode) == pytest.approx([0.2, 0.2, 0.0])
    traces[1].returned = None
    assert marginal(RewardRule(), united, None, episode)[0] == pytest.approx(0.4 + 0.5)  # without it all have failed
    with pytest.raises(ValueError, match="credit: expected an episode of mode parallel"):
        marginal(RewardRule(), TEN, None, organized())


def by_length(task: Task, puzzle: object, episode: Episode) -> float:
    return float(len(episode.answer or ""))


def test_a_reward_is_an_object_a_name_or_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reward(by_length) is by_length
    assert reward(f"{__name__}:by_length") is by_length
    monkeypatch.setitem(REWARDS, "length", by_length)
    assert reward("length") is by_length
    episode = organized()
    episode.answer = "x" * 5
    made = evaluate(by_length, TEN, None, episode)
    assert made == Reward(0.5, eta(episode), 0.0, False, 5.0)
    with pytest.raises(ValueError, match="reward: expected one of paper, length, MODULE:NAME, got 'lenght'"):
        reward("lenght")
    with pytest.raises(ValueError, match=r"reward: there is no module 'no\.such' to import 'no\.such:f' from"):
        reward("no.such:f")
    with pytest.raises(ValueError, match="reward: expected 'f' in the module math, which lacks it"):
        reward("math:f")
    with pytest.raises(ValueError, match=r"reward: expected a function .* got 3\.14"):
        reward("math:pi")
    with pytest.raises(ValueError, match="reward: expected a Reward or a number, got 'a'"):
        evaluate(lambda *of: "a", TEN, None, episode)  # type: ignore[arg-type, return-value]
