"""Threads beside other programs, and the threads that a thread leaves behind."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncthink_kernels.openmp import PERIOD, STALE, Neighbours, busy_seconds, release_team


class Clocks:
    """A machine whose programs use what it is told."""

    def __init__(self) -> None:
        self.now = self.all = self.own = 0.0

    def run(self, seconds: float, own: float, others: float) -> None:
        self.now += seconds
        self.own += own * seconds
        self.all += (own + others) * seconds

    def neighbours(self, cores: int) -> Neighbours:
        return Neighbours(cores, busy=lambda: self.all, own=lambda: self.own, clock=lambda: self.now)


def test_one_thread_less_for_each_core_that_others_use() -> None:
    clocks = Clocks()
    beside = clocks.neighbours(8)
    assert beside.threads(8) == 8
    for others, threads in [(0.1, 8), (0.6, 7), (1.0, 7), (3.1, 5), (20.0, 1), (0.0, 8)]:
        clocks.run(PERIOD, own=8 - others, others=others)
        assert beside.threads(8) == threads
        assert beside.threads(2) == min(2, threads)


def test_between_two_looks_nothing_changes() -> None:
    clocks = Clocks()
    beside = clocks.neighbours(2)
    beside.threads(2)
    clocks.run(PERIOD, own=1, others=1)
    assert beside.threads(2) == 1
    clocks.run(PERIOD / 2, own=2, others=0)
    assert beside.threads(2) == 1
    clocks.run(PERIOD / 2, own=2, others=0)
    assert beside.threads(2) == 2


def test_a_long_rest_says_nothing() -> None:
    clocks = Clocks()
    beside = clocks.neighbours(2)
    beside.threads(2)
    clocks.run(STALE + 1, own=0, others=2)
    assert beside.threads(2) == 2


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0, 100), st.floats(0.25, 1.9))
def test_always_at_least_one_and_never_more_than_asked(cores: int, most: int, others: float, seconds: float) -> None:
    clocks = Clocks()
    beside = clocks.neighbours(cores)
    beside.threads(most)
    clocks.run(seconds, own=0, others=others)
    assert 1 <= beside.threads(most) <= most


def test_a_machine_that_tells_nothing_keeps_all_threads() -> None:
    beside = Neighbours(2, busy=lambda: None, own=lambda: 0.0, clock=lambda: 0.0)
    assert beside.threads(4) == 4


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="needs two threads")
def test_within_a_step_there_are_fewer_threads_and_after_it_as_many_as_before() -> None:
    clocks, most = Clocks(), torch.get_num_threads()
    beside = clocks.neighbours(most)
    beside.threads(most)
    clocks.run(PERIOD, own=0, others=most)
    with contextlib.suppress(RuntimeError), beside.step():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == most


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_the_processors_have_been_busy() -> None:
    before = busy_seconds()
    assert before is not None and 0 < before <= (busy_seconds() or 0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc/self/task")
def test_a_released_team_is_gone_and_comes_back() -> None:
    """In a thread of its own, which has no team yet; threads of others may come and go meanwhile."""
    seen: list[set[str]] = []

    def work() -> None:
        torch.set_num_threads(2)
        x = torch.empty(1 << 20)  # filling it would start the team
        for _ in range(2):
            before = set(os.listdir("/proc/self/task"))
            torch.relu(x)
            team = set(os.listdir("/proc/self/task")) - before
            release_team()
            seen.append(team)
            while team & set(os.listdir("/proc/self/task")):  # ended, and soon gone
                pass

    before = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert len(seen) == 2 and all(seen)
