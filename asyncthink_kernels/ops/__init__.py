"""The ops: contracts, checks and output allocation. `dispatch` chooses what computes them."""

from asyncthink_kernels.ops.append_kv import append_kv
from asyncthink_kernels.ops.copy_pages import copy_pages
from asyncthink_kernels.ops.join_append import join_append
from asyncthink_kernels.ops.merge_states import merge_states
from asyncthink_kernels.ops.packed_linear import packed_linear
from asyncthink_kernels.ops.paged_attention import paged_attention
from asyncthink_kernels.ops.quantized_linear import quantized_linear
from asyncthink_kernels.ops.sample import sample
from asyncthink_kernels.ops.tree_attention import tree_attention

__all__ = [
    "append_kv",
    "copy_pages",
    "join_append",
    "merge_states",
    "packed_linear",
    "paged_attention",
    "quantized_linear",
    "sample",
    "tree_attention",
]
