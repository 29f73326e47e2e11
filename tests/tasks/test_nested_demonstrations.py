"""Demonstrations in which workers organize their own parts: the protocol, the pool, and that nothing gets lost."""

from __future__ import annotations

import pytest

from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import Action, Answer, Fork, Join, Return
from asyncthink.tasks import Countdown, Demonstration, Sudoku, Task
from asyncthink.tasks.script import check_options

EACH = pytest.mark.parametrize("known", [Countdown(), Sudoku()], ids=["countdown", "sudoku"])


def read(made: Demonstration, number: int) -> list[tuple[int, Action]]:
    """(piece, action) of everything that script ``number`` writes."""
    script = made.scripts[number]
    parser, actions = Parser(script.role, may_fork=True), []
    for place, piece in enumerate(script.pieces):
        if piece.said:
            actions += [(place, action) for action in parser.feed(piece.text)]
        else:
            parser.insert(piece.text)
    return actions


def level(made: Demonstration, number: int) -> int:
    return 0 if number == 0 else 1 + level(made, made.scripts[number].parent)


def most_alive(made: Demonstration, number: int) -> int:
    """The most agents alive below and with script ``number``, whatever the speed of each."""
    live: dict[int | None, int] = {}
    most = 1
    children = {s.fork_index: k for k, s in enumerate(made.scripts) if k and s.parent == number}
    for place, action in read(made, number):
        if isinstance(action, Fork):
            worker = children[action.index]
            script = made.scripts[worker]
            assert (script.subquery, script.fork_at) == (action.subquery, place + 1)
            live[action.index] = most_alive(made, worker)
            most = max(most, 1 + sum(live.values()))
        elif isinstance(action, Join):
            del live[action.index]
            _, returned = read(made, children[action.index])[-1]
            assert isinstance(returned, Return)
            piece = made.scripts[number].pieces[place + 1]
            assert (piece.text, piece.said) == (f"{returned.text}</JOIN-{action.index}>", False)
    assert not live
    return most


@EACH
@pytest.mark.parametrize(("pool", "depth"), [(3, 2), (6, 2), (8, 3)])
def test_trees_keep_the_protocol(known: Task, pool: int, depth: int) -> None:
    levels, shares = set(), set()
    for seed in range(60):
        puzzle = known.sample(seed % 5)
        made = known.demonstrate(puzzle, seed, context=("shared", "isolated")[seed % 2], pool=pool, depth=depth)
        assert made == known.demonstrate(puzzle, seed, context=made.context, pool=pool, depth=depth)
        assert most_alive(made, 0) <= pool
        levels.add(max(level(made, k) for k in range(len(made.scripts))))
        assert all(script.parent < k for k, script in enumerate(made.scripts[1:], 1))
        _, answer = read(made, 0)[-1]
        assert isinstance(answer, Answer)
        shares.add(known.verify(puzzle, answer.text))
    assert levels >= {0, 1, 2} and max(levels) <= depth
    assert shares == {1.0}  # every part is somebody's


@EACH
def test_depth_changes_nothing_where_nobody_may_fork(known: Task) -> None:
    puzzle = known.sample(1)
    assert known.demonstrate(puzzle, 3, depth=1) == known.demonstrate(puzzle, 3)
    alone = known.demonstrate(puzzle, 3, "sequential", depth=2)
    assert alone == known.demonstrate(puzzle, 3, "sequential")


def test_a_depth_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="depth: expected at least 1"):
        check_options("asyncthink", "shared", 4, 0)
