"""Random programs of threads against plain lists of tokens: every row reads the context that the list has."""

import zlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from asyncthink import ForkJoinSampler, SamplingParams
from scripted import PROMPTS, ScriptedDecoder, tokenizer

TOKENIZER = tokenizer()
LETTERS = TOKENIZER("abcdefghijklmnop").input_ids
PAGES, PAGE = 40, 4


def following(text: str) -> int:
    """The token that the text alone decides."""
    return LETTERS[zlib.crc32(text.encode()) % len(LETTERS)]


class Hashed(ScriptedDecoder):
    def _next(self, text: str) -> int:
        return following(text)


class Programs(RuleBasedStateMachine):
    threads = Bundle("threads")

    @initialize(target=threads, rows=st.sampled_from([3, 64]))
    def begin(self, rows):
        decoder = Hashed(TOKENIZER, [], num_pages=PAGES, page_size=PAGE)
        self.engine = ForkJoinSampler(decoder, TOKENIZER, prompts=PROMPTS, max_rows=rows)
        self.lists: dict[object, list[int]] = {}
        self.begins: dict[object, int] = {}
        return self.opened("root")

    def opened(self, text):
        thread = self.engine.thread(text)
        self.lists[thread] = TOKENIZER(text).input_ids
        self.begins[thread] = len(text)
        return thread

    @rule(target=threads, text=st.text("xyz", min_size=1, max_size=9))
    def open(self, text):
        return self.opened(text)

    @rule(thread=threads, text=st.text("uvw", max_size=9))
    def write(self, thread, text):
        if len(self.lists[thread]) + len(text) < 100:
            thread.write(text)
            self.lists[thread] += TOKENIZER(text).input_ids

    @rule(target=threads, thread=threads, n=st.integers(1, 3), share=st.floats(0, 1))
    def fork(self, thread, n, share):
        tokens = self.lists[thread]
        if not tokens or len(self.lists) > 12:
            return multiple()
        at = max(1, round(share * len(tokens)))
        forks = thread.fork(n, at)
        for made in forks:
            self.lists[made], self.begins[made] = tokens[:at], at
        return multiple(*forks)

    @rule(chosen=st.lists(threads, min_size=1, max_size=4, unique=True), count=st.integers(1, 6))
    def think(self, chosen, count):
        chosen = [thread for thread in chosen if 0 < len(self.lists[thread]) < 100]
        self.engine.think(chosen, SamplingParams(temperature=0.0, max_tokens=count))
        for thread in chosen:
            tokens = self.lists[thread]
            for _ in range(len(thread) - len(tokens)):
                tokens.append(following(TOKENIZER.backend_tokenizer.decode(tokens)))
            assert thread.finish == (
                "budget" if thread.thought.stop - thread.thought.start == count else "out_of_pages"
            )

    @rule(thread=threads, text=st.text("abcdefgh", min_size=1, max_size=5))
    def score(self, thread, text):
        tokens = self.lists[thread]
        if not 0 < len(tokens) < 100:
            return
        (score,) = thread.score([text])
        for number, token in enumerate(score.tokens):
            expected = following(TOKENIZER.backend_tokenizer.decode([*tokens, *score.tokens[:number]]))
            assert (score.logprobs[number] > -1) is (token == expected)

    @rule(thread=threads, share=st.floats(0, 1))
    def truncate(self, thread, share):
        length = round(share * len(self.lists[thread]))
        thread.truncate(length)
        del self.lists[thread][length:]
        self.begins[thread] = min(self.begins[thread], length)

    @rule(
        thread=threads,
        other=threads,
        mode=st.sampled_from(["exact", "append", "link"]),
        what=st.sampled_from(["text", "thought"]),
    )
    def join(self, thread, other, mode, what):
        tokens, begin = self.lists[other], self.begins[other]
        if what == "thought":
            if other.thought is None or other.thought.stop > len(tokens):
                return
            begin, tokens = other.thought.start, tokens[: other.thought.stop]
        if thread is other or len(self.lists[thread]) + len(tokens) - begin >= 100:
            return
        state = other._state
        if mode == "append" and len(state.stretch.shifts(begin, len(tokens))) > 1:
            with pytest.raises(ValueError, match="links"):
                thread.join(other, mode=mode, what=what)
            return
        thread.join(other, mode=mode, what=what)
        self.lists[thread] = self.lists[thread] + tokens[begin:]

    @rule(thread=consumes(threads))
    def close(self, thread):
        thread.close()
        del self.lists[thread], self.begins[thread]

    @rule()
    def evict(self):
        self.engine.threads.pool.clear()
        assert self.engine.cache.used_pages == 0

    @invariant()
    def the_tokens_are_those_of_the_lists(self):
        if hasattr(self, "engine"):
            for thread, tokens in self.lists.items():
                assert thread.tokens == tokens and thread.begin == self.begins[thread]
                assert len(thread.logprobs) == len(tokens)
            self.engine.cache.check()
            assert not any(stretch.needed or stretch.branch is None for stretch in self.engine.threads.pool.kept)

    def teardown(self):
        if hasattr(self, "engine"):
            for thread in self.lists:
                thread.close()
            assert self.engine.cache.used_pages == 0 and not self.engine.threads.pool.kept


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
