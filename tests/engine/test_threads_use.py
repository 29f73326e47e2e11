"""Threads as programs use them: what is refused, what is released, several OS threads, coroutines, full caches."""

import asyncio
import gc
import threading

import pytest
import torch

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.thoughts import Think
from asyncthink.engine.thread_jobs import Reader
from scripted import END, PROMPTS, sampler, tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=30)
SHORT = SamplingParams(temperature=0.0, max_tokens=3)


def engine(*scripts, **options):
    return sampler([script + END for script in scripts], **options)


def empty(made):
    with made.decoder.gate.enter():  # whoever still works catches up
        made.cache.check()
    return made.cache.used_pages == 0 and made.scheduler.idle


def test_what_cannot_be_used_is_refused_and_nothing_changes():
    made, other = engine("abc"), engine("abc")
    with made.thread("a") as root, other.thread("a") as stranger:
        (fork,) = root.fork()
        fork.close()
        fork.close()
        before = root.tokens
        for use in (
            lambda: fork.think(),
            lambda: fork.write("x"),
            lambda: fork.tokens,
            lambda: len(fork),
            lambda: fork.fork(),
            lambda: fork.score(["x"]),
            lambda: fork.truncate(1),
            lambda: root.join(fork),
            lambda: made.think([root, fork]),
            fork.__enter__,
        ):
            with pytest.raises(ValueError, match="thread 1: expected an open thread, got a closed one"):
                use()
        for message, use in {
            "join: expected another thread, got this one itself": lambda: root.join(root),
            "join: expected a thread of the same engine": lambda: root.join(stranger),
            "mode: this model offers exact, append, link, got 'glue'": lambda: root.join(root.fork()[0], mode="glue"),
            "what: expected a thought that is still in thread 3": lambda: root.join(root.fork()[0], what="thought"),
            'what: expected "text" or "thought"': lambda: root.join(root.fork()[0], what="all"),
            r"at: expected an integer in \[1, 1\], got 0": lambda: root.fork(at=0),
            "n: expected an integer at least 1, got 0": lambda: root.fork(0),
            r"length: expected an integer in \[0, 1\], got 2": lambda: root.truncate(2),
            "threads: expected each thread once": lambda: made.think([root, root]),
            r"params: expected one or 1 \(one a thread\), got 2": lambda: made.think([root], [GREEDY, GREEDY]),
            r"params\[0\]: expected SamplingParams, got dict": lambda: made.think([root], [{}]),
            "max_episode_tokens: expected None": lambda: root.think(SamplingParams(max_episode_tokens=4)),
            "guide: expected one of .*, got regex, json_schema": lambda: root.think(regex="a", json_schema={}),
            "choices: expected a list of texts": lambda: root.think(choices=["a", ""]),
            r"continuations\[1\]: expected at least one token": lambda: root.score(["x", ""]),
            "continuations: expected a list": lambda: root.score("abc"),
            "prompt: expected at least one token, got none": lambda: made.thread(""),
            "prompt: expected text, as this tokenizer has no chat template": lambda: made.thread(
                [{"role": "user", "content": "x"}]
            ),
            "text: expected text, as this tokenizer": lambda: root.write([{"role": "user", "content": "x"}]),
            "surrogate": lambda: root.write("\ud800"),
        }.items():
            with pytest.raises(ValueError, match=message):
                use()
        assert root.tokens == before and root.think(GREEDY).text == "bc"
        with pytest.raises(ValueError, match="thread 0: expected at least one token to go on behind, got none"):
            root.truncate(0).think()
    assert empty(made)


def test_a_context_that_is_too_long_is_refused():
    made = engine("x" * 200, num_pages=10)
    with made.thread("x" * 30) as root:
        for message, use in {
            r"prompt: expected fewer than 40 tokens .*got 40": lambda: made.thread("x" * 40),
            r"text behind the thread: expected fewer than 40 .*got 40": lambda: root.write("y" * 10),
            r"join behind the thread: .* got 48": lambda: root.join([root.fork()[0].write("z" * 9)] * 2),
            r"continuations\[0\] behind the thread: .*got 40": lambda: root.score(["y" * 11]),
        }.items():
            with pytest.raises(ValueError, match=message):
                use()
        made.decoder.max_length = 33
        root.think(GREEDY)
        assert (root.finish, len(root)) == ("length", 33)
        with pytest.raises(ValueError, match=r"thread 0: expected fewer than 33 tokens \(the positions"):
            root.think()
    assert empty(made)


def test_a_join_mode_that_the_model_lacks_says_why():
    tok = tokenizer()
    made = ForkJoinSampler(tm.tiny("gpt2", vocab_size=len(tok)), tok, prompts=PROMPTS, num_pages=50)
    with made.thread("ab") as root:
        (fork,) = root.fork()
        with pytest.raises(ValueError, match="mode: this model offers exact, got 'append': gpt2 can only join exactly"):
            root.join(fork.write("xyz"), mode="append")
        root.join(fork).think(SHORT)


def test_forks_outlive_their_parent_and_pages_are_those_that_they_see():
    made = engine("abcdefgh" + "x" * 30, num_pages=50)
    with made.thread("abcdefgh") as root:
        root.think(SamplingParams(temperature=0.0, max_tokens=20))
        (fork,) = root.fork(at=8)
    assert len(made.threads.pool.kept) == 1 and made.cache.used_pages == 2
    assert fork.think(SHORT).text == "xxx"
    fork.close()
    assert empty(made)


def test_a_thread_without_references_is_closed():
    made = engine("abc")
    made.thread("a").think(GREEDY)
    gc.collect()
    assert empty(made)


def test_threads_and_episodes_share_steps():
    made = engine("S:q\nxxxxxxxx<ANSWER>1</ANSWER>", "abcdefgh", mode="sequential")
    with made.thread("a") as root, made.stream("q", GREEDY) as stream:
        root.think(GREEDY)
        assert 2 in made.decoder.rows and root.text == "bcdefgh" and root.finish == "end"
        assert stream.episode.traces[0].decoded > 6
        list(stream)
        assert stream.episode.answer == "1"
    made.prefixes.clear()
    assert empty(made)


@pytest.mark.parametrize("pages", [16, 24, 60])
def test_full_caches_pause_and_evict_but_change_no_text(pages):
    scripts = [f"shared prefix {k}{str(k) * 24}" for k in range(6)]
    made = engine(*scripts, num_pages=pages)
    with made.thread("shared prefix ") as root:
        drafts = [draft.write(str(k)) for k, draft in enumerate(root.fork(6))]
        made.think(drafts, GREEDY)
        assert [draft.text for draft in drafts] == [str(k) * 25 for k in range(6)]
        assert bool(made.scheduler.preemptions) is (pages < 60)
        episode = made.stream("q", GREEDY)
        list(episode)
        for draft in drafts:
            assert draft.truncate(len(root) + 3).think(GREEDY).text == str(draft.number - 1) * 25
            draft.close()
    made.prefixes.clear()
    assert empty(made)


def test_a_thread_that_is_alone_and_does_not_fit_ends():
    made = engine("x" * 300, num_pages=6)
    with made.thread("x" * 10) as root:
        root.think(SamplingParams(temperature=0.0, max_tokens=100))
        assert root.finish == "out_of_pages" and len(root) == 25 and made.cache.used_pages == 0
        with pytest.raises(ValueError, match="thread 0: expected fewer than 24"):
            root.think()
        assert root.truncate(20).think(SHORT).text == "x" * 13


def test_a_broken_step_keeps_the_tokens_and_no_pages():
    made = engine("abcdefghij")
    with made.thread("a") as root:
        (fork,) = root.fork()
        made.decoder.failing = 4
        with pytest.raises(RuntimeError, match="the model broke"):
            made.think([root, fork], GREEDY)
        assert root.text == fork.text == "bcde" and root.finish == "cancelled"
        assert made.cache.used_pages == 0
        made.decoder.failing = None
        assert root.think(GREEDY).text == "bcdefghij"
        fork.close()
    assert empty(made)


def test_logits_without_a_finite_value_are_an_error():
    made = engine("abcdefghij")
    forward = made.decoder.forward
    with made.thread("a") as root:
        (fork,) = root.fork()
        broken = [True]

        def breaks_once(*args):
            logits = forward(*args)
            return logits.index_fill(0, torch.tensor([0]), torch.nan) if broken and broken.pop() else logits

        made.decoder.forward = breaks_once
        with pytest.raises(RuntimeError, match="thread 0: its logits hold NaN or no finite value"):
            made.think([root, fork], GREEDY)
        assert (root.finish, fork.text) == ("error", "bcdefghij")
        broken.append(True)
        with pytest.raises(RuntimeError, match="thread 0: its logits hold NaN"):
            root.score(["b"])
        assert root.score(["b"])[0].total == pytest.approx(0, abs=1e-4)
        fork.close()


def test_time_ends_a_thought():
    made = engine("a" * 100)
    with made.thread("a") as root:
        state, now = root.still(), iter(range(100))
        job = Think(
            Reader(state.stretch, 1, 0, writes=True), made.threads.pool, made.prefixes,
            SamplingParams(temperature=0.0, timeout=4.0), codec=made.codec, max_length=None,
            clock=lambda: next(now) + 1,
        )  # fmt: skip
        made.threads.stepper.run([job])
        assert (job.finish, job.text) == ("timeout", "aaaa")


def test_os_threads_share_steps_and_a_busy_thread_is_left_alone():
    made = engine(*(f"{k}{str(k) * 60}" for k in range(4)))
    roots = [made.thread(str(k)) for k in range(4)]
    entered, go_on, errors = threading.Event(), threading.Event(), []

    def pause(step):
        if step == 2:
            entered.set()
            go_on.wait()

    made.decoder.on_forward = pause
    params = SamplingParams(temperature=0.0, max_tokens=50)
    workers = [threading.Thread(target=root.think, args=(params,)) for root in roots]
    workers[0].start()
    entered.wait()
    for worker in workers[1:]:
        worker.start()

    def use():
        for call in (lambda: roots[0].write("x"), lambda: roots[0].think(), lambda: roots[1].join(roots[0])):
            with pytest.raises(RuntimeError, match="expected it at rest, but it is thinking"):
                call()
            errors.append(1)

    user = threading.Thread(target=use)
    user.start()
    go_on.set()
    for worker in (*workers, user):
        worker.join()
    assert [root.text for root in roots] == [str(k) * 50 for k in range(4)]
    assert max(made.decoder.rows) == 4 and len(errors) == 3
    for root in roots:
        root.close()
    assert empty(made)


def test_coroutines_share_steps():
    made = engine(*(f"{k}{str(k) * 20}" for k in range(5)))

    async def one(k):
        with made.thread(str(k)) as root:
            await root.athink(GREEDY)
            assert (await root.ascore(["x"]))[0].total < -10
            return root.text

    async def main():
        return await asyncio.gather(*(one(k) for k in range(5)))

    assert asyncio.run(main()) == [str(k) * 20 for k in range(5)]
    assert max(made.decoder.rows) == 5 and len(made.decoder.rows) < 40
    if (thread := made.threads.stepper._thread) is not None:
        thread.join()  # it ends by itself
    assert made.threads.stepper._thread is None
    assert empty(made)


def test_a_cancelled_task_stops_its_threads_drawing():
    made = engine("a" * 500, "b" * 60)
    entered = threading.Event()
    made.decoder.on_forward = lambda step: step == 3 and entered.set()
    long = SamplingParams(temperature=0.0, max_tokens=400)

    async def main():
        with made.thread("a") as a, made.thread("b") as b:
            tasks = [asyncio.create_task(a.athink(long)), asyncio.create_task(made.athink([b], GREEDY))]
            await asyncio.to_thread(entered.wait)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            drawn = len(a)
            assert a.finish == "cancelled" and a.text == "a" * (drawn - 1) and drawn < 400
            await tasks[1]
            assert b.text == "b" * 30 and len(a) == drawn
            assert (await a.athink(SHORT)).text == "a" * (drawn + 2)

    asyncio.run(main())
    assert empty(made)


def test_a_broken_step_reaches_every_coroutine():
    made = engine("a" * 50, "b" * 50)
    made.decoder.failing = 5

    async def main():
        with made.thread("a") as a, made.thread("b") as b:
            results = await asyncio.gather(a.athink(GREEDY), b.athink(GREEDY), return_exceptions=True)
            assert [str(error) for error in results] == ["the model broke"] * 2
            made.decoder.failing = None
            await made.athink([a, b], SHORT)

    asyncio.run(main())
    assert empty(made)


def test_closing_a_thread_ends_its_thought():
    made = engine("a" * 500, "b" * 500)
    with made.thread("a") as a, made.thread("b") as b:
        made.decoder.on_forward = lambda step: step == 3 and a.close()
        with pytest.raises(ValueError, match="thread 0: it was closed while it was at work"):
            made.think([a, b], GREEDY)
        assert a.closed and b.text == "b" * 30
    assert empty(made)


def test_a_listener_may_not_think():
    made = engine("S:q\nx<ANSWER>1</ANSWER>", "abc", mode="sequential")
    with made.thread("a") as root:
        with pytest.raises(RuntimeError, match="expected a call from outside"):
            made.generate(["q"], GREEDY, on_event=lambda *_: root.think(GREEDY))
        assert root.think(GREEDY).text == "bc"
    made.prefixes.clear()
    assert empty(made)
