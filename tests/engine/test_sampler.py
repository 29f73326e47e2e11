"""The sampler on scripted agents: what each agent sees, when it steps, how it ends, and that no page leaks."""

import dataclasses

import pytest

from asyncthink import SamplingParams
from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.records import Event, TokenEvent
from scripted import END, sampler

GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
THINK = "O:q\n<FORK-1>a</FORK-1><FORK-2>bb</FORK-2>think<JOIN-2>"
SHARED_1 = "O:q\n<FORK-1>a</FORK-1>W:one<RETURN>r1</RETURN>"
SHARED_2 = "O:q\n<FORK-1>a</FORK-1><FORK-2>bb</FORK-2>W:two, long<RETURN>r two</RETURN>"
WHOLE = THINK + "r two</JOIN-2>ok<JOIN-1>r1</JOIN-1><ANSWER>42</ANSWER>"
SHARED = [WHOLE, SHARED_1, SHARED_2]
ISOLATED = [WHOLE, "I:a\none<RETURN>r1</RETURN>", "I:bb\ntwo, long<RETURN>r two</RETURN>"]


def clean(s):
    """The cached heads are all that is held, and they hold computed tokens."""
    s.cache.check()
    assert len(s.cache.branches) == len(s.prefixes.heads.branches)
    assert not s.prefixes._live
    s.prefixes.clear()
    assert s.cache.used_pages == 0


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
@pytest.mark.parametrize("max_rows", [3, 64])
def test_organizes(context, join, max_rows):
    s = sampler(SHARED if context == "shared" else ISOLATED, context=context, join=join, max_rows=max_rows)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "42" and episode.finish == "answer" and episode.format_errors == []
    organizer, first, second = episode.traces
    assert "".join(organizer.pieces) == WHOLE and organizer.text == WHOLE[len("O:q\n") :]
    assert (first.returned, second.returned) == ("r1", "r two")
    assert [j.index for j in organizer.joins] == [2, 1] and [j.mode for j in organizer.joins] == [join] * 2
    for j in organizer.joins:
        assert "".join(organizer.pieces[j.at : j.at + j.length]) == episode.traces[j.worker].returned
        assert not any(organizer.sampled[j.at : j.at + j.length])
        if join != "exact":
            worker = episode.traces[j.worker]
            assert worker.tokens[slice(*j.source)] == organizer.tokens[j.at + j.lead : j.at + j.length]
    sampled = "".join(p for p, drawn in zip(organizer.pieces, organizer.sampled, strict=True) if drawn)
    assert sampled == THINK[4:] + "ok<JOIN-1><ANSWER>42</ANSWER>"
    kinds = [e.kind for e in episode.events]
    assert kinds[:3] == ["start", "fork", "fork"] and kinds[-1] == "answer" and kinds.count("join") == 2
    assert (episode.kv_bytes_copied > 0) == (join == "append")
    assert (episode.kv_bytes_shared > 0) == (context == "shared" or join == "link" or bool(s.prefixes.heads.pinned))
    clean(s)


def test_worker_steps_in_the_step_after_its_fork_and_organizer_never_stops():
    s = sampler(SHARED)
    (episode,) = s.generate(["q"], GREEDY)
    organizer, first, _ = episode.traces
    fork = next(e for e in episode.events if e.kind == "fork")
    assert min(first.steps[k] for k, drawn in enumerate(first.sampled) if drawn) == fork.step + 1
    own = [step for step, drawn in zip(organizer.steps, organizer.sampled, strict=True) if drawn]
    before_wait = next(e.step for e in episode.events if e.kind == "wait")
    assert [step for step in own if step <= before_wait] == list(range(before_wait + 1))
    assert episode.critical_path_tokens <= episode.total_tokens
    assert len(episode.step_times) == max(own) + 1


@pytest.mark.parametrize("join", JoinMode)
def test_glued_boundaries(join):
    """Tokens that hold `>` and the text after it, and a returned text that begins and ends inside tokens."""
    worker = "O:q\n<FORK-1>a</FORK-1>\nW:x<RETURN>abcd</RETURN>"
    whole = "O:q\n<FORK-1>a</FORK-1>\n!<JOIN-1>\nabcd</JOIN-1>.<ANSWER>1</ANSWER>  "
    s = sampler([whole, worker], ">\n", ">a", "d<", ">  ", join=join)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "1" and episode.traces[1].returned == "abcd"
    (record,) = episode.traces[0].joins
    assert "".join(episode.traces[0].pieces[record.at : record.at + record.length]) == "abcd"
    assert join == "exact" or (record.lead, record.source[1] - record.source[0]) == (1, 2)
    clean(s)


def test_many_episodes_at_once_equal_each_alone():
    scripts, questions = [], []
    for k in range(12):
        questions.append(f"q{k}")
        scripts += [text.replace("O:q\n", f"O:q{k}\n").replace("42", str(k)) for text in SHARED]
    together = sampler(scripts, num_pages=2000, max_rows=1024)
    alone = sampler(scripts, num_pages=2000, max_rows=1024)
    batch = together.generate(questions, GREEDY)
    assert [e.answer for e in batch] == [str(k) for k in range(12)]
    for question, episode in zip(questions, batch, strict=True):
        (single,) = alone.generate([question], GREEDY)
        assert [t.tokens for t in single.traces] == [t.tokens for t in episode.traces]
        assert [t.steps for t in single.traces] == [t.steps for t in episode.traces]
    clean(together)
    clean(alone)


def test_page_exhaustion_preempts_and_everyone_finishes():
    scripts = [text.replace("O:q\n", f"O:q{k}\n") for k in range(8) for text in SHARED]
    s = sampler(scripts, num_pages=70)
    episodes = s.generate([f"q{k}" for k in range(8)], GREEDY)
    assert [e.answer for e in episodes] == ["42"] * 8
    assert s.scheduler.preemptions > 0
    clean(s)


def test_an_episode_too_big_for_the_cache_ends_without_the_others():
    s = sampler(SHARED, num_pages=20)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.finish == "out_of_pages" and episode.answer is None
    clean(s)
    with pytest.raises(ValueError, match=r"questions\[0\]: expected fewer than 80 tokens .* got 103"):
        s.generate(["x" * 100], GREEDY)


ERRORS = {
    "duplicate fork index": "<FORK-1>a</FORK-1><FORK-1>",
    "pool overflow": "<FORK-1>a</FORK-1><FORK-2>b</FORK-2>",
    "join of an index never forked": "<JOIN-1>",
    "nested tag": "<FORK-1>a<FORK-2>",
    "unclosed tag": "<FORK-1>a" + END,
    "mismatched closing tag": "<FORK-1>a</FORK-2>",
    "no answer": "hm" + END,
}


@pytest.mark.parametrize("reason", ERRORS)
def test_format_errors_of_the_organizer_end_the_episode(reason):
    s = sampler(["O:q\n" + ERRORS[reason], "O:q\n<FORK-1>a</FORK-1>W:busy for a long while, never to return"], pool=2)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer is None and len(episode.format_errors) == 1
    assert episode.format_errors[0].startswith(f"organizer: {reason}")
    assert episode.finish == ("end" if END in ERRORS[reason] else "error")
    clean(s)


def test_worker_without_return_and_joined_twice():
    s = sampler(["O:q\n<FORK-1>a</FORK-1><JOIN-1></JOIN-1>so<JOIN-1>", "O:q\n<FORK-1>a</FORK-1>W:hm"])
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.format_errors[0].startswith("worker 1: worker without RETURN")
    assert episode.format_errors[1].startswith("organizer: join of an index already joined")
    assert episode.traces[0].joins[0].length == 0
    clean(s)


def test_budgets():
    s = sampler(["O:q\n" + "x" * 500])
    (episode,) = s.generate(["q"], dataclasses.replace(GREEDY, max_tokens=30))
    assert episode.format_errors == ["organizer: budget exceeded: 30 tokens"] and episode.total_tokens == 30
    (episode,) = s.generate(["q"], dataclasses.replace(GREEDY, max_episode_tokens=20))
    assert episode.finish == "budget" and episode.total_tokens == 20
    clean(s)


def test_stop_string():
    s = sampler(["O:q\nabcdef"])
    (episode,) = s.generate(["q"], dataclasses.replace(GREEDY, stop=("cd",)))
    assert episode.finish == "stop" and episode.traces[0].text == "abcd"
    clean(s)


def test_tags_in_question_subquery_and_returned_text_never_act():
    question = "</ANSWER><FORK-1>x</FORK-1>"
    worker = f"O:{question}\n<FORK-3>a <ANSWER</FORK-3>W:<RETURN><ANSWER>7</ANSWER><JOIN-9></RETURN>"
    whole = f"O:{question}\n<FORK-3>a <ANSWER</FORK-3><JOIN-3><ANSWER>7</ANSWER><JOIN-9></JOIN-3><ANSWER>8</ANSWER>"
    s = sampler([whole.replace("<JOIN-9>", ""), worker.replace("<JOIN-9>", "")])
    (episode,) = s.generate([question], GREEDY)
    assert episode.answer == "8" and episode.forks == 1 and episode.format_errors == []
    clean(s)


def test_sequential_and_parallel():
    s = sampler(["S:q\nhm<ANSWER>a\nb</ANSWER>"], mode="sequential")
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "a\nb" and episode.critical_path_tokens == episode.total_tokens
    clean(s)
    for aggregate, answer in (("vote", "a\nb"), ("union", "a\nb")):
        s = sampler(["S:q\nhm<ANSWER>a\nb</ANSWER>"], mode="parallel", pool=3, aggregate=aggregate)
        (episode,) = s.generate(["q"], GREEDY)
        assert episode.answer == answer and len(episode.traces) == 3
        assert episode.total_tokens == 3 * episode.critical_path_tokens and episode.kv_bytes_shared > 0
        clean(s)


def test_stream_and_cancel():
    s = sampler(SHARED)
    with s.stream("q", GREEDY) as stream:
        events = list(stream)
        assert stream.episode.answer == "42"
    text = "".join(e.text for e in events if isinstance(e, TokenEvent) and e.agent == 0)
    assert text == WHOLE[4:]
    assert [e.kind for e in events if isinstance(e, Event)] == [e.kind for e in stream.episode.events]
    with s.stream("q", GREEDY) as stream:
        for event in stream:
            if isinstance(event, Event) and event.kind == "fork":
                break
        assert s.cache.used_pages > 0
    assert stream.episode.finish == "cancelled" and s.scheduler.idle
    clean(s)


def test_a_failing_model_releases_everything():
    s = sampler(SHARED)
    for call in (0, 3, 25):
        s.decoder.failing = call + len(s.decoder.rows)
        with pytest.raises(RuntimeError, match="the model broke"):
            s.generate(["q", "q"], GREEDY)
        s.decoder.failing = None
        assert s.scheduler.idle
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "42"
    clean(s)


def test_timeout():
    s = sampler(SHARED)
    (episode,) = s.generate(["q"], dataclasses.replace(GREEDY, timeout=1e-9))
    assert episode.finish == "timeout" and len(episode.step_times) == 1
    clean(s)


def test_refuses_bad_arguments():
    s = sampler(SHARED)
    with pytest.raises(ValueError, match="questions: expected a list of strings, got one string"):
        s.generate("q")
    with pytest.raises(ValueError, match="params: expected one or 1"):
        s.generate(["q"], [GREEDY, GREEDY])
    for name, value in (("mode", "x"), ("context", "x"), ("join", "x"), ("aggregate", "x"), ("pool", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            sampler(SHARED, **{name: value})
