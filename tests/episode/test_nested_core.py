"""Nested forks: workers of workers, in scripted episodes and in random trees of agents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import END, ScriptedEngine, tokens

from asyncthink.episode import tree
from asyncthink.episode.options import Context, JoinMode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Event
from asyncthink.episode.wishes import Feed, Fork, Splice
from asyncthink.tasks.rewards import eta

PARAMS = SamplingParams(max_tokens=200)


def engine(scripts, depth=2, context="shared", join="exact", pool=6, params=PARAMS, **given):
    options = Options("asyncthink", pool, context, join, depth=depth)
    return ScriptedEngine(scripts, options, params, **given)


def played(*scripts: str, **options: object) -> Episode:
    e = engine(scripts, **options)
    e.run([])
    assert e.released == set(range(len(e.core.speakers)))
    return e.core.episode


FIRST = "<FORK-1>a</FORK-1>hm<JOIN-1><RETURN>so r3</RETURN>"


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_two_levels(context: str, join: str) -> None:
    """Each agent numbers its own workers; a worker joins its worker and returns."""
    scripts = ["<FORK-1>p</FORK-1><FORK-2>q</FORK-2><JOIN-1><JOIN-2><ANSWER>z</ANSWER>", FIRST, "<RETURN>r2</RETURN>"]
    episode = played(*scripts, "<RETURN>r3</RETURN>", context=context, join=join)
    assert episode.answer == "z" and episode.format_errors == []
    assert [(t.parent, t.fork_index, t.returned) for t in episode.traces[1:]] == [
        (0, 1, "so r3"),
        (0, 2, "r2"),
        (1, 1, "r3"),
    ]
    assert [tree.name(episode.traces, k) for k in range(4)] == ["organizer", "worker 1", "worker 2", "worker 1.1"]
    assert tree.depth_first(episode.traces) == [0, 1, 3, 2]
    prompts = ["".join(t.pieces)[: t.sampled.index(True)] for t in episode.traces]
    assert prompts == (["O:q", "FW:", "FW:", "W:"] if context == "shared" else ["O:q", "FI:p", "FI:q", "I:a"])
    assert [event.peer for event in episode.events if event.kind == "return"] == [0, 1, 0]
    (join_,) = episode.traces[1].joins
    assert (join_.worker, join_.mode) == (3, join)
    assert episode.traces[1].text == "<FORK-1>a</FORK-1>hm<JOIN-1>r3</JOIN-1><RETURN>so r3</RETURN>"


def test_three_levels_in_wishes() -> None:
    """A worker's worker sees the tokens of both agents above it; its K/V go where it was forked."""
    scripts = ["<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", "<FORK-7>q</FORK-7><JOIN-7><RETURN>abc</RETURN>"]
    scripts += ["x<FORK-7>s</FORK-7><JOIN-7><RETURN>de</RETURN>", "<RETURN>fgh</RETURN>"]
    e, seen = engine(scripts, depth=3, join="link"), []
    carry_out = e.carry_out
    e.carry_out = lambda wishes: (seen.extend(wishes), carry_out(wishes))[1]  # type: ignore[method-assign]
    e.run([])
    episode = e.core.episode
    assert episode.answer == "z" and episode.depth == 3
    fork1 = len("O:q<FORK-1>p</FORK-1>")
    fork2 = fork1 + len("FW:<FORK-7>q</FORK-7>")
    fork3 = fork2 + len("FW:x<FORK-7>s</FORK-7>")
    assert [wish for wish in seen if isinstance(wish, Fork)] == [
        Fork(1, 0, fork1),
        Fork(2, 1, fork2),
        Fork(3, 2, fork3),
    ]
    begin = fork3 + len("W:<RETURN>") + 1
    splice = next(wish for wish in seen if isinstance(wish, Splice))
    assert splice == Splice(2, 3, begin, begin + 2, "link")
    assert [wish.agent for wish in seen if isinstance(wish, Splice)] == [2, 1, 0]
    assert Feed(3, tokens("W:")) in seen and Feed(2, tokens("FW:")) in seen
    assert tree.name(episode.traces, 3) == "worker 1.7.7" and tree.lineage(episode.traces, 3) == (0, 1, 2, 3)


def test_below_the_depth_nobody_forks() -> None:
    episode = played("<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", FIRST, "<FORK-1>s</FORK-1>")
    assert episode.format_errors == ["worker 1.1: nested tag: <FORK-1>"] and episode.answer == "z"
    episode = played("<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", FIRST, depth=1)
    assert episode.format_errors == ["worker 1: nested tag: <FORK-1>"]
    assert "depth" not in episode.to_dict()
    with pytest.raises(ValueError, match="depth: expected at least 1"):
        Options(depth=0)


def test_each_agent_joins_its_own_workers_alone() -> None:
    episode = played("<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", "<FORK-2>q</FORK-2><JOIN-1>", "<RETURN>r</RETURN>")
    assert episode.format_errors == ["worker 1: join of an index never forked: <JOIN-1>"] and episode.answer == "z"


def test_the_pool_counts_the_agents_of_all_levels() -> None:
    scripts = ["<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", "<FORK-1>q</FORK-1><FORK-2>r</FORK-2>", "x" * 50]
    episode = played(*scripts, pool=3)
    assert episode.format_errors == ["worker 1: pool overflow: <FORK-2> with 2 live workers, pool 3"]
    assert [t.finish for t in episode.traces] == ["answer", "error", "cancelled"]
    assert played(*scripts, pool=4).traces[3].parent == 1


@pytest.mark.parametrize("join", JoinMode)
def test_a_worker_that_returns_cancels_its_own_workers(join: str) -> None:
    """Those that run, those below them, and the K/V of one that was done; nobody hears of a return."""
    scripts = ["<FORK-1>p</FORK-1>" + "y" * 120 + "<JOIN-1><ANSWER>z</ANSWER>"]
    scripts += ["<FORK-1>q</FORK-1><FORK-2>s</FORK-2>" + "x" * 40 + "<RETURN>early</RETURN>"]
    scripts += ["<FORK-1>t</FORK-1>" + "x" * 99, "<RETURN>done</RETURN>", "x" * 99]
    e = engine(scripts, depth=3, join=join)
    e.carry_out(e.core.start())
    while not e.core.speakers[-1].done or len(e.core.speakers) < 5:
        for speaker in list(e.core.speakers):
            if speaker.draws:
                e.carry_out(e.core.accept(speaker.number, e._next(speaker.number), -1.0))
        e.carry_out(e.core.tick())
    traces = e.core.episode.traces
    assert [t.finish for t in traces] == ["", "return", "cancelled", "return", "cancelled"]
    assert e.released == {2, 3, 4}
    stops = [(event.agent, event.text) for event in e.core.episode.events if event.kind == "stop"]
    assert stops == [(2, "cancelled"), (4, "cancelled")]
    returns = [event.agent for event in e.core.episode.events if event.kind == "return"]
    assert returns == [3, 1]
    e.lose_everything()
    assert [set(e.queues), e.contexts.keys()] == ([{0}] * 2 if join == "exact" else [{0, 1}] * 2)


def test_a_record_of_two_levels_is_read_back(tmp_path) -> None:
    episode = played("<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>", FIRST, "<RETURN>r3</RETURN>")
    episode.save(tmp_path / "e.json")
    again = Episode.load(tmp_path / "e.json")
    assert again == episode and again.depth == 2


def test_the_critical_path_goes_through_the_slowest_chain() -> None:
    """organizer 18, worker 1 to its fork 18, worker 1.1 17 + 30, then what each draws behind its join."""
    fork, ret = len("<FORK-1>p</FORK-1>"), len("<RETURN></RETURN>")
    episode = played(
        "<FORK-1>p</FORK-1><JOIN-1><ANSWER>z</ANSWER>",
        "<FORK-1>q</FORK-1><JOIN-1><RETURN>r</RETURN>",
        "x" * 30 + "<RETURN>s</RETURN>",
    )
    chain = fork + fork + 30 + ret + 1 + len("<RETURN>r</RETURN>") + len("<ANSWER>z</ANSWER>")
    assert episode.critical_path_tokens == chain
    assert eta(episode) == episode.total_tokens / (chain * 6)
    workers = sum(trace.decoded for trace in episode.traces[1:])
    assert eta(episode, "workers") == workers / (chain * 5)


# -- random trees -----------------------------------------------------------------------------------------------------


def longest_chain(episode: Episode) -> int:
    """The longest path through the tokens of all agents, relaxed edge by edge."""
    edges: list[tuple[tuple[int, int], tuple[int, int], int]] = []
    for trace in episode.traces:
        edges += [((trace.agent, k), (trace.agent, k + 1), drawn) for k, drawn in enumerate(trace.sampled)]
        if trace.parent is not None:
            edges.append(((trace.parent, trace.fork_at), (trace.agent, 0), 0))
        for join in trace.joins:
            edges.append(((join.worker, len(episode.traces[join.worker].tokens)), (trace.agent, join.at), 0))
    length = {(0, 0): 0}
    changed = True
    while changed:
        changed = False
        for before, after, cost in edges:
            if before in length and length.get(after, -1) < length[before] + cost:
                length[after] = length[before] + cost
                changed = True
    return length[0, len(episode.traces[0].tokens)]


def script(actions: Sequence[tuple[str, int]], end: str) -> str:
    """What an agent writes: its joins are mostly of workers that it forked."""
    written, forked = "", list[int]()
    for kind, number in actions:
        if kind == "fork":
            forked.append(len(forked) + 1)
            written += f"<FORK-{forked[-1]}>{'s' * number}</FORK-{forked[-1]}>"
        elif kind == "join":
            written += f"<JOIN-{forked.pop(number % len(forked))}>" if forked else ""
        else:
            written += "t" * number
    return written + end


ACTIONS = st.lists(st.tuples(st.sampled_from(["fork", "fork", "join", "join", "think"]), st.integers(0, 9)), max_size=6)
ENDS = st.sampled_from(["<RETURN>a</RETURN>", "<RETURN>bcd</RETURN>", "hm<RETURN></RETURN>", "<JOIN-9>", chr(END)])
WORKERS = st.lists(st.builds(script, ACTIONS, ENDS), min_size=1, max_size=9)
ORGANIZERS = st.builds(script, ACTIONS, st.just("<ANSWER>z</ANSWER>"))
ORDERS = st.lists(st.sampled_from([0, 1, 1]), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    ORGANIZERS, WORKERS, st.integers(1, 3), st.sampled_from(Context), st.sampled_from(JoinMode), st.integers(1, 7),
    ORDERS, st.integers(0, 150), st.sampled_from([None, 90, 130]), st.sampled_from([None, 200]),
)  # fmt: skip
def test_random_trees(organizer, workers, depth, context, join, pool, order, pause, limit, total):
    """Contexts are the record's, also after a pause; all are released; the pool holds; the path is the longest."""
    live: list[int] = []

    def listen(event: object) -> None:
        if isinstance(event, Event) and event.kind == "fork":
            live.append(sum(not speaker.done for speaker in e.core.speakers))

    params = SamplingParams(max_tokens=90, max_episode_tokens=total)
    scripts = [organizer, *workers]
    given = {"depth": depth, "context": context, "join": join, "pool": pool, "params": params, "max_length": limit}
    e, paused = engine(scripts, listener=listen, **given), engine(scripts, **given)
    e.run([*order, 1], steps=700)
    paused.run([*order, 1], steps=700, pause=pause)
    episode = e.core.episode
    assert paused.core.episode.to_dict() == episode.to_dict()
    assert e.core.done and e.released == set(range(len(e.core.speakers)))
    assert all(speaker.done and speaker.trace.finish for speaker in e.core.speakers)
    assert max(live, default=1) <= pool
    assert max((len(tree.lineage(episode.traces, k)) for k in range(len(episode.traces))), default=1) <= depth + 1
    assert episode.critical_path_tokens == longest_chain(episode)
    assert 0 <= eta(episode) <= 1 and 0 <= eta(episode, "workers") <= 1
    assert Episode.from_dict(episode.to_dict()) == episode
    parents = [trace.parent for trace in episode.traces[1:]]
    assert all(parent is not None and parent < child for child, parent in enumerate(parents, 1))
