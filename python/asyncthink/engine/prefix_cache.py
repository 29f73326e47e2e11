"""Begins contexts with what of their tokens is computed already: templates, pinned documents, other contexts' heads."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from asyncthink.engine.agent import Agent
from asyncthink.engine.heads import Heads, Pinned, longest
from asyncthink.engine.radix import Tokens, common
from asyncthink.episode.joins import spliced_joins
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat
from asyncthink_kernels.cache import OutOfPages

if TYPE_CHECKING:
    from asyncthink.model.contract import BranchDecoder, ContextBranch

#: Rows of a pass that computes a pinned head.
_ROWS = 1024


class _Match(NamedTuple):
    """The first ``length`` tokens of a context are computed in ``branch``, laid out for ``shared`` of ``pinned``."""

    pinned: Pinned
    shared: int
    branch: ContextBranch | None
    length: int


class PrefixCache:
    """Finds what of prompts is in the cache, for one sampler.

    An agent begins with the tokens that its prompt has in common with its template's constant prefix, with a pinned
    prompt, or with the context of another agent, which may have ended. At least one token of the prompt remains to be
    computed, because the first draw needs its logits. Where another agent is computing a common head at this time, it
    is waited for. When an agent ends, is paused or cancelled, its head is kept: the computed tokens of its own context
    before the first join of a worker's K/V (``append``, ``link``), as those behind it are computed from other K and V
    than their own tokens'. A failed agent's are not kept.

    **What is guaranteed.** A context's tokens are laid out by itself and by what is pinned (:mod:`.heads`), so K, V and
    logits are bitwise the same with and without kept heads, if the platform's linear layers round a row alike whatever
    the number of rows, and the attention backend does (all but flash-attn do). Where linear layers do not, K and V of a
    head are those that its episode computed, equal up to that rounding.

    Args:
        prompts, codec: of the sampler.
        decoder: its heads are shared by all its samplers.
        pages: the most pages that heads may hold, beside pinned ones; None: as long as nobody else needs the pages; 0:
            no head is kept or used. Templates and pinned prompts are in the cache in any case.

    Raises:
        ValueError: ``pages`` below 0.
    """

    def __init__(self, prompts: PromptFormat, codec: Codec, decoder: BranchDecoder, pages: int | None = None) -> None:
        if pages is not None and (isinstance(pages, bool) or not isinstance(pages, int) or pages < 0):
            raise ValueError(f"prefix_pages: expected an integer >= 0 or None, got {pages!r}")
        self._prompts, self._codec, self._decoder, self._pages = prompts, codec, decoder, pages
        self.heads = Heads.of(decoder)
        self.prompt_tokens = self.prefix_tokens = self.saved_tokens = self.copied_tokens = 0  # see EngineStats
        self._templates: dict[str, Tokens] = {}  # constant prefixes, by name
        self._documents: dict[Tokens, str] = {}  # pinned prompts, with the template they fill
        self._live: list[Agent] = []  # those that began a context of their own and hold it

    # -- what stays ---------------------------------------------------------------------------------------------

    def prepare(self, names: Iterable[str]) -> None:
        """Compute the prefixes of these templates, and the pinned prompts, unless they are cached. Raises OutOfPages.

        Heads that the weights have changed for are released first.
        """
        self.drop_stale()
        for name in names:
            if name not in self._templates:
                self._templates[name] = tuple(self._codec.encode([(self._prompts.prefix(name), True)]))
        for tokens in self._templates.values():
            self._hold(tokens, [])
        for tokens, name in self._documents.items():
            self._hold(tokens, self._template(name), _ends(tokens))

    def pin(self, name: str, tokens: Sequence[int]) -> None:
        """Keep a prompt of template ``name`` computed until it is unpinned. Raises OutOfPages; nothing is pinned then.

        All prompts that have more in common with it than with the template begin with it, without a copy.
        """
        self.prepare(())
        self._hold(tuple(tokens), self._template(name), _ends(tokens))
        self._documents[tuple(tokens)] = name

    def unpin(self, tokens: Sequence[int]) -> None:
        """Let go of a pinned prompt. Raises ValueError if it is none."""
        if tuple(tokens) not in self._documents:
            raise ValueError("unpin: expected a question that is pinned")
        del self._documents[tuple(tokens)]
        self.heads.unpin(tuple(tokens), self)

    def clear(self) -> None:
        """Release all heads of the decoder. Templates and pinned prompts are computed again when they are needed."""
        self.heads.clear()

    def drop_stale(self) -> None:
        """Release all heads of the decoder if its weights have changed since they were computed."""
        self.heads.drop_stale(self._decoder.weights_version())

    # -- contexts -----------------------------------------------------------------------------------------------

    def branch(self, name: str, tokens: Sequence[int]) -> ContextBranch:
        """A new branch with the first ``tokens`` of a prompt from template ``name``, as many as are cached.

        At least one token remains to be computed, because the first draw needs its logits.
        """
        return self._fork(self._find(name, tuple(tokens)))

    def begin(self, agent: Agent) -> int | None:
        """Begin an agent's opening: its branch holds what is computed, its queue the rest; returns the former's length.

        Returns None where the agent must wait: its ``source`` computes at least a page more of the opening.
        """
        assert agent.opening is not None
        name, tokens = agent.opening
        cache = self._decoder.cache
        match = self._find(name, tokens)
        if self._pages != 0:
            leader, promised = None, match.length
            for other in self._live:
                length = self._in_common(other, match, tokens)
                computed = cache.forkable(other.branch, min(length, other.computed))
                if computed > match.length:
                    match = match._replace(branch=other.branch, length=computed)
                if length <= other.computed:  # with recurrent layers less of it may be of use
                    length = computed
                if length > promised:
                    leader, promised = other, length
            if leader is not None and promised - match.length >= cache.page_size:
                agent.source = (leader, promised)
                leader.marks.add(promised)
                return None
        agent.held = self._fork(match)
        agent.layout, agent.source = (match.pinned, match.shared), None
        agent.computed = agent.held.length
        agent.marks = {len(tokens) - 1}  # where the same prompt again begins
        agent.put_first(tokens[agent.computed :])
        self._live.append(agent)
        self.saved_tokens += agent.computed
        return agent.computed

    def end(self, agent: Agent) -> None:
        """Take an agent's branch from it: keep its head, release the rest."""
        branch, agent.held = agent.branch, None
        cache = self._decoder.cache
        if agent.layout is None:
            cache.release(branch)
            return
        self._live.remove(agent)
        (pinned, shared), agent.layout = agent.layout, None
        length = min([agent.computed, *(join.at + join.lead for join in spliced_joins(agent.speaker))])
        self.drop_stale()
        length = cache.forkable(branch, length)
        if self._pages == 0 or length <= shared or agent.trace.finish == "failed" or not self.heads.current(pinned):
            cache.release(branch)
            return
        head = branch if branch.length == length else cache.fork(branch, length)
        if head is not branch:
            cache.release(branch)
        cache.park(head)
        self.heads.keep(pinned, shared, tuple(agent.trace.tokens[shared:length]), head)
        if self._pages is not None:
            self.heads.limit(self._pages)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _template(self, name: str) -> list[Pinned]:
        """The head of a template, if it is cached."""
        pinned = self.heads.pinned.get(self._templates.get(name, ()))
        return [] if pinned is None else [pinned]

    def _find(self, name: str, tokens: Tokens) -> _Match:
        """What of a prompt, but its last token, is in a pinned or kept head."""
        limit, heads = len(tokens) - 1, self.heads
        documents = [heads.pinned[known] for known in self._documents if known in heads.pinned]
        pinned, shared = longest(
            [*self._template(name), *documents], tokens, limit, least=self._decoder.cache.page_size
        )
        pinned = pinned or heads.root
        branch, length = heads.find(pinned, shared, tokens[shared:limit]) if self._pages != 0 else (None, shared)
        return self._usable(_Match(pinned, shared, branch or pinned.branch, length))

    def _usable(self, match: _Match) -> _Match:
        """What of a match a fork can begin with: with recurrent layers, up to a state that is kept."""
        if match.branch is None:
            return match
        cache = self._decoder.cache
        length = cache.forkable(match.branch, match.length)
        if match.pinned.branch is not None and length < (least := cache.forkable(match.pinned.branch, match.shared)):
            return match._replace(branch=match.pinned.branch, length=least)
        return match._replace(length=length)

    def _in_common(self, other: Agent, match: _Match, tokens: Tokens) -> int:
        """How many of a prompt's tokens, but the last, another agent's opening has, in the same layout."""
        if other.layout != (match.pinned, match.shared) or other.opening is None:
            return 0
        return common(other.opening.tokens[: len(tokens) - 1], tokens[:-1])

    def _fork(self, match: _Match) -> ContextBranch:
        """A branch of the tokens: whole chunks in place, the begun one as a copy, or not at all without free pages."""
        cache = self._decoder.cache
        if self._decoder.states is not None:  # nothing is copied but a state; results are equal up to rounding
            return cache.fork(match.branch, match.length) if match.branch is not None else cache.root()
        whole = match.length - (match.length - match.shared) % cache.chunk
        if match.branch is None:
            return cache.root()
        branch = cache.fork(match.branch, whole) if whole else cache.root()
        if whole < match.length:
            try:
                with contextlib.suppress(OutOfPages):
                    self._decoder.copy(branch, match.branch, whole, match.length)
                    self.copied_tokens += match.length - whole
            except BaseException:
                cache.release(branch)
                raise
        return branch

    def _hold(self, tokens: Tokens, candidates: Sequence[Pinned], marks: Collection[int] = ()) -> None:
        """Pin these tokens for this sampler; compute them, behind those of a candidate, if nobody has.

        ``marks`` are lengths at which others may fork.
        """
        if not tokens:
            return
        if tokens not in self.heads.pinned:
            pinned, shared = longest(candidates, tokens, len(tokens), least=1)
            self.heads.pin(tokens, self._prefill(tokens, None if pinned is None else pinned.branch, shared, marks))
        self.heads.pinned[tokens].users.add(self)

    def _prefill(
        self, tokens: Tokens, source: ContextBranch | None, shared: int, marks: Collection[int]
    ) -> ContextBranch:
        """A branch of these tokens, the first ``shared`` of them a fork of ``source``. Kept heads make room."""
        cache = self._decoder.cache
        branch = cache.root() if source is None else cache.fork(source, cache.forkable(source, shared))
        try:
            while (first := branch.length) < len(tokens):
                count = cache.room_before_mark(branch, min(_ROWS, len(tokens) - first), marks)
                while not cache.fits([(branch, count)]) and self.heads.evict():
                    pass
                part = torch.tensor(tokens[first : first + count], device="cpu")
                self._decoder.forward(part, cache.plan([(branch, count)]), [])
                if cache.at_mark(branch, marks):
                    cache.snapshot(branch)
        except BaseException:
            cache.release(branch)
            raise
        return branch


def _ends(tokens: Sequence[int]) -> list[int]:
    """Lengths near the end of a pinned prompt. What follows it may replace its last tokens, those of the template."""
    return [len(tokens) - (1 << bit) for bit in range(6) if len(tokens) > 1 << bit]
