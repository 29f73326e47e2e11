"""The reward's terms, and both readings of the concurrency ratio."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.tasks import task
from asyncthink.tasks.rewards import RewardRule, eta


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
            ({"reading": "x"}, "reading: expected one of agents, workers, got 'x'"),
        ],
    )
    def test_bad_numbers(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RewardRule(**fields)  # type: ignore[arg-type]
