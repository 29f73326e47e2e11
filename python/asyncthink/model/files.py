"""The one loader of a model's files, in a local folder or on the hub: config, weights, tokenizer.

Sampler, command line, evaluation and training all use it. Cache, tokens and offline mode of the hub are those of
huggingface_hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from asyncthink.model.auto_dtype import choose_dtype, dtype_name
from asyncthink.model.checks import one_line
from asyncthink.model.gguf import is_gguf, kept_blocks, stored_dtype, widening
from asyncthink.model.hook import DecoderError
from asyncthink_kernels.quantized import QuantizedWeight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Network(NamedTuple):
    """A model on its device, with the reasons for the device and the dtype.

    ``quantized``: weights of linear layers that a GGUF file holds in 8 or 4 bits, by the layers' names, on a CPU.
    """

    model: nn.Module
    why_device: str
    why_dtype: str
    quantized: dict[str, QuantizedWeight]


def load_network(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    progress: Callable[[str], None] | None = None,
) -> Network:
    """The model at a local folder or hub id, or in a GGUF file, in evaluation mode.

    Args:
        path: a folder, a file that ends in .gguf, or the hub's "owner/name".
        revision: branch, tag or commit on the hub; None: its main branch.
        device: "auto" (the GPU where there is one), or a device's name.
        dtype: "auto" (as stored, or float32 where this CPU multiplies much faster in it: see
            :func:`asyncthink.model.auto_dtype.choose_dtype`), or a dtype or its name.
        progress: called with a phrase before the weights are loaded.

    Raises:
        ValueError: an unknown device or dtype, a device that is not here, a revision of a folder.
        DecoderError: no model there, or weights that are missing or broken; one line that says why.
    """
    requested, target = dtype_for(dtype), device_for(device)
    why_device = "as asked for"
    if str(device) == "auto":
        why_device = "the GPU of this machine" if target.type == "cuda" else "torch finds no GPU here"
    if progress is not None:
        progress(f"loading the weights of {path}")
    if requested is not None:
        model, why = open_weights(path, requested, revision), f"{dtype_name(requested)}, as asked for"
    else:
        model, why = _open_in_best_dtype(path, target, revision)
    quantized: dict[str, QuantizedWeight] = {}
    if is_gguf(path):
        quantized, told = kept_blocks(Path(path).expanduser(), model, target)
        why += told and f"; {told}"
    return Network(model.to(target).eval(), why_device, why, quantized)


def open_weights(path: str | Path, dtype: torch.dtype | str, revision: str | None = None) -> Any:
    """The transformers model at ``path`` on the CPU, in ``dtype`` ("auto": as stored), with all of its weights.

    Raises ValueError for a revision of a folder, and DecoderError, one line, where there is no such model or weights
    are missing.
    """
    from transformers import AutoModelForCausalLM

    source = _source(path, revision) | (widening() if is_gguf(path) else {})
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, output_loading_info=True)
    except Exception as error:
        raise _no_model(path, one_line(error)) from error
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise _no_model(path, f"it lacks {len(missing)} of its weights, the first is {missing[0]}")
    if is_gguf(path) and hasattr(loaded[0].config, "quantization_config"):
        del loaded[0].config.quantization_config  # its weights are plain now
    return loaded[0]


def load_config(path: str | Path, revision: str | None = None) -> Any:
    """The configuration at ``path``, without the weights. Raises DecoderError, one line, where there is none."""
    from transformers import AutoConfig

    source = _source(path, revision)
    try:
        return AutoConfig.from_pretrained(**source)
    except Exception as error:
        raise _no_model(path, one_line(error)) from error


def load_tokenizer(path: str | Path, revision: str | None = None) -> Any:
    """The tokenizer at ``path``. Raises ValueError, one line, where it cannot be loaded or has no vocabulary."""
    from transformers import AutoTokenizer

    source = _source(path, revision)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(**source)
    except Exception as error:
        raise ValueError(f"cannot load a tokenizer from {path}: {one_line(error)}") from error
    # Where files are missing, transformers returns a tokenizer that has special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"cannot load a tokenizer from {path}: its vocabulary is empty, so its files are missing")
    return tokenizer


def device_for(name: str | torch.device) -> torch.device:
    """The device called ``name``; "auto" is this process's GPU where there is one, else the CPU.

    Raises ValueError for a name that is no device, and for a device that this machine does not have.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {str(name)!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is here, got {str(name)!r}: torch finds no CUDA")
    device = torch.device("cuda", local) if device.index is None else device
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of the {torch.cuda.device_count()} GPUs here, got {str(name)!r}")
    return device


def dtype_for(dtype: str | torch.dtype) -> torch.dtype | None:
    """The floating-point dtype of that name; None for "auto". Raises ValueError for another.

    >>> dtype_for("bfloat16"), dtype_for("auto")
    (torch.bfloat16, None)
    """
    if dtype == "auto":
        return None
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise ValueError(f"dtype: expected one of auto, {', '.join(DTYPES)}, got {str(dtype)!r}")
    return known


def _open_in_best_dtype(path: str | Path, device: torch.device, revision: str | None) -> tuple[Any, str]:
    """(the model, the reason for its dtype).

    Weights are read in their final dtype. Converting a loaded model would leave buffers that it computed itself rounded
    to the first dtype.
    """
    if is_gguf(path):
        choice = choose_dtype(device, stored_dtype(Path(path).expanduser()), use="decoding")
        return open_weights(path, choice.dtype, revision), choice.why
    model: Any = None
    config = load_config(path, revision)
    stored = getattr(config, "dtype", None)
    if getattr(config, "quantization_config", None) is not None:
        return open_weights(path, "auto", revision), "as the quantized weights are stored"
    if not isinstance(stored, torch.dtype):
        model = open_weights(path, "auto", revision)
        stored = model.dtype
    choice = choose_dtype(device, stored, use="decoding")
    if model is None or choice.dtype != stored:
        model = open_weights(path, choice.dtype, revision)
    return model, choice.why


def _source(path: str | Path, revision: str | None) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` for a path. Raises where it can be neither a model's folder nor a hub id."""
    name, folder = str(path), Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision: expected none for a local folder, got {revision!r} for {path}")
        if not (folder / "config.json").is_file():
            raise _no_model(path, "the folder has no config.json")
        return {"pretrained_model_name_or_path": str(folder)}
    if is_gguf(path):
        if revision is not None:
            raise ValueError(f"revision: expected none for a local file, got {revision!r} for {path}")
        if not folder.is_file():
            raise _no_model(path, "there is no such file")
        return {"pretrained_model_name_or_path": str(folder.parent), "gguf_file": folder.name}
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _no_model(path, "there is no such folder")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def _no_model(path: str | Path, reason: str) -> DecoderError:
    return DecoderError(f"cannot load a causal language model from {path}: {reason}")
