"""Compiling many kernel variants at once, each in a process where a crash of the compiler harms nobody else."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from asyncthink_kernels.backends._resources import Resources

#: The room of the kernels, found by name: it imports Triton, which is not everywhere.
ROOM = "asyncthink_kernels.backends.triton"
_LONGEST = 400  # characters of an error that are shown


@dataclass(frozen=True, order=True)
class Job:
    """Variant ``name`` of those that ``module`` has for ``arch``: what processes tell each other, as kernels do not
    travel."""

    module: str
    arch: str
    name: str
    key: str


@functools.cache
def variants(module: str, arch: str) -> Mapping[str, Any]:
    """The variants of a module for ``arch`` by name. Raises ValueError where two have one name."""
    found = importlib.import_module(module).variants(arch)
    named = {variant.name: variant for variant in found}
    if len(named) != len(found):
        names = [variant.name for variant in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"names of {module}'s variants for {arch} must differ, got {', '.join(twice)} more than once")
    return named


def compile_all(jobs: Sequence[Job], processes: int, done: Callable[[Job, Resources | str], None]) -> None:
    """Calls ``done`` with each job and what it takes, or the error that it ended in.

    When a process dies, the jobs without a result run again one by one, so that the one to blame is known.
    """
    progress = _Progress(len(jobs))
    left = list(jobs)
    while left:
        finished, whole = _round(left, processes, done, progress)
        left = [job for job in left if job not in finished]
        if not whole and processes == 1:  # one process takes jobs in order: the first without a result killed it
            done(left.pop(0), "the compiler crashed")
            progress.step()
        elif not whole:
            processes = 1
    progress.close()


def _round(
    jobs: Sequence[Job], processes: int, done: Callable[[Job, Resources | str], None], progress: _Progress
) -> tuple[set[Job], bool]:
    """The jobs that ended, and whether all processes lived to the end."""
    finished = set()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), spawn, _ignore_interrupts) as pool:
        futures: dict[Future[Resources | str], Job] = {pool.submit(_compile, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
                finished.add(futures[future])
                progress.step()
        except BrokenProcessPool:
            return finished, False
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return finished, True


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its children


def _compile(job: Job) -> Resources | str:
    compiler = importlib.import_module(f"{ROOM}._compile")
    try:
        variant = variants(job.module, job.arch)[job.name]
        if compiler.key(variant, job.arch) != job.key:
            return "its source changed in the meantime, compile again"
        found: Resources = compiler.compile_variant(variant, job.arch)
    except Exception as error:  # all of them are listed, and not every exception of Triton's can be pickled
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        half = _LONGEST // 2
        return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"
    return found


class _Progress:
    """A line on stderr with the time left: over itself on a terminal, else a new one each minute."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if not self._terminal and now - self._shown < 60:
            return
        self._shown = now
        seconds = round((now - self._start) / self._done * (self._total - self._done))
        line = f"{self._done} of {self._total} compiled, {seconds // 60}:{seconds % 60:02} left"
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self._terminal and self._done:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
