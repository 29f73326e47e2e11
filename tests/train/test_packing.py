"""Packing: labels, moves and limits of rows in one sequence, and that they are those of the sampler's cache."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink import Episode, ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.records import Join, Trace
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.train.packed_flex import block_mask
from asyncthink.train.packing import IGNORED, Batch, Move, Row, limits, pack, visible
from asyncthink.train.rows import rows
from scripted import END, ScriptedDecoder, tokenizer

ORGANIZER = Row("organizer", "shared", tuple(range(10, 20)), (False,) * 3 + (True,) * 7)
WORKER = Row("worker", "shared", (30, 31, 32, 33), (False, True, True, True), 0, 5)
ALONE = Row("solo", "shared", (40, 41), (False, True))


def test_rows_lie_one_behind_the_other() -> None:
    batch = pack([[ORGANIZER, WORKER], [ALONE]], 100)
    assert batch.tokens.tolist() == [[*range(10, 20), 30, 31, 32, 33, 40, 41]]
    assert batch.positions.tolist() == [[*range(10), 5, 6, 7, 8, 0, 1]]
    skip = IGNORED
    assert batch.labels.tolist() == [[skip, skip, *range(13, 20), skip, 31, 32, 33, skip, 41, skip]]
    assert [(s.start, s.stop, s.seen) for s in batch.spans] == [(0, 10, ()), (10, 14, ((0, 5),)), (14, 16, ())]


def test_moves_are_places_of_the_sequence() -> None:
    organizer = replace(ORGANIZER, moves=(Move(6, 1, 1, 3), Move(8, 2, 0, 1)))
    batch = pack([[ALONE], [organizer, WORKER, ALONE]], 100)
    assert batch.moved_to.tolist() == [8, 9, 10]
    assert batch.moved_from.tolist() == [13, 14, 16]


def test_whole_episodes_fill_a_batch() -> None:
    assert pack([[ORGANIZER, WORKER]] * 9, 29).tokens.shape == (1, 42)
    with pytest.raises(ValueError, match="at least one episode"):
        pack([], 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (replace(WORKER, tokens=(), learned=()), r"rows\[1\]: expected tokens"),
        (replace(WORKER, learned=(False,)), "as many marks, got 4, 1"),
        (replace(WORKER, learned=(True,) * 4), "nothing predicts it"),
        (replace(WORKER, parent=None), "fork_at 0 without a parent, got 5"),
        (replace(WORKER, parent=1), "a parent among the rows before it, got row 1"),
        (replace(WORKER, parent=2), "a parent among the rows before it, got row 2"),
        (replace(WORKER, fork_at=11), r"fork_at in \[0, 10\], got 11"),
        (replace(WORKER, moves=(Move(0, 0, 8, 11),)), "moves of tokens that other rows hold"),
        (replace(WORKER, moves=(Move(3, 0, 0, 2),)), "moves into its 4 tokens"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack([[ORGANIZER, row]], 10)


def test_a_row_sees_itself_and_its_prefix() -> None:
    batch = pack([[ORGANIZER, WORKER], [ALONE]], 100)
    sees = [torch.nonzero(row)[:, 0].tolist() for row in visible(batch)]
    assert sees[3] == [0, 1, 2, 3]
    assert sees[12] == [0, 1, 2, 3, 4, 10, 11, 12]
    assert sees[15] == [14, 15]


workers = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), max_size=3)
trees = st.lists(st.tuples(st.integers(1, 60), workers), min_size=1, max_size=4)


def tree_batch(shape: list[tuple[int, list[tuple[int, float]]]]) -> Batch:
    """Episodes of (organizer's tokens, [(worker's tokens, where it forks)])."""
    episodes = []
    for size, workers in shape:
        root = Row("organizer", "shared", (1,) * size, (False,) * size)
        episodes.append(
            [root, *(Row("worker", "shared", (2,) * n, (False,) * n, 0, int(at * size)) for n, at in workers)]
        )
    return pack(episodes, 10_000)


@settings(deadline=None)
@given(trees, st.integers(1, 70))
def test_a_window_counts_positions(shape: list[tuple[int, list[tuple[int, float]]]], window: int) -> None:
    batch = tree_batch(shape)
    apart = batch.positions[0][:, None] - batch.positions[0][None, :]
    assert torch.equal(visible(batch, window), visible(batch) & (apart < window))
    assert (visible(batch).sum(1) == batch.positions[0] + 1).all()


@settings(deadline=None)
@given(trees, st.sampled_from([None, 5, 30]), st.sampled_from([8, 16, 128]))
def test_the_block_mask_is_what_is_visible(
    shape: list[tuple[int, list[tuple[int, float]]]], window: int | None, block: int
) -> None:
    batch = tree_batch(shape)
    expected = visible(batch, window)
    T = expected.shape[0]
    made = block_mask(limits(batch, window), block)
    blocks = -(-T // block)
    places = torch.arange(blocks * block)
    inside = made.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
    sees = torch.zeros(blocks * block, blocks * block, dtype=torch.bool)
    touched = 0
    for q in range(blocks):
        rows_of = slice(q * block, (q + 1) * block)
        for k in made.kv_indices[0, 0, q, : made.kv_num_blocks[0, 0, q]].tolist():
            sees[rows_of, k * block : (k + 1) * block] = inside[rows_of, k * block : (k + 1) * block]
            touched += 1
        for k in made.full_kv_indices[0, 0, q, : made.full_kv_num_blocks[0, 0, q]].tolist():
            sees[rows_of, k * block : (k + 1) * block] = True
            touched += 1
    assert torch.equal(sees[:T, :T], expected)
    padded = torch.nn.functional.pad(expected, (0, blocks * block - T) * 2)
    assert touched == int(padded.view(blocks, block, blocks, block).any(3).any(1).sum())


# -- rows of recorded episodes see what the sampler's cache showed ----------------------------------------------------

TAGS = [f"<{slash}{kind}-{i}>" for kind in ("FORK", "JOIN") for i in (1, 2, 3) for slash in ("", "/")]
TOK = tokenizer(*TAGS, "<ANSWER>", "</ANSWER>", "<RETURN>", "</RETURN>", "<RETURN>z", "z</RETURN>")
AFTER = {
    "\n": ["<FORK-1>"] * 6 + ["x"],
    ":": ["<RETURN>", "<RETURN>z", "y", "y"],
    "=": ["k", "k", "<ANSWER>", END],
    "y": ["y", "<RETURN>", "<RETURN>z", "y"],
    "<RETURN>": ["z", "z", "z", "z", "z</RETURN>", "</RETURN>"],
    "<RETURN>z": ["z", "z</RETURN>", "</RETURN>"],
    "z": ["z", "z", "z", "</RETURN>", "z</RETURN>"],
    "x": ["x", "x", "<FORK-2>", "<FORK-3>", "<JOIN-1>", "<JOIN-2>", "<JOIN-3>", "<ANSWER>", END],
    "k": ["k", "k", "</ANSWER>", "<ANSWER>"],
    "<ANSWER>": ["k"],
    **{f"<FORK-{i}>": ["abc"[i - 1]] for i in (1, 2, 3)},
    **{"abc"[i - 1]: [f"</FORK-{i}>"] for i in (1, 2, 3)},
    **{f"</FORK-{i}>": ["x", f"<JOIN-{i}>", f"<FORK-{i % 3 + 1}>", "<RETURN>z"] for i in (1, 2, 3)},
    **{
        f"</JOIN-{i}>": ["x", "x", f"<JOIN-{i % 3 + 1}>", f"<FORK-{i % 3 + 1}>", "<ANSWER>", "<RETURN>"]
        for i in (1, 2, 3)
    },
}


def state(token: int, context: list[tuple[int, int]]) -> int:
    """A stand-in for a layer: a number that depends on a token and on each (position, state) that it sees."""
    return hash((token, *sorted(context)))


def drawn_after(token: int, known: int) -> int:
    after = AFTER.get(str(TOK.convert_ids_to_tokens(token)), [END])
    return int(TOK.convert_tokens_to_ids(after[random.Random(known).randrange(len(after))]))


class HashDecoder(ScriptedDecoder):
    """Keeps the state of a token in its slot and draws from it: one slot seen wrongly changes all that follows."""

    def forward(self, tokens, plan, logits_rows):  # type: ignore[no-untyped-def]
        logits = torch.zeros(len(tokens), len(self.tok))
        for row, token in enumerate(tokens.tolist()):
            slots = self.slots_seen(plan, row)
            known = state(token, [(where, int(self.slots[slot])) for where, slot in enumerate(slots[:-1])])
            self.slots[slots[-1]] = known
            logits[row, drawn_after(token, known)] = 60.0
        return logits[logits_rows]


def states_of(batch: Batch) -> list[int]:
    """The state of every token of a packed batch, by ``visible`` and the moves."""
    T = batch.tokens.shape[1]
    source = dict(zip(batch.moved_to.tolist(), batch.moved_from.tolist(), strict=True))
    seen = [[k for k in torch.nonzero(row)[:, 0].tolist() if k != q] for q, row in enumerate(visible(batch))]
    positions, known = batch.positions[0].tolist(), dict[int, int]()
    while len(known) < T:
        ready = [q for q in range(T) if q not in known and all(source.get(k, k) in known for k in seen[q])]
        assert ready, "tokens see each other in a circle"
        for q in ready:
            known[q] = state(int(batch.tokens[0, q]), [(positions[k], known[source.get(k, k)]) for k in seen[q]])
    return [known[q] for q in range(T)]


@dataclass(frozen=True)
class Setting:
    mode: str
    context: str
    join: str
    pool: int
    prompts: PromptFormat
    page_size: int
    max_rows: int
    question: str
    depth: int = 1


LONG = "".join(chr(65 + k % 26) for k in range(40))
settings_of = st.builds(
    Setting,
    st.sampled_from(["asyncthink"] * 4 + ["parallel", "sequential"]),
    st.sampled_from(Context),
    st.sampled_from(JoinMode),
    st.integers(2, 7),
    st.builds(
        PromptFormat,
        st.just("O{question}\n"),
        st.sampled_from(["", "W:", "W{subquery}:"]),
        st.sampled_from(["I{subquery}:", LONG + "{subquery}:"]),
        st.sampled_from(["S{question}=", LONG + "{question}="]),
        forking_worker_shared=st.sampled_from(["", "\n", "F{subquery}\n"]),
        forking_worker_isolated=st.sampled_from(["J{subquery}\n", LONG + "{subquery}\n"]),
    ),
    st.sampled_from([1, 8]),
    st.sampled_from([5, 64]),
    st.integers(0, 10**6).map(str),
    st.integers(1, 3),
)


def record(setting: Setting, questions: list[str]) -> list[Episode]:
    decoder = HashDecoder(TOK, [], 512, setting.page_size)
    sampler = ForkJoinSampler(
        decoder, TOK, prompts=setting.prompts, max_rows=setting.max_rows,
        mode=setting.mode, pool=setting.pool, context=setting.context, join=setting.join,
        depth=setting.depth,
    )  # fmt: skip
    return sampler.generate(questions, SamplingParams(temperature=0.0, max_tokens=24))


def check_same_view(episodes: list[Episode]) -> None:
    batch = pack([rows(episode) for episode in episodes], 10**9)
    tokens, labels = batch.tokens[0].tolist(), batch.labels[0].tolist()
    known = states_of(batch)
    learned = [label for label in labels if label != IGNORED]
    traces = [trace for episode in episodes for trace in episode.traces]
    assert learned == [t for trace in traces for t, own in zip(trace.tokens, trace.sampled, strict=True) if own]
    for token, label, seen in zip(tokens, labels, known, strict=True):
        assert label in (IGNORED, drawn_after(token, seen))


@settings(max_examples=60, deadline=None)
@given(settings_of)
def test_rows_see_what_the_sampler_showed(setting: Setting) -> None:
    check_same_view(record(setting, [setting.question, setting.question + "q"]))


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_forks_behind_joins_and_cut_returns_are_among_them(join: str, context: str) -> None:
    prompts = PromptFormat("O{question}\n", "W:", LONG + "{subquery}:", "S{question}=")
    setting = Setting("asyncthink", context, join, 3, prompts, 8, 64, "")
    episodes = record(setting, [str(k) for k in range(40)])
    joins = [(episode, record_) for episode in episodes for record_ in episode.traces[0].joins]
    assert any(t.fork_at > j.at for e, j in joins for t in e.traces[1:])
    assert any(bool(j.source) and j.lead for _, j in joins) == (join != "exact")
    assert {e.finish for e in episodes} >= {"answer", "error"}
    assert {t.finish for e in episodes for t in e.traces[1:]} >= {"return", "cancelled"}
    assert any(len(e.traces) - 1 > e.joins for e in episodes)
    check_same_view(episodes)


@pytest.mark.parametrize("shared", ["F\n", ""])
@pytest.mark.parametrize("join", JoinMode)
def test_workers_of_workers_are_among_them(join: str, shared: str) -> None:
    """Three levels, prompts of no token, joins by workers, and workers that fork behind a join."""
    prompts = PromptFormat(
        "O{question}\n", "W:", "I{subquery}:", "S{question}=",
        forking_worker_shared=shared, forking_worker_isolated="J{subquery}\n",
    )  # fmt: skip
    episodes = record(Setting("asyncthink", "shared", join, 9, prompts, 8, 64, "", 3), [str(k) for k in range(40)])
    nested = [(e, t) for e in episodes for t in e.traces if t.parent]
    assert any(e.traces[t.parent].parent for e, t in nested)
    joins = [(e, t, j) for e in episodes for t in e.traces[1:] for j in t.joins]
    if shared:  # without a prompt, few workers come that far
        assert any(j.source is not None for *_, j in joins) == (join != "exact")
        assert any(other.parent == t.agent and other.fork_at > j.at for e, t, j in joins for other in e.traces)
    check_same_view(episodes)


def test_parallel_traces_see_one_prompt() -> None:
    traces = [Trace(k, "solo") for k in range(3)]
    for trace in traces:
        for k in range(50):
            trace.add(k, k >= 45, -1.0, 0)
    made = rows(Episode("q", "parallel", traces=traces))
    assert [(row.parent, row.fork_at, len(row.tokens)) for row in made] == [(None, 0, 50), (0, 44, 6), (0, 44, 6)]
    short = [replace(trace, tokens=trace.tokens[20:], sampled=trace.sampled[20:]) for trace in traces]
    assert all(row.parent is None for row in rows(Episode("q", "parallel", traces=short)))


def test_an_isolated_worker_that_begins_like_another_still_hands_over_its_own_tokens() -> None:
    """Where the start of a worker lies in another row, the places of its return move along."""
    organizer = Trace(0, "organizer", tokens=list(range(100, 130)), sampled=[False] * 5 + [True] * 25)
    organizer.joins = [Join(2, 2, 12, 3, "append", (43, 46))]
    organizer.sampled[12:16] = [False] * 4
    workers = [Trace(k, "worker", 0, k, 7, list(range(40)) + [50 + k] * 8, [False] * 41 + [True] * 7) for k in (1, 2)]
    made = rows(Episode("q", "asyncthink", "isolated", "append", traces=[organizer, *workers]))
    assert made[2].parent == 1 and made[2].fork_at == 39
    assert made[0].moves == (Move(12, 2, 4, 7),)
    assert made[2].tokens[4:7] == (52, 52, 52)
