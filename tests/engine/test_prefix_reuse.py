"""What episodes share through heads: chats, groups, documents; and that nothing half-written or outdated is kept."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from test_sampler import GREEDY, SHARED, clean

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode, Event
from asyncthink_kernels.cache import OutOfPages
from scripted import PROMPTS, ScriptedDecoder, sampler, tokenizer

LONG = "a shared document of many words " * 3


def alone(scripts: list[str], **options: object) -> ForkJoinSampler:
    return sampler(scripts, mode="sequential", **options)


def held(s: ForkJoinSampler) -> list[str]:
    """The text of each kept head."""
    return [s.tokenizer.decode(s.decoder.slots[s.cache.slots(head.branch)].tolist()) for head in s.prefixes.heads._kept]


def test_the_second_turn_of_a_chat_computes_its_new_tokens_alone() -> None:
    first = f"S:{LONG}\nfine"
    second = f"{first} and more\n<ANSWER>2</ANSWER>"
    s = alone([first, second])
    (one,) = s.generate([LONG], dataclasses.replace(GREEDY, max_tokens=4))
    before = sum(s.decoder.rows)
    (two,) = s.generate([f"{LONG}\nfine and more"], GREEDY)
    assert two.answer == "2" and one.prefix_tokens == len("S:")
    assert two.prefix_tokens == len(first) - (1 if one.finish == "budget" else 0)
    drawn = len("<ANSWER>2</ANSWER>")
    assert sum(s.decoder.rows) - before == len(" and more\n") + 1 + drawn - 1
    stats = s.stats
    assert stats.prompt_tokens == len(first) - 4 + len(second) - drawn
    assert stats.prefix_tokens == stats.saved_tokens == one.prefix_tokens + two.prefix_tokens
    assert (stats.heads, stats.pinned, stats.steps) == (1, 1, len(s.decoder.rows) - 1)
    assert stats.drawn_tokens == 4 + drawn and stats.free_pages == s.cache.free_pages
    clean(s)


@pytest.mark.parametrize("max_rows", [5, 1024])
def test_a_group_is_prefilled_once(max_rows: int) -> None:
    prompt = f"S:{LONG}\n"
    s = alone([f"{prompt}<ANSWER>1</ANSWER>"], max_rows=max_rows)
    episodes = s.generate([LONG] * 8, GREEDY)
    assert [e.answer for e in episodes] == ["1"] * 8
    assert [e.prefix_tokens for e in episodes] == [2] + [len(prompt) - 1] * 7
    drawn = len("<ANSWER>1</ANSWER>") - 1  # the last one is not fed
    assert sum(s.decoder.rows) == len(prompt) + 7 + 8 * drawn
    clean(s)


def test_episodes_with_a_common_head_wait_for_the_one_that_computes_it() -> None:
    questions = [LONG + end for end in ("one", "two", "three")]
    s = alone([f"S:{q}\n<ANSWER>{q[-3:]}</ANSWER>" for q in questions], max_rows=7)
    episodes = s.generate([*questions, "other"], GREEDY)
    assert [e.answer for e in episodes] == ["one", "two", "ree", None]
    head = len("S:" + LONG)
    assert [e.prefix_tokens for e in episodes] == [2, head, head, 2], "nobody waits for a token"
    clean(s)


def test_the_one_that_computes_a_head_may_be_cancelled() -> None:
    s = alone([f"S:{LONG}\n<ANSWER>1</ANSWER>"], max_rows=7)
    first, second, third = (s.stream(LONG, GREEDY) for _ in range(3))
    for _ in range(4):
        s.step()
    waiting = [run.agents[0] for run in s.scheduler.running[1:]]
    assert all(agent.held is None and agent.source is not None for agent in waiting)
    first.close()
    assert list(second) and list(third)
    assert second.episode.answer == third.episode.answer == "1"
    assert second.episode.prefix_tokens == 2 + 4 * 7, "what the cancelled one had computed"
    assert third.episode.prefix_tokens == len(f"S:{LONG}")
    clean(s)


def test_the_one_that_computes_a_head_may_be_paused() -> None:
    s = alone([f"S:{LONG}\n<ANSWER>1</ANSWER>"], max_rows=7)
    streams = [s.stream(LONG, GREEDY) for _ in range(2)]
    s.step()
    run = s.scheduler.running[0]
    run.release()
    run.start()
    for stream in streams:
        list(stream)
    assert [stream.episode.answer for stream in streams] == ["1", "1"]
    clean(s)


def test_a_pause_computes_little_again() -> None:
    s = alone([f"S:{LONG}\n{'x' * 50}<ANSWER>1</ANSWER>"])
    with s.stream(LONG, GREEDY) as stream:
        for _ in range(30):
            s.step()
        before = sum(s.decoder.rows)
        run = s.scheduler.running[0]
        run.release()
        run.start()
        s.step()
        assert sum(s.decoder.rows) - before <= 2
        list(stream)
        assert stream.episode.answer == "1" and stream.episode.prefix_tokens == 2
    assert s.stats.saved_tokens > s.stats.prefix_tokens
    clean(s)


def test_least_recently_used_heads_go_before_an_episode_is_paused() -> None:
    questions = [letter * 30 for letter in "abcd"]
    s = alone([f"S:{q}\n<ANSWER>{q[0]}</ANSWER>" for q in questions], num_pages=34)
    for q in questions[:2]:
        s.generate([q], GREEDY)
    s.generate([questions[0]], GREEDY)
    assert [text[2] for text in held(s)] == ["b", "a"]
    s.generate([questions[2]], GREEDY)
    assert [text[2] for text in held(s)] == ["a", "c"]
    assert s.stats.evictions == 1 and s.stats.preemptions == 0
    clean(s)


def test_pages_of_heads_count_as_free_for_admission() -> None:
    questions = [letter * 30 for letter in "abcd"]
    s = alone([f"S:{q}\n{'x' * 8}<ANSWER>{q[0]}</ANSWER>" for q in questions], num_pages=36)
    for q in questions[:2]:
        s.generate([q], GREEDY)
    assert s.cache.free_pages < 9 + 1
    streams = [s.stream(q, GREEDY) for q in questions[2:]]
    s.step()
    assert len(s.scheduler.running) == 2
    for stream in streams:
        list(stream)
    assert s.scheduler.preemptions == 0
    clean(s)


def test_an_unpinned_head_never_costs_an_answer() -> None:
    """A cache that just holds one episode answers one after another."""
    questions = [letter * 60 for letter in "abcdef"]
    s = alone([f"S:{q}\n<ANSWER>{q[0]}</ANSWER>" for q in questions], num_pages=24)
    for q in questions:
        assert s.generate([q], GREEDY)[0].answer == q[0]
    clean(s)


@pytest.mark.parametrize("pages", [0, 5, 12])
def test_the_pages_of_heads_are_bounded(pages: int) -> None:
    questions = [letter * 14 for letter in "abcdef"]
    s = alone([f"S:{q}\n<ANSWER>1</ANSWER>" for q in questions], prefix_pages=pages)
    for q in [*questions, *questions]:
        (episode,) = s.generate([q], GREEDY)
        assert episode.answer == "1"
        assert s.stats.head_pages <= pages + 1
    assert s.stats.heads == pages // 9
    clean(s)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"prefix_pages: expected an integer >= 0 or None, got"):
            alone([], prefix_pages=wrong)


def test_without_heads_nothing_is_shared_or_waited_for() -> None:
    s = alone([f"S:{LONG}\n<ANSWER>1</ANSWER>"], prefix_pages=0, max_rows=1024)
    episodes = s.generate([LONG] * 3, GREEDY)
    assert [e.prefix_tokens for e in episodes] == [2] * 3
    assert episodes[0].traces[0].steps == episodes[2].traces[0].steps
    assert len(s.cache.branches) == 1
    clean(s)


def test_a_pinned_document_stays_and_is_read_in_place() -> None:
    s = alone([f"S:{LONG}{end}\n<ANSWER>1</ANSWER>" for end in "xyz"], num_pages=60)
    s.pin(LONG)
    pinned = s.cache.used_pages
    s.generate([f"{LONG}x"], GREEDY)
    while s.prefixes.heads.evict():
        pass
    assert s.cache.used_pages == pinned and s.stats.pinned == 2
    with s.stream(f"{LONG}y", GREEDY) as stream:
        next(stream)
        s.step()
        assert s.cache.used_pages == pinned + 1, "nothing was copied"
        list(stream)
    assert stream.episode.prefix_tokens == len("S:" + LONG)
    s.unpin(LONG)
    assert s.cache.used_pages == 1 and s.stats.pinned == 1
    with pytest.raises(ValueError, match="unpin: expected a question that is pinned"):
        s.unpin(LONG)
    with pytest.raises(ValueError, match=r"question: expected fewer than 240 tokens"):
        s.pin("x" * 300)
    with s.stream("z" * 100, GREEDY):
        s.step()
        with pytest.raises(OutOfPages):
            s.pin("y" * 180)
    assert s.stats.pinned == 1
    clean(s)


def test_a_change_of_weights_drops_all_and_pinned_ones_come_back() -> None:
    s = alone([f"S:{LONG}{end}\n<ANSWER>1</ANSWER>" for end in "xyz"])
    version = 0
    s.decoder.weights_version = lambda: version  # type: ignore[method-assign]
    s.prefixes.heads.version = version
    s.pin(LONG)
    (before,) = s.generate([f"{LONG}x"], GREEDY)
    assert before.prefix_tokens == len("S:" + LONG) and s.stats.heads == 1
    version = 1
    rows = sum(s.decoder.rows)
    (after,) = s.generate([f"{LONG}x"], GREEDY)
    assert after.prefix_tokens == before.prefix_tokens
    drawn = len("<ANSWER>1</ANSWER>") - 1
    # The template's prefix, then the document and its end behind it, then the two tokens that follow in the prompt.
    assert sum(s.decoder.rows) - rows == len("S:") + len(f"{LONG}\n") + len("x\n") + drawn
    with s.stream(f"{LONG}y", GREEDY) as stream:
        next(stream)
        version = 2
        list(stream)
    assert not held(s), "an episode that began under other weights leaves no head"
    version = 3
    clean(s)


def test_heads_end_before_the_first_join_of_other_keys() -> None:
    for join in ("exact", "append", "link"):
        s = sampler(SHARED, join=join)
        assert s.generate(["q"], GREEDY)[0].answer == "42"
        (text,) = held(s)
        whole = SHARED[0][: -len(">")]
        assert text == (whole if join == "exact" else SHARED[0][: SHARED[0].index("<JOIN-2>") + len("<JOIN-2>")])
        assert len(s.cache.branches) == 2
        clean(s)


def test_a_failed_pass_leaves_computed_tokens_alone() -> None:
    s = alone([f"S:{LONG}\n<ANSWER>1</ANSWER>"], max_rows=7)
    s.decoder.failing = 4
    with pytest.raises(RuntimeError, match="the model broke"):
        s.generate([LONG], GREEDY)
    assert held(s) == [f"S:{LONG}"[: 2 + 3 * 7]]
    s.decoder.failing = None
    (episode,) = s.generate([LONG], GREEDY)
    assert episode.answer == "1" and episode.prefix_tokens == 2 + 3 * 7
    clean(s)


def test_an_agent_whose_logits_are_no_numbers_leaves_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    s = alone([f"S:{LONG}\n<ANSWER>1</ANSWER>"])
    forward = s.decoder.forward
    monkeypatch.setattr(s.decoder, "forward", lambda *args: torch.full_like(forward(*args), torch.nan))
    assert s.generate([LONG], GREEDY)[0].finish == "failed"
    assert not held(s)
    clean(s)


def test_an_episode_out_of_pages_leaves_what_it_computed() -> None:
    s = alone([f"S:{'q' * 40}\n{'x' * 200}"], num_pages=20)
    (episode,) = s.generate(["q" * 40], GREEDY)
    assert episode.finish == "out_of_pages"
    (text,) = held(s)
    assert f"S:{'q' * 40}\n{'x' * 200}".startswith(text) and len(text) == 2 + (20 - 1) * 4
    clean(s)


def test_samplers_of_a_decoder_share_heads_and_room() -> None:
    tok = tokenizer()
    decoder = ScriptedDecoder(tok, [f"S:{q}\n<ANSWER>1</ANSWER>" for q in ("a" * 60, "b" * 60)], num_pages=30)
    first, second = (ForkJoinSampler(decoder, tok, prompts=PROMPTS, mode="sequential") for _ in range(2))
    first.generate(["a" * 60], GREEDY)
    (again,) = second.generate(["a" * 60], GREEDY)
    assert again.prefix_tokens == len("S:" + "a" * 60)
    assert second.generate(["b" * 60], GREEDY)[0].answer == "1"
    assert second.stats.evictions == first.stats.evictions == 1
    clean(second)


def test_heads_of_a_forgotten_sampler_make_room() -> None:
    tok = tokenizer()
    decoder = ScriptedDecoder(tok, [f"S:{'b' * 60}\n<ANSWER>1</ANSWER>"], num_pages=26)
    first = ForkJoinSampler(decoder, tok, prompts=dataclasses.replace(PROMPTS, solo="P" * 60 + "{question}"))
    first.prefixes.prepare(["solo"])
    second = ForkJoinSampler(decoder, tok, prompts=PROMPTS, mode="sequential")
    assert second.generate(["b" * 60], GREEDY)[0].finish == "out_of_pages"
    del first
    gc.collect()
    assert second.generate(["b" * 60], GREEDY)[0].answer == "1"
    clean(second)


def test_stats_are_refused_within_a_step_and_old_records_load() -> None:
    s = sampler(SHARED)

    def listen(number: int, event: object) -> None:
        if isinstance(event, Event):
            _ = s.stats

    with pytest.raises(RuntimeError, match="from within its own step"):
        s.generate(["q"], GREEDY, on_event=listen)
    (episode,) = s.generate(["q"], SamplingParams(temperature=0.0, max_tokens=200))
    data = episode.to_dict()
    assert data.pop("prefix_tokens") == episode.prefix_tokens > 0
    assert Episode.from_dict(data).prefix_tokens == 0
    assert s.stats.hit_rate == s.stats.prefix_tokens / s.stats.prompt_tokens
    clean(s)
