"""The free memory, and the sizes of a Decoder's cache that are chosen by it."""

from __future__ import annotations

import torch
from torch import nn

from asyncthink.model.checks import text_config
from asyncthink.model.layers import Layers
from asyncthink_kernels.tuning import chunk_tokens

DEFAULT_TOKENS = 65_536
DEFAULT_SHARE = 0.25  # of the free memory

DEFAULT_STATES = 256
DEFAULT_STATE_SHARE = 0.125  # of the free memory


def num_pages_for(
    num_pages: int | None, memory_bytes: int | None, page_size: int, token_bytes: int, device: torch.device
) -> int:
    """Pages of the cache: ``num_pages``, or what fits ``memory_bytes``, or the default. Raises ValueError for both."""
    if num_pages is not None and memory_bytes is not None:
        raise ValueError("give num_pages or memory_bytes, got both")
    if num_pages is not None:
        return num_pages
    if not token_bytes:  # a model without attention: pages count tokens only
        return DEFAULT_TOKENS // page_size
    if memory_bytes is None:
        memory_bytes = min(int(DEFAULT_SHARE * free_memory(device)), DEFAULT_TOKENS * token_bytes)
    fitting = memory_bytes // (page_size * token_bytes)
    if fitting < 1:
        raise ValueError(f"memory_bytes must hold a page of {page_size * token_bytes} bytes, got {memory_bytes}")
    return fitting


def num_states_for(num_states: int | None, state_bytes: int, device: torch.device) -> int:
    """Slots of recurrent states: ``num_states``, or the default. Raises ValueError where not even two of them fit."""
    if num_states is not None:
        return num_states
    fitting = min(int(DEFAULT_STATE_SHARE * free_memory(device)) // state_bytes, DEFAULT_STATES)
    if fitting < 2:
        raise ValueError(f"num_states: two states of {state_bytes} bytes need more than an eighth of the free memory")
    return fitting


def chunk_for(model: nn.Module, layers: Layers, page_size: int, device: torch.device) -> int:
    """Tokens of an attention item: 512; on a GPU by the heads of the model, for a few branches."""
    if device.type != "cuda":
        return -(-512 // page_size) * page_size
    kv_heads = max((shape.kv_heads for shape in layers.shapes), default=1)
    heads = getattr(text_config(model), "num_attention_heads", kv_heads)
    return chunk_tokens(max(1, heads // kv_heads), 8, page_size, kv_heads)


def free_memory(device: torch.device) -> int:
    """Bytes of free memory on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return kib * 1024
