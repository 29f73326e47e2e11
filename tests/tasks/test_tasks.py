"""Every task in the box keeps its promises: puzzles, the split, demonstrations that the protocol can run."""

from __future__ import annotations

from collections import Counter

import pytest

from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import Action, Answer, Fork, Join, Return
from asyncthink.tasks import TASKS, Demonstration, Script, Task, task, tasks
from asyncthink.train.demonstrations import encode
from asyncthink.train.loading import TINY_PROMPTS
from asyncthink.train.tokenizer import build_tokenizer

EACH = pytest.mark.parametrize("known", TASKS.values(), ids=TASKS)
TOKENIZER = build_tokenizer()
MODES = [("asyncthink", "shared"), ("asyncthink", "isolated"), ("sequential", "shared"), ("parallel", "shared")]
MODES += [("part", "shared")]


def read(script: Script) -> list[tuple[int, Action]]:
    """(number of the piece that completed it, action) of all that the real parser sees; no format errors."""
    parser, actions = Parser(script.role), []
    for place, piece in enumerate(script.pieces):
        if piece.said:
            actions += [(place, action) for action in parser.feed(piece.text)]
        else:
            parser.insert(piece.text)
    assert parser.close() == []
    return actions


@EACH
@pytest.mark.parametrize("held_out", [False, True])
def test_puzzles_are_functions_of_seed_and_side(known: Task, held_out: bool) -> None:
    seeds = range(8 if known.name == "sudoku-9" else 60)
    puzzles = [known.sample(seed, held_out) for seed in seeds]
    assert puzzles == [known.sample(seed, held_out) for seed in seeds]
    assert len({known.prompt(puzzle) for puzzle in puzzles}) > 0.75 * len(
        puzzles
    )  # of 192 held out 60 draws meet some twice
    assert len({known.prompt(puzzle) for puzzle in puzzles}) == len(set(puzzles))
    other = {known.prompt(known.sample(seed, not held_out)) for seed in seeds}
    assert not other & {known.prompt(puzzle) for puzzle in puzzles}


@EACH
def test_absent_and_senseless_answers_are_worth_nothing(known: Task) -> None:
    puzzle = known.sample(0)
    for answer in (None, "", "none", "no idea", "<ANSWER>", "#1: #2:", "7" * 5000):
        assert known.verify(puzzle, answer) == 0.0


@EACH
@pytest.mark.parametrize(("mode", "context"), MODES)
def test_demonstrations_repeat_by_seed_and_become_tokens(known: Task, mode: str, context: str) -> None:
    puzzle = known.sample(1)
    texts = set()
    for seed in range(12):
        made = known.demonstrate(puzzle, seed, mode, context)
        assert made == known.demonstrate(puzzle, seed, mode, context)
        assert (made.mode, made.context, made.pool) == (mode, context, 4)
        assert made.question.startswith(known.prompt(puzzle))
        episode = encode(made, TOKENIZER, TINY_PROMPTS)
        for trace, script in zip(episode.traces, made.scripts, strict=True):
            assert TOKENIZER.unk_token_id not in trace.tokens
            assert TOKENIZER.decode(trace.tokens).endswith(script.text)
        texts.add(made.scripts[0].text)
    assert len(texts) > 3


@EACH
@pytest.mark.parametrize("pool", [2, 3, 4, 8])
@pytest.mark.parametrize("context", ["shared", "isolated"])
def test_demonstrations_keep_the_protocol(known: Task, pool: int, context: str) -> None:
    """Read by the real parser: every fork has its worker, at most pool - 1 are un-joined, returns enter verbatim."""
    for seed in range(15):
        made = known.demonstrate(known.sample(seed % 5), seed, context=context, pool=pool)
        organizer, *workers = made.scripts
        live: set[int] = set()
        forked = []
        for place, action in read(organizer):
            if isinstance(action, Fork):
                forked.append(action.index)
                live.add(action.index)
                assert len(live) <= pool - 1
                worker = workers[action.index - 1]
                assert (worker.fork_index, worker.fork_at) == (action.index, place + 1)
                assert worker.subquery == action.subquery
            elif isinstance(action, Join):
                live.remove(action.index)
                ((_, returned),) = read(workers[action.index - 1])
                assert isinstance(returned, Return)
                assert organizer.pieces[place + 1].text == f"{returned.text}</JOIN-{action.index}>"
                assert not organizer.pieces[place + 1].said
        assert forked == list(range(1, len(workers) + 1))
        assert not live
        assert isinstance(read(organizer)[-1][1], Answer)


def topology(made: Demonstration) -> str:
    """The organizer's actions in order: F for a fork, J for a join."""
    return "".join({Fork: "F", Join: "J"}.get(type(action), "") for _, action in read(made.scripts[0]))


@EACH
def test_no_topology_is_baked_in(known: Task) -> None:
    """None to many forks, all before the first join or between joins, and joins in another order than forks."""
    puzzle = known.sample(0)
    made = [known.demonstrate(puzzle, seed) for seed in range(150)]
    shapes = Counter(map(topology, made))
    assert {shape.count("F") for shape in shapes} >= {0, 1, 2, 3, 4}
    assert max(shapes.values()) < 60
    assert {"FFFJJJ", "FJFJ"} <= shapes.keys()
    orders = [[action.index for _, action in read(each.scripts[0]) if isinstance(action, Join)] for each in made]
    assert any(order != sorted(order) for order in orders)
    assert any("JF" in shape and "FF" in shape for shape in shapes)
    idle = sum(all(piece.text[0] in "<\n" for piece in each.scripts[0].pieces if piece.said) for each in made)
    assert 0 < idle < len(made)  # some organizers leave all work to workers, some work too


@EACH
def test_demonstrated_answers_are_graded_by_what_they_hold(known: Task) -> None:
    """Organizers see to the whole space; one agent on a part of it answers less; each right result counts, no other."""
    shares: dict[str, set[float]] = {"asyncthink": set(), "part": set()}
    for seed in range(60):
        puzzle = known.sample(seed % 8)
        for mode, seen in shares.items():
            answer = read(known.demonstrate(puzzle, seed, mode).scripts[0])[-1][1]
            assert isinstance(answer, Answer)
            share = known.verify(puzzle, answer.text)
            assert share == answer.text.count("#") / known.asked
            seen.add(share)
    assert shares["asyncthink"] == {1.0}
    assert len(shares["part"]) > 1


@EACH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "vote"}, "mode: expected one of asyncthink, sequential, parallel, part, got 'vote'"),
        ({"context": "both"}, "context: expected one of shared, isolated, got 'both'"),
        ({"pool": 1}, "pool: expected at least 2 .* got 1"),
    ],
)
def test_bad_options_are_named(known: Task, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        known.demonstrate(known.sample(0), 0, **options)


def test_tasks_are_found_by_name() -> None:
    assert [task(name) for name in TASKS] == list(TASKS.values())
    assert tasks("sudoku-4,countdown") == [TASKS["sudoku-4"], TASKS["countdown"]]
    with pytest.raises(ValueError, match=r"task: expected one of countdown, .*sudoku-9, .*math-test:PATH, .*got ''"):
        tasks("countdown,")
