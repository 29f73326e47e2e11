"""Heads that are kept, found, evicted, pinned and dropped, against a plain model, with every page counted."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncthink.engine.agent import Agent, Opening
from asyncthink.engine.prefix_cache import PrefixCache
from asyncthink.engine.radix import common
from asyncthink.episode.records import Trace
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat
from asyncthink_kernels.cache import OutOfPages
from scripted import ScriptedDecoder, tokenizer

PROMPTS = PromptFormat("O:{question}", "W:", "I:{subquery}", "Solo: {question}")
NUM_PAGES, PAGE, CHUNK = 60, 4, 16
TOKENS = st.builds(
    lambda head, body, rest: (*head, *body, *rest),
    st.sampled_from(["Solo: ", "Solo: ", "So", "x"]),
    st.integers(0, 40).map(lambda n: "abc" * (n // 3)),
    st.text("ab", max_size=6),
).map(lambda text: tuple(ord(character) - 32 for character in text))

Sequence = tuple[int, ...]


class HeadsMachine(RuleBasedStateMachine):
    """``kept`` is the model: the tokens of every kept head, with what is pinned of them."""

    @initialize(pages=st.sampled_from([None, None, 6]))
    def build(self, pages: int | None) -> None:
        tok = tokenizer()
        self.decoder = ScriptedDecoder(tok, [], NUM_PAGES, PAGE)
        assert self.decoder.cache.chunk == CHUNK
        self.version = 0
        self.decoder.weights_version = lambda: self.version  # type: ignore[method-assign]
        self.pages = pages
        self.cache = PrefixCache(PROMPTS, Codec(tok, []), self.decoder, pages)
        self.cache.prepare(["solo"])
        self.heads = self.cache.heads
        self.kept: set[tuple[int, Sequence]] = set()
        self.documents: list[Sequence] = []
        self.agents: list[Agent] = []

    # -- the model ----------------------------------------------------------------------------------------------

    def layout(self, tokens: Sequence) -> int:
        """Tokens that are pinned: those of the template, or a page more of a document."""
        best = 0
        for number, pinned in enumerate([tuple(ord(c) - 32 for c in "Solo: "), *self.documents]):
            if pinned in self.heads.pinned:
                length = common(pinned, tokens[:-1])
                best = length if length >= best + (PAGE if number and best else 1) else best
        return best

    def expected(self, tokens: Sequence) -> int:
        """Tokens of an opening that some head has."""
        shared = self.layout(tokens)
        return max([shared, *(common(other, tokens[:-1]) for p, other in self.kept if p == shared)])

    def stored(self) -> set[tuple[int, Sequence]]:
        """What the heads hold, read from their slots."""
        return {(head.shared, self.text(head.branch)) for head in self.heads._kept}

    def text(self, branch: Any) -> Sequence:
        return tuple(self.decoder.slots[self.decoder.cache.slots(branch)].tolist())

    # -- what happens -------------------------------------------------------------------------------------------

    @rule(tokens=TOKENS)
    def begin(self, tokens: Sequence) -> None:
        speaker: Any = SimpleNamespace(trace=Trace(0, "solo", tokens=list(tokens)))
        agent = Agent(speaker)
        agent.opening = Opening("solo", tokens)
        free = self.decoder.cache.free_pages
        length = self.cache.begin(agent)
        if length is None:
            assert agent.source is not None
            leader, promised = agent.source
            assert leader.computed < promised == common(leader.opening.tokens, tokens[:-1])
            return
        shared, expected = self.layout(tokens), self.expected(tokens)
        ready = [common(self.text(a.branch)[: a.computed], tokens[:-1]) for a in self.agents if a.layout[1] == shared]
        at_hand = max([expected, *ready])
        assert length <= at_hand
        if free >= -(-CHUNK // PAGE):
            assert length >= expected
        else:  # the begun chunk is computed again where its copy finds no page
            assert length >= expected - (expected - shared) % CHUNK
        assert self.text(agent.branch) == tokens[:length]
        assert agent.queue[0] == list(tokens[length:])
        self.agents.append(agent)

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), count=st.integers(1, 30))
    def compute(self, data: st.DataObject, count: int) -> None:
        agent = data.draw(st.sampled_from(self.agents))
        if not agent.ready:
            agent.trace.tokens.append(65)
            agent.put([65])
        count = min(count, agent.ready)
        try:
            plan = self.decoder.cache.plan([(agent.branch, count)])
        except OutOfPages:
            self.evict()
            return
        self.decoder.forward(torch.tensor(agent.take(count)), plan, [])
        agent.computed += count

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), planned=st.integers(0, 3), failed=st.booleans())
    def end(self, data: st.DataObject, planned: int, failed: bool) -> None:
        """``planned`` tokens are in the branch, but the pass that was to compute them failed."""
        agent = data.draw(st.sampled_from(self.agents))
        self.agents.remove(agent)
        if planned and self.decoder.cache.free_pages:
            self.decoder.cache.plan([(agent.branch, planned)])
        agent.trace.finish = "failed" if failed else "cancelled"
        pinned, shared = agent.layout
        tokens = tuple(agent.trace.tokens[: agent.computed])
        keeps = not failed and len(tokens) > shared and self.heads.current(pinned)
        self.cache.end(agent)
        assert agent.held is None
        if keeps and not any(p == shared and other[: len(tokens)] == tokens for p, other in self.kept):
            self.kept = {(p, o) for p, o in self.kept if p != shared or tokens[: len(o)] != o} | {(shared, tokens)}
        if self.pages is not None:
            self.kept &= self.stored()
            fixed = [pinned.branch for pinned in self.heads.pinned.values()]
            count = self.decoder.cache.pages_seen
            assert count(self.heads.branches) - count(fixed) <= self.pages

    @rule()
    def evict(self) -> None:
        assert self.heads.evict() == bool(self.kept)
        left = self.stored()
        assert left <= self.kept and len(left) == max(len(self.kept) - 1, 0)
        self.kept = left

    @rule(tokens=TOKENS)
    def pin(self, tokens: Sequence) -> None:
        try:
            self.cache.pin("solo", tokens)
        except OutOfPages:
            pass
        else:
            self.documents += [tokens] if tokens not in self.documents else []
        self.kept &= self.stored()

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        tokens = data.draw(st.sampled_from(self.documents))
        self.documents.remove(tokens)
        self.cache.unpin(tokens)
        self.kept &= self.stored()

    @rule()
    def change_weights(self) -> None:
        self.version += 1
        with contextlib.suppress(OutOfPages):
            self.cache.prepare([])
        self.kept = set()

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.decoder.cache.check()
        assert self.stored() == self.kept and len(self.heads) == len(self.kept)
        for tokens, pinned in self.heads.pinned.items():
            assert self.text(pinned.branch) == tokens
        branches = [*self.heads.branches, *(agent.branch for agent in self.agents)]
        assert set(branches) == set(self.decoder.cache.branches)

    def teardown(self) -> None:
        if not hasattr(self, "agents"):
            return
        free, evictable = self.decoder.cache.free_pages, self.heads.evictable_pages
        while self.heads.evict():
            pass
        assert self.decoder.cache.free_pages == free + evictable
        for agent in self.agents:
            self.cache.end(agent)
        self.cache.clear()
        assert self.decoder.cache.free_pages == NUM_PAGES


TestHeads = HeadsMachine.TestCase
TestHeads.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
