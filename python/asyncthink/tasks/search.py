"""The search of countdown demonstrations: by one agent, or by an organizer and workers that share the space.

The space is partitioned by the smaller number of the starting pair. Each line searches one pair ``a < b``. It holds the
results of ``a+b``, ``b-a``, ``a*b`` and, if exact, ``b/a``. After each result y it names the third number that would
reach the target, as ``y+d``, ``y-d``, ``y*q`` or ``y/r``, unless that is more than the task's largest number. If that
number is available, a label and the solution follow: ``3*7=21+2 a:3*7+2``. For ``a+b+c`` and ``a*b*c`` the third number
must be the largest, so each solution is found from exactly one pair. The target is larger than every number, so no
solution ends in ``c-y`` or ``c/y``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from asyncthink.tasks.script import Script

LABELS = "abcdefghi"  # of solutions; no puzzle has more
REACH = 13  # the largest number of most tasks: larger third numbers are not written down


@dataclass(frozen=True, slots=True)
class Finding:
    """One step of a search: the text written, and the solution it found, if any."""

    text: str
    solution: str | None = None


def search_start(numbers: tuple[int, ...], target: int, start: int, reach: int = REACH) -> Iterator[Finding]:
    """Search the pairs whose smaller number is ``start``; third numbers above ``reach`` are not written down."""
    for other in numbers[numbers.index(start) + 1 :]:
        yield from search_pair(numbers, target, start, other, reach)


def find_all(numbers: tuple[int, ...], target: int, reach: int = REACH) -> list[str]:
    """All solutions of the space, in the order in which one agent finds them."""
    findings = (finding for start in numbers[:-1] for finding in search_start(numbers, target, start, reach))
    return [finding.solution for finding in findings if finding.solution]


def search_pair(numbers: tuple[int, ...], target: int, a: int, b: int, reach: int = REACH) -> Iterator[Finding]:
    """One line: what the pair ``a < b`` of ``numbers`` gives, and the third numbers that would reach the target."""
    rest = set(numbers) - {a, b}
    later = {c for c in rest if c > b}
    results = {"+": (f"{a}+{b}", a + b), "-": (f"{b}-{a}", b - a), "*": (f"{a}*{b}", a * b)}
    if b % a == 0:
        results["/"] = (f"{b}/{a}", b // a)
    last = list(results)[-1]
    for operator, (pair, y) in results.items():
        yield Finding(f"{pair}={y}", pair if y == target else None)
        if y != target:
            for third, fits in _thirds(operator, y, target, rest, later, reach):
                left = f"({pair})" if third[0] in "*/" and operator in "+-" else pair
                yield Finding(third, left + third if fits else None)
        yield Finding("\n" if operator == last else ",")


def _thirds(
    operator: str, y: int, target: int, rest: set[int], later: set[int], reach: int
) -> Iterator[tuple[str, bool]]:
    """The operations that would reach the target from the result ``y``, and whether their number is available."""
    if operator != "-" and abs(target - y) <= reach:
        sign = "+" if y < target else "-"
        allowed = later if (operator, sign) == ("+", "+") else rest
        yield f"{sign}{abs(target - y)}", abs(target - y) in allowed
    if operator != "/" and y < target <= reach * y and target % y == 0:
        yield f"*{target // y}", target // y in (later if operator == "*" else rest)
    if operator == "*" and target < y <= reach * target and y % target == 0:
        yield f"/{y // target}", y // target in rest


def search_alone(
    numbers: tuple[int, ...], target: int, asked: int, starts: Iterable[int], reach: int = REACH
) -> Script:
    """One agent searches ``starts`` in this order, stops after ``asked`` solutions, and answers."""
    writer = Writer(Script("solo"), reach)
    for start in starts:
        if writer.search(numbers, target, start, asked):
            break
    writer.answer(asked)
    return writer.script


@dataclass(slots=True)
class Writer:
    """One agent's script, with the solutions it holds: its own, labelled in order, and returned ones."""

    script: Script
    reach: int = REACH
    solutions: list[str] = field(default_factory=list)
    _labels: int = 0

    def search(self, numbers: tuple[int, ...], target: int, start: int, most: int | None = None) -> bool:
        """Write the search of ``start``. With ``most`` solutions in hand the search ends there and returns True."""
        return self.write(search_start(numbers, target, start, self.reach), most)

    def write(self, findings: Iterable[Finding], most: int | None = None) -> bool:
        """Write these steps, with a label behind each solution; ``most`` as in :meth:`search`."""
        for finding in findings:
            self.script.say(finding.text)
            if finding.solution:
                self.script.say(f" {LABELS[self._labels]}:{finding.solution}")
                self.solutions.append(finding.solution)
                self._labels += 1
                if most is not None and len(self.solutions) >= most:
                    self.script.say("\n")
                    return True
        return False

    def join(self, index: int, returned: list[str]) -> None:
        self.script.say(f"<JOIN-{index}>")
        self.script.insert(f"{returned_text(returned)}</JOIN-{index}>")
        self.solutions += returned
        self.script.say("\n")

    def give_back(self) -> None:
        """End a worker's script with its solutions."""
        self.script.say(f"<RETURN>{returned_text(self.solutions)}</RETURN>")

    def answer(self, asked: int) -> None:
        listed = "".join(f" #{k}:{solution}" for k, solution in enumerate(self.solutions[:asked], 1))
        self.script.say(f"<ANSWER>{listed or 'none'}</ANSWER>")


def returned_text(solutions: list[str]) -> str:
    """The text that a worker returns: `` a:3*7+2 b:(5+7)*2``, or ``none``."""
    return "".join(f" {label}:{text}" for label, text in zip(LABELS, solutions, strict=False)) or "none"


def search_as_worker(
    numbers: tuple[int, ...], target: int, starts: Iterable[int], script: Script, reach: int = REACH
) -> list[str]:
    """A worker writes the search of its starts and returns the solutions."""
    writer = Writer(script, reach)
    for start in starts:
        writer.search(numbers, target, start)
    writer.give_back()
    return writer.solutions
