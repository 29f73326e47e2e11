"""What a cache has done since it was made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheStats:
    """Counters since the cache was made. Multiply tokens by `KVStorage.bytes_per_token` for bytes."""

    forks: int = 0
    tokens_shared: int = 0  # seen through a fork or a link join instead of being copied or computed again
    tokens_copied: int = 0  # copied by append joins
    plans_built: int = 0
    plans_advanced: int = 0  # updated in place
    peak_pages: int = 0
    states_copied: int = 0  # recurrent states, by forks that went on (:class:`.stateful.StatefulCache`)
    passes: int = 0  # forward passes that the plans of a cache with recurrent states need
