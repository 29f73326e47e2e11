"""GGUF files: transformers reads the model, and blocks of 8 and 4 bits are taken over as they are.

A layer's blocks are kept only where their weights are proven to be the layer's own: the numbers that transformers made
of the file, every one of them. (llama.cpp stores rows of some layers in another order; it is tried too.)

Letters: I features in, O features out, G groups of 32 inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from asyncthink.model.hook import DecoderError
from asyncthink_kernels.quantized import GROUP, QuantizedWeight, pack

_WIDE = {"F32": torch.float32, "F16": torch.float16}
_FLOATS = {*_WIDE, "BF16"}


class Kept(NamedTuple):
    """Weights by the names of their layers, and a sentence on those of the file that were widened."""

    weights: dict[str, QuantizedWeight]
    why: str


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file.

    >>> is_gguf("SmolLM2-135M-Instruct.Q4_1.gguf"), is_gguf("owner/name")
    (True, False)
    """
    return Path(path).suffix == ".gguf"


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype of a file whose matrices all have it; bfloat16 where they have others, or blocks."""
    kinds = {tensor.tensor_type.name for tensor in _reader(path).tensors if len(tensor.shape) > 1}
    return _WIDE.get(kinds.pop(), torch.bfloat16) if len(kinds) == 1 else torch.bfloat16


def kept_blocks(path: Path, model: nn.Module, device: torch.device) -> Kept:
    """What of the file ``model`` can keep in 8 or 4 bits on ``device``: Q8_0, Q4_0 and Q4_1, on a CPU."""
    if device.type != "cpu":
        return Kept({}, "blocks of the file are widened: they are kept on a CPU only")
    tensors = {tensor.name: tensor for tensor in _reader(path).tensors}
    weights: dict[str, QuantizedWeight] = {}
    kept, widened = Counter[str](), Counter[str]()
    for name, tensor in _linear_tensors(path, model, tensors):
        layer: Any = model.get_submodule(name)
        kind = tensor.tensor_type.name
        weight = _proven(_blocks(tensor), layer.weight, model) if kind in _LAYOUTS else None
        if weight is not None:
            weights[name] = weight
        if kind not in _FLOATS:
            (widened if weight is None else kept)[kind] += 1
    told = [
        f"{what} {', '.join(f'{count} of {kind}' for kind, count in kinds.items())}"
        for what, kinds in (("linear layers kept as the file has them:", kept), ("widened:", widened))
        if kinds
    ]
    return Kept(weights, "; ".join(told))


def widening() -> dict[str, Any]:
    """Arguments with which transformers unpacks all weights; later versions keep blocks where they have kernels."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _linear_tensors(path: Path, model: nn.Module, tensors: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name of a linear layer, the tensor of its weight) for all that the file has."""
    import gguf

    architecture = _reader(path).fields["general.architecture"].contents()
    known = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    if not known:
        return
    layers = int(getattr(model, "config").get_text_config(decoder=True).num_hidden_layers)  # noqa: B009
    names = gguf.get_tensor_name_map(known[0], layers)
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            stored = f"{names.get_name(name)}.weight"
            if stored not in tensors and module.weight is embeddings.weight:
                stored = "token_embd.weight"
            if stored in tensors:
                yield name, tensors[stored]


def _blocks(tensor: Any) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """(integers [O, I], scales [O, G], mins [O, G] or None, bits) of a tensor's blocks."""
    layout = _LAYOUTS[tensor.tensor_type.name]
    O, G = tensor.data.shape[0], tensor.data.shape[1] // layout.nbytes
    blocks = torch.from_numpy(np.array(tensor.data, copy=True)).view(O, G, layout.nbytes)
    halves = blocks[:, :, : 2 * layout.floats].contiguous().view(torch.float16)
    raw = blocks[:, :, 2 * layout.floats :]
    # Four bits: byte i has integer i in its low half and i + 16 in its high one. Eight: a sign instead of an offset.
    u = torch.cat([raw & 15, raw >> 4], 2) if layout.bits == 4 else raw ^ 128
    mins = halves[:, :, 1].contiguous() if layout.floats == 2 else None
    return u.reshape(O, G * GROUP), halves[:, :, 0].contiguous(), mins, layout.bits


class _Layout(NamedTuple):
    """Of a block of 32: bits of an integer, and floats of 16 bits before them."""

    bits: int
    floats: int

    @property
    def nbytes(self) -> int:
        return 2 * self.floats + GROUP * self.bits // 8


_LAYOUTS = {"Q8_0": _Layout(8, 1), "Q4_0": _Layout(4, 1), "Q4_1": _Layout(4, 2)}


def _proven(
    given: tuple[Tensor, Tensor, Tensor | None, int], weight: Tensor, model: nn.Module
) -> QuantizedWeight | None:
    """The blocks with their rows in the layer's order; None where no order gives the layer's weights."""
    integers, scales, mins, bits = given
    if integers.shape != weight.shape:
        return None
    for order in _orders(weight.shape[0], model):
        chosen = [None if each is None else each[order] for each in (integers, scales, mins)]
        assert chosen[0] is not None and chosen[1] is not None
        packed = pack(chosen[0], chosen[1], chosen[2], bits)
        if torch.equal(packed.dequantized().to(weight.dtype), weight):
            return packed
    return None


def _orders(O: int, model: nn.Module) -> Iterator[Tensor]:
    """As they stand; then pairs of rows of each head taken apart, as rotations of interleaved pairs store them."""
    yield torch.arange(O, device="cpu")
    config = getattr(model, "config").get_text_config(decoder=True)  # noqa: B009
    for heads in {getattr(config, "num_attention_heads", 0), getattr(config, "num_key_value_heads", 0)}:
        if heads and O % (2 * heads) == 0:
            yield torch.arange(O, device="cpu").view(heads, -1, 2).transpose(1, 2).reshape(-1)


def _reader(path: Path) -> Any:
    if not path.is_file():
        raise DecoderError(f"cannot load a causal language model from {path}: there is no such file")
    try:
        import gguf
    except ImportError as error:
        raise DecoderError(f'{path}: {error}; install "asyncthink-kernels[gguf]"') from None
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise DecoderError(f"cannot load a causal language model from {path}: {error}") from error
