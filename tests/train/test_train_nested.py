"""Packed training of nested episodes: every row sees the whole chain above it, and scores are the sampler's."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logprobs import assert_agreement
from test_packed_attention import exact

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.tree import path
from asyncthink.model.decoder import Decoder
from asyncthink.tasks import Countdown, Demonstration, Script
from asyncthink.train.demonstrations import DemonstrationPacker, Mixture, encode
from asyncthink.train.loading import TINY_PROMPTS, ModelOptions, Shape, load
from asyncthink.train.logprobs import logits_of, token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packed_flex import block_mask
from asyncthink.train.packing import Batch, Move, Row, limits, pack, visible
from asyncthink.train.tokenizer import build_tokenizer
from scripted import PROMPTS, ScriptedDecoder, tokenizer
from tiny_models import TAGS, tiny


def chain(size: int, *forks: int) -> list[Row]:
    """Rows of ``size`` tokens, each forked from the one before it at the next of ``forks``."""
    made = [Row("organizer", "shared", tuple(range(3, 3 + size)), (False,) * 2 + (True,) * (size - 2))]
    for number, fork_at in enumerate(forks):
        tokens = tuple(range(20 * number + 23, 20 * number + 23 + size))
        made.append(Row("worker", "shared", tokens, (False,) + (True,) * (size - 1), number, fork_at))
    return made


def test_a_row_sees_all_that_its_parents_see() -> None:
    batch = pack([chain(4, 3, 2, 4)], 1)
    assert [span.seen for span in batch.spans] == [(), ((0, 3),), ((0, 3), (4, 6)), ((0, 3), (4, 6), (8, 12))]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]]
    assert torch.nonzero(visible(batch)[13])[:, 0].tolist() == [0, 1, 2, 4, 5, 8, 9, 10, 11, 12, 13]
    assert torch.nonzero(visible(batch, 6)[13])[:, 0].tolist() == [8, 9, 10, 11, 12, 13]


def test_a_return_within_a_return_is_the_first_workers_kv() -> None:
    top, middle, low = chain(6, 3, 3)
    moves = (Move(4, 1, 2, 4),), (Move(2, 2, 3, 5),)
    batch = pack([[Row(*_fields(top), moves=moves[0]), Row(*_fields(middle), moves=moves[1]), low]], 1)
    assert batch.moved_to.tolist() == [4, 5, 8, 9] and batch.moved_from.tolist() == [15, 16, 15, 16]


def _fields(row: Row) -> tuple[Any, ...]:
    return row.role, row.context, row.tokens, row.learned, row.parent, row.fork_at


TREES = st.lists(
    st.tuples(
        st.integers(1, 50), st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1)), max_size=5)
    ),
    min_size=1,
    max_size=3,
)


def tree_batch(shape: list[tuple[int, list[tuple[int, float, float]]]]) -> Batch:
    """Episodes of (organizer's tokens, [(worker's tokens, which earlier row is its parent, where it forks)])."""
    episodes = []
    for size, workers in shape:
        made = [Row("organizer", "shared", (1,) * size, (False,) * size)]
        for n, which, where in workers:
            parent = int(which * (len(made) - 1))
            fork_at = int(where * len(made[parent].tokens))
            made.append(Row("worker", "shared", (2,) * n, (False,) * n, parent, fork_at))
        episodes.append(made)
    return pack(episodes, 10_000)


@settings(deadline=None)
@given(TREES, st.integers(1, 70), st.sampled_from([8, 16, 128]))
def test_windows_and_blocks_of_random_trees(shape: Any, window: int, block: int) -> None:
    """A window counts positions; FlexAttention's mask is what is visible."""
    batch = tree_batch(shape)
    distance = batch.positions[0][:, None] - batch.positions[0][None, :]
    assert (visible(batch).sum(1) == batch.positions[0] + 1).all()
    expected = visible(batch, window)
    assert torch.equal(expected, visible(batch) & (distance < window))
    made, T = block_mask(limits(batch, window), block), expected.shape[0]
    blocks = -(-T // block)
    places = torch.arange(blocks * block)
    inside = made.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
    sees = torch.zeros(blocks * block, blocks * block, dtype=torch.bool)
    for q in range(blocks):
        lines = slice(q * block, (q + 1) * block)
        for k in made.kv_indices[0, 0, q, : made.kv_num_blocks[0, 0, q]].tolist():
            sees[lines, k * block : (k + 1) * block] = inside[lines, k * block : (k + 1) * block]
        for k in made.full_kv_indices[0, 0, q, : made.full_kv_num_blocks[0, 0, q]].tolist():
            sees[lines, k * block : (k + 1) * block] = True
    assert torch.equal(sees[:T, :T], expected)


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_scores_and_gradients_are_those_of_each_row_alone(family: str) -> None:
    """With all that it sees in front of it, in transformers' own attention; the window of one cuts prefixes."""
    model = exact(family)
    model.set_attn_implementation("sdpa")
    agents = chain(12, 9, 12, 5)
    agents.append(Row("worker", "shared", (60, 61, 62), (False, True, True), 1, 7))
    scores = []
    for row in agents:
        before, parent, stop = (), row.parent, row.fork_at
        while parent is not None:
            before = agents[parent].tokens[:stop] + before
            parent, stop = agents[parent].parent, agents[parent].fork_at
        context = torch.tensor([*before, *row.tokens])
        logprobs = model(input_ids=context[None]).logits[0].log_softmax(-1)
        places = [len(before) + k for k, own in enumerate(row.learned) if own]
        scores.append(logprobs[[k - 1 for k in places], context[places]])
    expected = torch.cat(scores)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    use_packed_attention(model)
    batch = pack([agents], 1)
    got = token_logprobs(model, batch)
    got = got[batch.labels[0] >= 0]
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    got.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-7, rtol=1e-7)
    assert logits_of(model, batch).shape[1] == batch.tokens.shape[1]


# -- sampler and trainer agree ----------------------------------------------------------------------------------------

#: What agent 0, 1, 2, ... draws; # is any token, drawn from the model.
DRAWN = [
    "##<FORK-1>#</FORK-1>##<FORK-2>##</FORK-2>#<JOIN-1>###<JOIN-2>##<ANSWER>#</ANSWER>",
    "#<FORK-1>##</FORK-1>#<FORK-2>#</FORK-2>##<JOIN-2>##<JOIN-1>##<RETURN>####</RETURN>",
    "##<RETURN>###</RETURN>",
    "###<FORK-1>#</FORK-1><JOIN-1>#<RETURN>##</RETURN>",
    "#<RETURN>#####</RETURN>",
    "####<RETURN>##</RETURN>",
]


class Steered(ForkJoinSampler):
    """Each agent draws its tags by a script and all else from the model; log-probabilities are the model's."""

    def _draw(self, logits, runs, agents):  # type: ignore[no-untyped-def]
        logprobs = (logits / runs[0].core.params.temperature).log_softmax(-1)
        drawn = []
        for row, agent in zip(logprobs, agents, strict=True):
            text = DRAWN[agent.trace.agent % len(DRAWN)]
            ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            token = ids[agent.trace.decoded] if agent.trace.decoded < len(ids) else self.tokenizer.eos_token_id
            if token == self.tokenizer.convert_tokens_to_ids("#"):
                letters = self.tokenizer.convert_tokens_to_ids(list("abcdefgh"))
                token = max(letters, key=lambda k: float(row[k]))
            drawn.append((token, float(row[token])))
        return drawn


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_log_probabilities_agree_per_token(family: str, join: Any, context: str) -> None:
    """Three levels of agents, joins at all of them; windows, norms on K, partial rotations; a temperature."""
    tok = tokenizer(*TAGS)
    model = tiny(family, vocab_size=len(tok), tie_word_embeddings=False, eos_token_id=tok.eos_token_id)
    decoder = Decoder(model, num_pages=600)
    use_packed_attention(model, moves=True)
    sampler = Steered(decoder, tok, prompts=PROMPTS, context=context, join=join, depth=3, pool=8)
    episodes = sampler.generate(["q", "other"], SamplingParams(temperature=0.8, max_tokens=60))
    for episode in episodes:
        assert episode.answer is not None and episode.format_errors == []
        assert {trace.parent for trace in episode.traces} >= {None, 0, 1}
        assert len([t for t in episode.traces if t.joins]) >= 2
        read = [j.source is not None for t in episode.traces for j in t.joins]
        assert all(read) if join != "exact" else not any(read)
    assert_agreement(model, episodes, 0.8)


# -- demonstrations ---------------------------------------------------------------------------------------------------

TOKENIZER, TASK = build_tokenizer(), Countdown()


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", ["exact", "append"])
def test_the_sampler_would_have_recorded_the_demonstration(context: str, join: str) -> None:
    """A model that says what a demonstration of three levels says makes the same tokens, marks and joins."""
    demonstrations = (TASK.demonstrate(TASK.sample(k), k, context=context, pool=8, depth=3) for k in range(200))
    made = next(d for d in demonstrations if len(d.scripts) > 4 and any(d.scripts[s.parent].parent for s in d.scripts))
    expected = encode(made, TOKENIZER, TINY_PROMPTS, join)
    by_path = {path(expected.traces, k): trace for k, trace in enumerate(expected.traces)}
    scripts = []
    for trace in expected.traces:
        seen, top = list(trace.tokens), trace
        while top.parent is not None and context == "shared":
            fork_at, top = top.fork_at, expected.traces[top.parent]
            seen = top.tokens[:fork_at] + seen
        scripts.append(TOKENIZER.decode(seen))
    decoder = ScriptedDecoder(TOKENIZER, scripts, 2000)
    options: Any = {"context": context, "join": join, "pool": 8, "depth": 3}
    sampler = ForkJoinSampler(decoder, TOKENIZER, prompts=TINY_PROMPTS, **options)
    (drawn,) = sampler.generate([made.question], SamplingParams(temperature=0.0, max_tokens=2000))
    assert drawn.format_errors == [] and drawn.answer is not None
    assert {path(drawn.traces, k) for k in range(len(drawn.traces))} == by_path.keys()
    for number, theirs in enumerate(drawn.traces):
        ours = by_path[path(drawn.traces, number)]
        assert (ours.tokens, ours.sampled, ours.fork_at) == (theirs.tokens, theirs.sampled, theirs.fork_at)
        columns = [[(j.index, j.at, j.length, j.source, j.lead) for j in trace.joins] for trace in (ours, theirs)]
        assert columns[0] == columns[1]
    assert (drawn.critical_path_tokens, drawn.depth) == (expected.critical_path_tokens, 3)


def test_a_packer_with_depth_packs_trees_and_needs_their_templates() -> None:
    mixture = Mixture(solo=0, shared=1, isolated=0)
    packer = DemonstrationPacker([TASK], TOKENIZER, TINY_PROMPTS, mixture, pool=8, depth=2)
    episodes = list(itertools.islice(packer.stream("x"), 12))
    assert any(episode[row.parent].parent is not None for episode in episodes for row in episode if row.parent)
    batch = pack(episodes, 10**9)
    assert (visible(batch).sum(1) == batch.positions[0] + 1).all()
    with pytest.raises(ValueError, match="expected a template 'forking_worker_shared'"):
        list(itertools.islice(dataclasses.replace(packer, prompts=TINY_PROMPTS.for_depth(1)).stream("y"), 12))


def test_checkpoints_keep_the_templates_that_were_trained() -> None:
    loaded = load(ModelOptions(shape=Shape(1, 16, 2, 1)))
    flat, deep = (loaded.for_depth(depth, ["shared", "isolated"]).prompts for depth in (1, 2))
    assert deep == TINY_PROMPTS and flat.forking_worker_shared is flat.forking_worker_isolated is None
    with pytest.raises(ValueError, match="depth: expected 1, as the prompts have no template"):
        dataclasses.replace(loaded, prompts=flat).for_depth(2, ["isolated"])


def test_a_worker_script_in_front_of_its_parent_is_refused() -> None:
    scripts = [Script("organizer"), Script("worker", 1, 0, "x", parent=1)]
    with pytest.raises(ValueError, match=r"scripts\[1\]: expected a parent before it, got script 1"):
        encode(Demonstration("q", "asyncthink", scripts=scripts), TOKENIZER, TINY_PROMPTS)
