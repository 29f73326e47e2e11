"""Cold-start traces: demonstrations become tokens without loss of text, rows learn only what an agent said itself."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.tasks import Countdown, Demonstration, Script, tasks
from asyncthink.tasks.countdown import is_held_out
from asyncthink.train.demonstrations import DemonstrationPacker, Mixture, encode
from asyncthink.train.loading import TINY_PROMPTS
from asyncthink.train.rows import rows
from asyncthink.train.tokenizer import MOST_TAGS, build_tokenizer, tags
from scripted import PROMPTS as SCRIPT_PROMPTS
from scripted import ScriptedDecoder
from scripted import tokenizer as char_tokenizer
from toy_tokenizers import KINDS

TOKENIZER = build_tokenizer()
TASK = Countdown()


def episode(seed: int, mode: str = "asyncthink", context: str = "shared", join: str = "exact") -> Episode:
    return encode(TASK.demonstrate(TASK.sample(seed), seed, mode, context), TOKENIZER, TINY_PROMPTS, join)


def text(tokens: list[int] | tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(list(tokens)))


@settings(deadline=None)
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
        assert (made.critical_path_tokens < made.total_tokens) == bool(workers)


def test_rows_are_what_each_agent_sees() -> None:
    made = episode(0)
    for row, trace in zip(rows(made), made.traces, strict=True):
        assert (list(row.tokens), list(row.learned)) == (trace.tokens, trace.sampled)
        assert (row.parent, row.fork_at) == ((0, trace.fork_at) if row.role == "worker" else (None, 0))
    assert all(row.parent is None and row.fork_at == 0 for row in rows(episode(0, context="isolated")))


def packer(tokenizer: PreTrainedTokenizerBase = TOKENIZER, prompts: PromptFormat = TINY_PROMPTS) -> DemonstrationPacker:
    return DemonstrationPacker([TASK], tokenizer, prompts, Mixture(solo=0.2, shared=0.4, isolated=0.4))


def test_batches_are_functions_of_seed_and_step() -> None:
    first, again, other = (packer().batch(seed, 7, 600) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert first.spans == again.spans
    assert not torch.equal(first.tokens[0, :50], other.tokens[0, :50])
    assert not torch.equal(first.tokens[0, :50], packer().batch(0, 8, 600).tokens[0, :50])


@pytest.mark.parametrize(
    "shares", [{"solo": 1.2}, {"part": 2}, {"append": -0.1}, {"solo": 0, "shared": 0, "isolated": 0}]
)
def test_bad_shares_are_named(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"solo|part|append|mixture"):
        Mixture(**shares)


def test_append_joins_are_drawn_apart_from_the_rest() -> None:
    """With and without them the same episodes come, so that a run can add them later."""
    plain, some = (DemonstrationPacker([TASK], TOKENIZER, TINY_PROMPTS, Mixture(append=share)) for share in (0.0, 0.5))
    pairs = list(itertools.islice(zip(plain.stream("x"), some.stream("x"), strict=False), 40))
    assert all([row.tokens for row in a] == [row.tokens for row in b] for a, b in pairs)
    assert not any(row.moves for a, _ in pairs for row in a)
    assert {bool(b[0].moves) for _, b in pairs if len(b) > 1} == {True, False}


def test_an_appended_return_points_at_what_the_worker_wrote() -> None:
    joins = 0
    for seed in range(10):
        made = episode(seed, join="append")
        organizer = made.traces[0]
        for join in organizer.joins:
            worker = made.traces[join.worker].tokens
            assert join.source is not None
            begin, end = join.source
            assert worker[begin:end] == organizer.tokens[join.at : join.at + join.length]
            assert text(worker[begin - 1 :]) == f"<RETURN>{text(worker[begin:end])}</RETURN>"
            joins += 1
        assert [len(row.moves) for row in rows(made)] == [len(organizer.joins)] + [0] * (len(made.traces) - 1)
    assert joins > 10


def test_a_budget_leaves_out_longer_traces() -> None:
    def longest(limit: int | None) -> list[int]:
        made = DemonstrationPacker([TASK], TOKENIZER, TINY_PROMPTS, max_tokens=limit).stream("x")
        return [max(sum(row.learned) for row in agents) for agents in itertools.islice(made, 60)]

    free = longest(None)
    limit = sorted(free)[30]
    assert max(longest(limit)) <= limit < max(free)
    assert longest(max(free)) == free  # as many tokens as the budget are within it


def test_workers_can_be_left_out_of_a_share_of_episodes() -> None:
    """Then the organizer's row comes alone, as it would have with them; a return that is moved needs its worker."""
    half = Mixture(solo=0, isolated=0, append=0.3, workers=0.5)
    some, full = (
        list(itertools.islice(DemonstrationPacker([TASK], TOKENIZER, TINY_PROMPTS, mixture).stream("x"), 80))
        for mixture in (half, dataclasses.replace(half, workers=1.0))
    )
    assert all(agents in (whole, whole[:1]) for agents, whole in zip(some, full, strict=True))
    assert all(len(agents) == len(whole) for agents, whole in zip(some, full, strict=True) if whole[0].moves)
    alone = sum(len(agents) < len(whole) for agents, whole in zip(some, full, strict=True))
    assert 10 < alone < 50


def test_several_tasks_and_every_kind_of_demonstration_are_mixed() -> None:
    mixed = DemonstrationPacker(tasks("countdown-8,sudoku-4"), TOKENIZER, TINY_PROMPTS, Mixture(0.2, 0.3, 0.3, 0.2))
    asked, parts, roles = set(), 0, set()
    for agents in itertools.islice(mixed.stream("x"), 60):
        question = text(agents[0].tokens).partition("\n")[0]
        asked.add(" from " in question)
        parts += " start:" in question
        roles |= {(row.role, row.context) for row in agents}
    assert asked == {True, False}
    assert 8 < parts < 28
    assert roles == {(r, c) for r in ("organizer", "worker") for c in ("shared", "isolated")} | {("solo", "shared")}


@pytest.mark.parametrize("held_out", [False, True])
def test_the_stream_keeps_the_split(held_out: bool) -> None:
    kinds = set()
    for agents in itertools.islice(packer().stream("split", held_out), 60):
        question = text(agents[0].tokens).partition("\n")[0].partition(">")[2]
        assert is_held_out(TASK.parse_prompt(question)) == held_out
        kinds |= {(row.role, row.context) for row in agents}
    assert kinds >= {("solo", "shared"), ("worker", "shared"), ("worker", "isolated"), ("organizer", "isolated")}


OWN_PROMPTS = PromptFormat("Solve: {question}\n", "Work: {subquery}\n", "Work alone: {subquery}\n", "{question}\n")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "glued"])
@pytest.mark.parametrize("join", ["exact", "append"])
def test_any_tokenizer_keeps_the_text_of_prompts_and_joins(kind: str, join: str) -> None:
    """Tags of many tokens, tokens that hold a part of a tag, dummy prefixes: nothing is assumed of any of them."""
    tokenizer = KINDS[kind]()
    codec = Codec(tokenizer)
    for seed, context in ((0, "shared"), (1, "isolated"), (2, "shared")):
        demonstration = TASK.demonstrate(TASK.sample(seed), seed, context=context)
        made = encode(demonstration, tokenizer, OWN_PROMPTS, join)
        organizer, *workers = made.traces
        parts = OWN_PROMPTS.parts("organizer", question=demonstration.question)
        prompt = codec.encode(parts)
        assert organizer.tokens[: organizer.sampled.index(True)] == prompt
        text_ = codec.decode(organizer.tokens)
        assert text_ == codec.decode(prompt) + demonstration.scripts[0].text
        for record in organizer.joins:
            stop = record.at + record.length
            worker = workers[record.worker - 1]
            returned = demonstration.scripts[record.worker].text.partition("<RETURN>")[2].removesuffix("</RETURN>")
            start = codec.decode(organizer.tokens[: record.at])
            assert codec.decode(organizer.tokens[:stop]) == start + returned
            closing = codec.encode([(f"</JOIN-{record.index}>", True)], continues=True)
            assert organizer.tokens[stop : stop + len(closing)] == closing
            assert (record.source is not None) == (join == "append")
            if record.source:
                begin, end = record.source
                assert worker.tokens[begin:end] == organizer.tokens[record.at + record.lead :][: end - begin]
        assert len(rows(made)[0].moves) == (len(organizer.joins) if join == "append" else 0)


def written(context: str) -> Demonstration:
    """Two workers; their returns begin and end inside tokens of :func:`char_tokenizer` with the words below."""
    organizer, first, second = Script("organizer"), Script("worker", 1, 1, "a"), Script("worker", 2, 2, " b")
    for text in ("<FORK-1>a</FORK-1>", "<FORK-2> b</FORK-2>", "so <JOIN-2>"):
        organizer.say(text)
    organizer.insert(" \nend</JOIN-2>")
    organizer.say("and <JOIN-1>")
    organizer.insert("</JOIN-1>")
    organizer.say("<ANSWER>7</ANSWER>")
    first.say("hm<RETURN></RETURN>")
    second.say("well<RETURN> \nend</RETURN>")
    return Demonstration("q", "asyncthink", context, 3, [organizer, first, second])


@pytest.mark.parametrize("context", ["shared", "isolated"])
@pytest.mark.parametrize("join", ["exact", "append"])
def test_the_sampler_would_have_recorded_the_same(context: str, join: str) -> None:
    """A sampler whose model says what the demonstration says makes the same tokens, marks and joins."""
    tokenizer = char_tokenizer("d<", "N> ", "ll")
    demonstration = written(context)
    made = encode(demonstration, tokenizer, SCRIPT_PROMPTS, join)
    organizer, *workers = made.traces
    before = [organizer.tokens[: worker.fork_at] if context == "shared" else [] for worker in workers]
    seen = [trace.tokens for trace in made.traces]
    seen[1:] = [prefix + worker.tokens for prefix, worker in zip(before, workers, strict=True)]
    decoder = ScriptedDecoder(tokenizer, [tokenizer.decode(tokens) for tokens in seen])
    sampler = ForkJoinSampler(decoder, tokenizer, prompts=SCRIPT_PROMPTS, context=context, join=join)
    (drawn,) = sampler.generate([demonstration.question], SamplingParams(temperature=0.0, max_tokens=200))
    assert (drawn.answer, drawn.format_errors) == ("7", [])
    for ours, theirs in zip(made.traces, drawn.traces, strict=True):
        for name in ("tokens", "sampled", "fork_index", "fork_at", "text", "joins"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert [(record.lead, record.length, record.source is None) for record in organizer.joins] == [
        (1, 5, join == "exact"),
        (0, 0, True),
    ]


def test_a_demonstration_must_insert_what_was_returned() -> None:
    demonstration = TASK.demonstrate(TASK.sample(0), 0)
    script = demonstration.scripts[0]
    number = next(k for k, piece in enumerate(script.pieces) if not piece.said)
    script.pieces[number] = dataclasses.replace(script.pieces[number], text="9" + script.pieces[number].text)
    with pytest.raises(ValueError, match=r"join \d: expected what the worker returned, .* got '9"):
        encode(demonstration, TOKENIZER, TINY_PROMPTS)
