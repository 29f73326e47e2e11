"""What an engine did and holds, at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of an engine since it was made, and what its decoder's cache holds now.

    Args:
        steps: steps of the engine, one forward pass each, but see ``passes``.
        drawn_tokens: tokens that agents drew.
        prompt_tokens: tokens of the prompts that contexts began with: of episodes, and of isolated workers.
        prefix_tokens: of these, tokens whose K/V were there already: of a template, a pinned head, or another context.
        saved_tokens: all tokens found computed: ``prefix_tokens``, and those of contexts that continued after a pause.
        copied_tokens: of these, tokens whose K/V were copied, because a head of another context ends within a chunk of
            attention; the others are read in place.
        waiting, running: episodes.
        preemptions: how often an episode was paused because pages ran out.
        heads: heads in the cache that are kept for other contexts; pinned ones and templates do not count.
        pinned: pinned heads and templates.
        head_pages: pages that heads see, pinned ones included.
        evictions: heads that were given up for room, of all samplers of the decoder.
        free_pages, num_pages: of the cache.
        passes: forward passes; where layers are recurrent, a step takes one for each number of new tokens, and on a
            fallback decoder one for each branch.
        state_bytes_copied: recurrent states that forks copied, and snapshots of contexts that went on.
        kv_bytes_copied: K and V that forks copied, on a fallback decoder; elsewhere they read their parent's.
        free_states, num_states: slots of recurrent states; 0 without such layers.

    >>> stats = EngineStats(prompt_tokens=400, prefix_tokens=300)
    >>> stats.hit_rate
    0.75
    """

    steps: int = 0
    drawn_tokens: int = 0
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    saved_tokens: int = 0
    copied_tokens: int = 0
    waiting: int = 0
    running: int = 0
    preemptions: int = 0
    heads: int = 0
    pinned: int = 0
    head_pages: int = 0
    evictions: int = 0
    free_pages: int = 0
    num_pages: int = 0
    passes: int = 0
    state_bytes_copied: int = 0
    kv_bytes_copied: int = 0
    free_states: int = 0
    num_states: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompts' tokens that were found computed; 0 without prompts."""
        return self.prefix_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
