"""Decoding kernels for asynchronous thinking: attention over a paged tree of K/V, and what a join needs.

Knows nothing of text, models or transformers. ``python -m asyncthink_kernels`` shows which backend runs which op.
"""

from asyncthink_kernels.dispatch import backends_for, explain, use_backend
from asyncthink_kernels.ops import (
    append_kv,
    copy_pages,
    join_append,
    merge_states,
    packed_linear,
    paged_attention,
    quantized_linear,
    sample,
    tree_attention,
)
from asyncthink_kernels.plan import TreePlan

__all__ = [
    "TreePlan",
    "append_kv",
    "backends_for",
    "copy_pages",
    "explain",
    "join_append",
    "merge_states",
    "packed_linear",
    "paged_attention",
    "quantized_linear",
    "sample",
    "tree_attention",
    "use_backend",
]
