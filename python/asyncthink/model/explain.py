"""How a decoder runs on this machine, and why: one sentence for each part."""

from __future__ import annotations

from typing import Any

import torch

from asyncthink.model.auto_dtype import dtype_name
from asyncthink.model.joins import CACHE_JOINS
from asyncthink.model.quantized import QuantizedLinears, count_parameters, quantized_before


def explain(decoder: Any) -> dict[str, str]:
    """One sentence each on a Decoder's device, dtype, weights, packing, graphs, compilation, join modes and cache."""
    storage, cache = decoder.storage, decoder.cache
    parameters = count_parameters(decoder.model)
    joins = [f"{mode}: {decoder.unavailable[mode]}" for mode in CACHE_JOINS if mode in decoder.unavailable]
    return {
        "model": f"{type(decoder.model).__name__}, {parameters:,} parameters",
        "device": f"{decoder.device}: {decoder.why_device}",
        "threads": _threads(decoder),
        "dtype": decoder.why_dtype or f"{dtype_name(storage.dtype)}, as the live model has it",
        "weights": _weights(decoder),
        "pack": _pack(decoder),
        "graphs": _graphs(decoder),
        "compile": "steps run through torch.compile" if decoder.compiled else "no: not asked for",
        "recorded": _recorded(decoder),
        "joins": "; ".join([", ".join(decoder.join_modes), *joins]),
        "positions": f"at most {decoder.max_length:,}" if decoder.max_length is not None else "no hard limit",
        "states": _states(decoder),
        "cache": f"{cache.num_pages:,} pages of {cache.page_size} tokens, {storage.bytes_per_token:,} bytes a token",
    }


def _states(decoder: Any) -> str:
    if decoder.states is None:
        return "no recurrent layers"
    states = decoder.states
    slots = f"{states.num_states} slots of {states.bytes_per_state:,} bytes, which a fork copies when it goes on"
    return f"{slots}; a state is continued token by token" if decoder.cache.by_token else slots


def _recorded(decoder: Any) -> str:
    steps = decoder.recorded
    if steps is None:
        return "no: steps are compiled" if decoder.compiled else "no: not asked for, or not on a CPU"
    if steps.reason is not None:
        return f"no: {steps.reason}"
    held = f"{len(steps.programs)} programs now, in {steps.memory.nbytes:,} bytes"
    return f"decode steps of sizes that come again run without the model's Python; {held}"


def _threads(decoder: Any) -> str:
    if decoder.device.type != "cpu":
        return "steps run on the device"
    most = torch.get_num_threads()
    return f"{most} of torch" if most == 1 else f"{most} of torch; one less for each core that other programs use"


def _weights(decoder: Any) -> str:
    if isinstance(decoder.linears, QuantizedLinears):
        return decoder.linears.explain()
    before = quantized_before(decoder.model)
    return "as they are stored" if before is None else f"as they were quantized before, by {before}"


def _pack(decoder: Any) -> str:
    if isinstance(decoder.linears, QuantizedLinears):
        return "no: linear layers run on quantized weights"
    if decoder.linears is not None:
        return f"linear layers run on packed copies of their weights, {decoder.linears.nbytes:,} bytes"
    return f"no: {decoder.unavailable.get('pack', 'switched off')}"


def _graphs(decoder: Any) -> str:
    if decoder.graphs is not None:
        return "decode steps are captured" if decoder.device.type == "cuda" else "decode steps run from static buffers"
    if "graphs" in decoder.unavailable:
        return f"no: {decoder.unavailable['graphs']}"
    return "no: switched off" if decoder.device.type == "cuda" else "no: CUDA graphs need a GPU"
