"""Nested forks on the tree cache: what workers of workers see, join by join, and that no page is left."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from scripted import END, PROMPTS, ScriptedDecoder, sampler, tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
OWN = "O:q\n<FORK-1>a</FORK-1>think<JOIN-1>"
WHOLE = OWN + "got xyz!</JOIN-1>ok<ANSWER>42</ANSWER>"
MIDDLE = "<FORK-1>b</FORK-1><FORK-2>c</FORK-2>hm<JOIN-2>two</JOIN-2>so<JOIN-1>xyz</JOIN-1><RETURN>got xyz!</RETURN>"
SHARED = [
    WHOLE,
    "O:q\n<FORK-1>a</FORK-1>F:" + MIDDLE,
    "O:q\n<FORK-1>a</FORK-1>F:<FORK-1>b</FORK-1>W:one, long<RETURN>xyz</RETURN>",
    "O:q\n<FORK-1>a</FORK-1>F:<FORK-1>b</FORK-1><FORK-2>c</FORK-2>W:<RETURN>two</RETURN>",
]
ISOLATED = [WHOLE, "J:a\n" + MIDDLE, "I:b\none, long<RETURN>xyz</RETURN>", "I:c\n<RETURN>two</RETURN>"]


def clean(s):
    s.cache.check()
    assert len(s.cache.branches) == len(s.prefixes.heads.branches)
    s.prefixes.clear()
    assert s.cache.used_pages == 0


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
@pytest.mark.parametrize("max_rows", [3, 64])
def test_a_worker_organizes(context, join, max_rows):
    s = sampler(SHARED if context == "shared" else ISOLATED, depth=2, context=context, join=join, max_rows=max_rows)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "42" and episode.format_errors == [] and episode.depth == 2
    assert [(t.parent, t.fork_index, t.returned) for t in episode.traces[1:]] == [
        (0, 1, "got xyz!"),
        (1, 1, "xyz"),
        (1, 2, "two"),
    ]
    assert "".join(episode.traces[0].pieces) == WHOLE
    assert episode.traces[1].text == MIDDLE
    for trace in episode.traces:
        for j in trace.joins:
            worker = episode.traces[j.worker]
            assert "".join(trace.pieces[j.at : j.at + j.length]) == worker.returned
            assert join == "exact" or worker.tokens[slice(*j.source)] == trace.tokens[j.at + j.lead : j.at + j.length]
    clean(s)


@pytest.mark.parametrize("join", JoinMode)
def test_an_answer_in_the_middle_of_the_tree_releases_all(join):
    scripts = [OWN.replace("<JOIN-1>", "") + "<ANSWER>0</ANSWER>", *SHARED[1:]]
    s = sampler(scripts, depth=2, join=join)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "0" and "cancelled" in {t.finish for t in episode.traces}
    clean(s)


@pytest.mark.parametrize("join", JoinMode)
def test_a_worker_that_fails_takes_its_workers_along(join):
    """Its budget ends while both of its own work; the organizer joins nothing and goes on."""
    scripts = [
        OWN + "</JOIN-1>ok<ANSWER>1</ANSWER>",
        SHARED[1][: len(SHARED[1]) - len(MIDDLE)] + MIDDLE[:38] + "x" * 99,
    ]
    scripts += [SHARED[2][:-20] + "y" * 99, SHARED[3][:-20] + "z" * 99]
    s = sampler(scripts, depth=2, join=join)
    (episode,) = s.generate(["q"], SamplingParams(temperature=0.0, max_tokens=60))
    assert episode.answer == "1" and episode.format_errors == ["worker 1: budget exceeded: 60 tokens"]
    assert [t.finish for t in episode.traces] == ["answer", "budget", "cancelled", "cancelled"]
    clean(s)


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_pauses_change_nothing(context, join):
    """Many trees on few pages: paused ones rebuild the contexts of workers that joined workers."""
    one = SHARED if context == "shared" else ISOLATED
    scripts = [t.replace("q\n", f"q{k}\n") for k in range(6) for t in (one if context == "shared" else one[:1])]
    scripts += one[1:] if context == "isolated" else []
    options = {"depth": 2, "context": context, "join": join}
    few, many = sampler(scripts, num_pages=90, **options), sampler(scripts, num_pages=2000, **options)
    got, expected = (s.generate([f"q{k}" for k in range(6)], GREEDY) for s in (few, many))
    assert few.scheduler.preemptions > 0 and many.scheduler.preemptions == 0
    assert [[t.tokens for t in e.traces] for e in got] == [[t.tokens for t in e.traces] for e in expected]
    assert [e.answer for e in got] == ["42"] * 6
    clean(few)
    clean(many)


PROGRAMS = st.lists(
    st.sampled_from(["<FORK-1>s</FORK-1>", "<FORK-2>s</FORK-2>", "<JOIN-1>", "<JOIN-2>", "t", "uvw", "<RETURN>"]),
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PROGRAMS, min_size=1, max_size=6), st.sampled_from(Context), st.sampled_from(JoinMode), st.booleans())
def test_random_programs_leave_no_page(programs, context, join, pause):
    """Agent k draws program k, then a return and its end; 0 answers. Now and then all episodes are paused."""
    s = sampler([], depth=3, context=context, join=join, pool=5)
    texts = [
        "".join(p) + ("<ANSWER>z</ANSWER>" if k == 0 else "<RETURN>r</RETURN>") + END for k, p in enumerate(programs)
    ]
    ids = [s.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def draw(logits, runs, agents):
        drawn = []
        for agent in agents:
            left = ids[agent.trace.agent % len(ids)][agent.trace.decoded :]
            drawn.append((left[0] if left else s.tokenizer.eos_token_id, -1.0))
        return drawn

    s.engine.draw = draw
    s.decoder.on_forward = lambda call: s.cache.check()
    with s._gate.enter():
        run = s._maker.run(s.request("q", GREEDY), None)
        s.scheduler.waiting.append(run)
        for step in range(2000):
            if run.done:
                break
            if pause and step % 11 == 10 and s.scheduler.running:
                run.release()
                s.scheduler.running.remove(run)
                s.scheduler.waiting.append(run)
            s.engine.step()
    assert run.done
    clean(s)


def test_a_format_without_templates_for_forking_workers_is_refused():

    tok = tokenizer()
    plain = dataclasses.replace(PROMPTS, forking_worker_shared=None)
    with pytest.raises(ValueError, match="depth: expected 1, as the prompts have no template 'forking_worker_shared'"):
        ForkJoinSampler(ScriptedDecoder(tok, []), tok, prompts=plain, depth=2)
    ForkJoinSampler(ScriptedDecoder(tok, []), tok, prompts=plain, depth=2, context="isolated")
    ForkJoinSampler(ScriptedDecoder(tok, []), tok, prompts=plain, depth=2, mode="sequential")
