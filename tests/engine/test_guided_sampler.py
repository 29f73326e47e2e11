"""Guides on random episodes: tokens that mean nothing, the real engine, every kind of tokenizer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncthink import SamplingParams
from asyncthink.episode.records import Episode
from guided import broken, random_sampler
from toy_tokenizers import KINDS

TOKENIZERS: dict[str, Callable[[], Any]] = {
    name: KINDS[name] for name in ("byte-level, merged", "metaspace first", "glued")
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"join": "append", "max_length": 160},
    {"join": "link", "context": "isolated", "pool": 3},
    {"max_length": 75, "pool": 2},
    {"mode": "parallel", "max_length": 200},
    {"mode": "sequential"},
)


def params(seed: int, least: int) -> SamplingParams:
    """Budgets from the smallest on: of an agent, of the episode."""
    tokens, episode = (least, 6, 25, 60, 300)[seed % 5], (None, None, 4 * least, 60)[seed // 5 % 4]
    return SamplingParams(seed=seed, max_tokens=tokens, max_episode_tokens=episode)


def episodes(kind: str, guide: str, count: int) -> Iterator[tuple[Episode, SamplingParams]]:
    """``count`` random episodes, under each of the settings in turn."""
    tok = TOKENIZERS[kind]()
    for number, options in enumerate(SETTINGS):
        seeds = range(number, count, len(SETTINGS))
        sampler = random_sampler(tok, guide=guide, **options)
        sets = [params(seed, 3 if guide == "plan" else 1) for seed in seeds]
        yield from zip(sampler.generate(["q"] * len(sets), sets), sets, strict=True)
        sampler.prefixes.clear()
        assert sampler.cache.free_pages == sampler.cache.num_pages


def check(kind: str, guide: str, count: int) -> dict[str, int]:
    """Forks, joins and episodes with errors; no episode under a guide has one, and none exceeds its budgets."""
    sums = {"episodes": 0, "forks": 0, "joins": 0, "errors": 0}
    for episode, limits in episodes(kind, guide, count):
        error = broken(episode)
        if guide != "off":
            assert not error, (limits, error)
            assert all(trace.decoded <= limits.max_tokens for trace in episode.traces)
            assert limits.max_episode_tokens is None or episode.total_tokens <= limits.max_episode_tokens
        new = (1, episode.forks, episode.joins, bool(error))
        sums = {name: value + more for (name, value), more in zip(sums.items(), new, strict=True)}
    return sums


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_format_error_can_be_drawn(kind):
    legal, off = check(kind, "legal", 100), check(kind, "off", 100)
    assert legal["forks"] > 3
    assert off["errors"] > 50


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_plan_forks_joins_and_answers(kind):
    for episode, limits in episodes(kind, "plan", 60):
        assert not broken(episode), limits
        if episode.mode == "asyncthink" and limits.max_episode_tokens is None:
            assert episode.joins == episode.forks
        for trace in episode.traces[1:]:
            assert trace.finish in ("return", "answer", "cancelled", "length")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ten_thousand_random_episodes(kind):
    for guide in ("off", "legal", "plan"):
        print(kind, guide, check(kind, guide, 3400))


@pytest.mark.parametrize(("guide", "pages"), [("legal", 60), ("plan", 110)])
def test_pauses_change_nothing(guide, pages):
    tok = TOKENIZERS["glued"]()
    sets = [SamplingParams(seed=seed, max_tokens=60) for seed in range(8)]
    roomy = random_sampler(tok, guide=guide, join="append").generate(["q"] * 8, sets)
    narrow = random_sampler(tok, guide=guide, join="append", num_pages=pages)
    paused = narrow.generate(["q"] * 8, sets)
    assert narrow.scheduler.preemptions > 0
    assert [[t.tokens for t in e.traces] for e in paused] == [[t.tokens for t in e.traces] for e in roomy]
    assert not any(map(broken, paused))
