"""Cold-start traces: demonstrations become tokens without loss of text, rows learn only what an agent said itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from asyncthink.protocol import PromptFormat
from asyncthink.records import Episode
from asyncthink.tasks import Countdown
from asyncthink.tasks.countdown import is_held_out
from asyncthink.train.packing import IGNORED, Row, logits_of, pack, use_packed_attention
from asyncthink.train.sft import TINY_PROMPTS, Shape, random_model
from asyncthink.train.tokenizer import MOST_TAGS, build_tokenizer, tags
from asyncthink.train.traces import Cutter, Mixture, encode, rows

TOKENIZER = build_tokenizer()
TASK = Countdown()


def episode(seed: int, mode: str = "asyncthink", context: str = "shared", join: str = "exact") -> Episode:
    return encode(TASK.demonstrate(TASK.sample(seed), seed, mode, context), TOKENIZER, TINY_PROMPTS, join)


def text(tokens: list[int] | tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(list(tokens)))


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\r\x0b\x0c", exclude_categories=["Cc"])))
def test_any_ascii_text_survives(line: str) -> None:
    tokens = TOKENIZER.encode(line, add_special_tokens=False)
    if TOKENIZER.unk_token_id not in tokens:
        assert text(tokens) == line
    assert "".join(TOKENIZER.decode([token]) for token in tokens) == text(tokens)


def test_tags_and_numbers_are_single_tokens(tmp_path: Path) -> None:
    assert len(tags()) == 4 * MOST_TAGS + 4
    TOKENIZER.save_pretrained(tmp_path)
    for tokenizer in (TOKENIZER, AutoTokenizer.from_pretrained(tmp_path)):
        for word in [*tags(), *map(str, range(200)), *(f" {n}" for n in range(200))]:
            tokens = tokenizer.encode(word, add_special_tokens=False)
            assert len(tokens) == 1
            assert tokenizer.decode(tokens, skip_special_tokens=True) == word
        assert tokenizer.eos_token_id is not None


@pytest.mark.parametrize("context", ["shared", "isolated"])
def test_traces_hold_the_text_and_mark_what_was_said(context: str) -> None:
    for seed in range(20):
        demonstration = TASK.demonstrate(TASK.sample(seed), seed, context=context)
        made = encode(demonstration, TOKENIZER, TINY_PROMPTS)
        organizer, *workers = made.traces
        prompt = TINY_PROMPTS.fill("organizer", question=demonstration.question)
        assert text(organizer.tokens) == prompt + demonstration.scripts[0].text
        for trace, script in zip(made.traces, demonstration.scripts, strict=True):
            said = [token for token, drawn in zip(trace.tokens, trace.sampled, strict=True) if drawn]
            assert text(said) == "".join(piece.text for piece in script.pieces if piece.said)
            assert TOKENIZER.unk_token_id not in trace.tokens
        for worker in workers:
            seen = text(organizer.tokens[: worker.fork_at])
            assert seen.endswith(f"</FORK-{worker.fork_index}>")
        for join in organizer.joins:
            inserted = text(organizer.tokens[join.at : join.at + join.length + 1])
            assert inserted.endswith(f"</JOIN-{join.index}>")
            assert not any(organizer.sampled[join.at : join.at + join.length + 1])
            assert organizer.tokens[join.at - 1] == TOKENIZER.convert_tokens_to_ids(f"<JOIN-{join.index}>")
        assert made.critical_path_tokens < made.total_tokens


def test_rows_are_what_each_agent_sees() -> None:
    made = episode(0)
    for row, trace in zip(rows(made), made.traces, strict=True):
        assert (list(row.tokens), list(row.learned)) == (trace.tokens, trace.sampled)
        assert (row.parent, row.fork_at) == ((0, trace.fork_at) if row.role == "worker" else (None, 0))
    assert all(row.parent is None and row.fork_at == 0 for row in rows(episode(0, context="isolated")))


def test_labels_are_the_next_said_tokens() -> None:
    batch = pack([rows(episode(1)), rows(episode(2, "sequential"))], 10_000)
    flat = [row for seed, mode in ((1, "asyncthink"), (2, "sequential")) for row in rows(episode(seed, mode))]
    assert len(batch.spans) == len(flat)
    for row, span in zip(flat, batch.spans, strict=True):
        labels = batch.labels[0, span.start : span.stop].tolist()
        assert labels[-1] == IGNORED
        for place, label in enumerate(labels[:-1]):
            assert label == (row.tokens[place + 1] if row.learned[place + 1] else IGNORED)
        positions = batch.positions[0, span.start : span.stop]
        assert torch.equal(positions, torch.arange(row.fork_at, row.fork_at + len(row.tokens)))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    made = random_model(Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48), TOKENIZER, 0)
    use_packed_attention(made, moves=True)
    return made.double().eval()


def test_packed_logits_equal_each_agent_alone(model: torch.nn.Module) -> None:
    """The tree in one sequence gives what eager attention gives for every agent's context by itself."""
    alone = random_model(Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48), TOKENIZER, 0)
    alone.set_attn_implementation("eager")
    alone = alone.double().eval()
    episodes = [rows(episode(3)), rows(episode(4, "sequential")), rows(episode(5, context="isolated"))]
    batch = pack(episodes, 10_000)
    with torch.no_grad():
        packed = logits_of(model, batch)[0]
    place = iter(batch.spans)
    for agents in episodes:
        for row in agents:
            prefix = agents[row.parent].tokens[: row.fork_at] if row.parent is not None else ()
            with torch.no_grad():
                expected = alone(input_ids=torch.tensor([[*prefix, *row.tokens]])).logits[0, len(prefix) :]
            span = next(place)
            torch.testing.assert_close(packed[span.start : span.stop], expected, atol=1e-6, rtol=1e-6)


def test_packing_does_not_leak(model: torch.nn.Module) -> None:
    """Other rows' tokens do not move a row's logits by a single bit; the organizer's tail does not move a worker's."""
    shared = rows(episode(3))
    worker = next(k for k, row in enumerate(shared) if row.role == "worker")
    batch = pack([rows(episode(4, "sequential")), shared, rows(episode(6))], 10_000)
    span = batch.spans[1 + worker]
    with torch.no_grad():
        before = logits_of(model, batch)[0, span.start : span.stop]
        for k in range(batch.tokens.shape[1]):
            if not (span.start <= k < span.stop or span.prefix <= k < span.prefix_stop):
                batch.tokens[0, k] = (batch.tokens[0, k] + 7) % len(TOKENIZER)
        after = logits_of(model, batch)[0, span.start : span.stop]
        batch.tokens[0, span.prefix] = (batch.tokens[0, span.prefix] + 7) % len(TOKENIZER)
        moved = logits_of(model, batch)[0, span.start : span.stop]
    assert torch.equal(before, after)
    assert not torch.equal(before, moved)


def test_a_model_with_a_window_is_refused(model: torch.nn.Module) -> None:
    batch = pack([rows(episode(0))], 1)
    attention = model.get_submodule("model.layers.0.self_attn")
    attention.sliding_window = 4
    try:
        with pytest.raises(ValueError, match="sliding_window"):
            logits_of(model, batch)
    finally:
        attention.sliding_window = None


def test_packing_fills_whole_episodes() -> None:
    one: list[Row] = rows(episode(0))
    size = sum(len(row.tokens) for row in one)
    assert pack(itertools.repeat(one), 2 * size + 1).tokens.shape == (1, 3 * size)
    with pytest.raises(ValueError, match="at least one episode"):
        pack([], 10)


def cutter(tokenizer: PreTrainedTokenizerBase = TOKENIZER, prompts: PromptFormat = TINY_PROMPTS) -> Cutter:
    return Cutter(TASK, tokenizer, prompts, Mixture(solo=0.2, shared=0.4, isolated=0.4))


def test_batches_are_functions_of_seed_and_step() -> None:
    first, again, other = (cutter().batch(seed, 7, 600) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert first.spans == again.spans
    assert not torch.equal(first.tokens[0, :50], other.tokens[0, :50])
    assert not torch.equal(first.tokens[0, :50], cutter().batch(0, 8, 600).tokens[0, :50])


@pytest.mark.parametrize("shares", [{"solo": 1.2}, {"append": -0.1}, {"solo": 0, "shared": 0, "isolated": 0}])
def test_bad_shares_are_named(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"solo|append|mixture"):
        Mixture(**shares)


def test_append_joins_are_drawn_apart_from_the_rest() -> None:
    """With and without them the same episodes come, so that a run can add them later."""
    plain, some = (Cutter(TASK, TOKENIZER, TINY_PROMPTS, Mixture(append=share)) for share in (0.0, 0.5))
    pairs = list(itertools.islice(zip(plain.stream("x"), some.stream("x"), strict=False), 40))
    assert all([row.tokens for row in a] == [row.tokens for row in b] for a, b in pairs)
    assert not any(row.moves for a, _ in pairs for row in a)
    assert {bool(b[0].moves) for _, b in pairs if len(b) > 1} == {True, False}


@pytest.mark.parametrize("held_out", [False, True])
def test_the_stream_keeps_the_split(held_out: bool) -> None:
    kinds = set()
    for agents in itertools.islice(cutter().stream("split", held_out), 60):
        question = text(agents[0].tokens).partition("\n")[0].partition(">")[2]
        assert is_held_out(TASK.parse_prompt(question)) == held_out
        kinds |= {(row.role, row.context) for row in agents}
    assert kinds >= {("solo", "shared"), ("worker", "shared"), ("worker", "isolated"), ("organizer", "isolated")}
