"""llama.cpp from the wheel of xllamacpp, which needs no build: its C functions through ctypes.

The wheel brings no headers, so parameters are changed where this version has them; the defaults it returns are compared
with what is expected there. Its best on a CPU, as measured: one K/V buffer for all sequences ("unified"), flash
attention off. Sequences share what they begin with without a copy. K and V are float16, as is its default, and float32
where the weights are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xllamacpp
from torch import Tensor

from engines import MOST_BRANCHES, NEW

VERSION = "2026.10.11549"
F32, F16 = 0, 1  # of ggml_type
BATCH = 2048  # rows of a prefill's call
Params = ctypes.c_uint8 * 512  # larger than both records: the callee reads its own part
#: Of llama_context_params: byte offset, type, default, what we set.
_FIELDS: dict[str, tuple[int, Any, int]] = {
    "n_ctx": (0, ctypes.c_uint32, 512),
    "n_batch": (4, ctypes.c_uint32, 2048),
    "n_ubatch": (8, ctypes.c_uint32, 512),
    "n_seq_max": (12, ctypes.c_uint32, 1),
    "n_threads": (28, ctypes.c_int32, 4),
    "n_threads_batch": (32, ctypes.c_int32, 4),
    "flash_attn_type": (52, ctypes.c_int32, -1),
    "type_k": (104, ctypes.c_int32, F16),
    "type_v": (108, ctypes.c_int32, F16),
    "kv_unified": (141, ctypes.c_uint8, 0),
}


class _Record(ctypes.Structure):
    _fields_ = (("bytes", Params),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def _library() -> Any:
    library: Any = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "llama_backend_init": (None, ()),
        "llama_log_set": (None, (pointer, pointer)),
        "llama_model_default_params": (_Record, ()),
        "llama_context_default_params": (_Record, ()),
        "llama_model_load_from_file": (pointer, (ctypes.c_char_p, _Record)),
        "llama_init_from_model": (pointer, (pointer, _Record)),
        "llama_get_memory": (pointer, (pointer,)),
        "llama_batch_init": (_Batch, (number, number, number)),
        "llama_batch_free": (None, (_Batch,)),
        "llama_decode": (number, (pointer, _Batch)),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (pointer, number)),
        "llama_memory_seq_rm": (ctypes.c_bool, (pointer, number, number, number)),
        "llama_memory_seq_cp": (None, (pointer, number, number, number, number)),
        "llama_free": (None, (pointer,)),
        "llama_model_free": (None, (pointer,)),
    }
    for name, (result, arguments) in signatures.items():
        getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
    return library


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class LlamaCppWheel:
    note = (
        f"llama.cpp: wheel of xllamacpp {VERSION}, GGUF of the same weights, unified K/V (float16, beside float32 "
        "weights float32), flash attention off, prefix shared by sequence copies."
    )

    def __init__(
        self, path: Path, longest: int, vocabulary: int, *, threads: int | None = None, wide: bool = False
    ) -> None:
        if xllamacpp.__version__ != VERSION:
            raise RuntimeError(f"xllamacpp: expected {VERSION}, whose records are known, got {xllamacpp.__version__}")
        self.c = _library()
        self.c.llama_log_set(ctypes.cast(_SILENT, ctypes.c_void_p), None)
        self.c.llama_backend_init()
        self.model = self.c.llama_model_load_from_file(str(path).encode(), self.c.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        threads = threads or torch.get_num_threads()
        self.context = self.c.llama_init_from_model(
            self.model,
            self._params(
                n_ctx=longest + MOST_BRANCHES * NEW,
                n_batch=BATCH,
                n_seq_max=MOST_BRANCHES + 1,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn_type=0,
                type_k=F32 if wide else F16,
                type_v=F32 if wide else F16,
                kv_unified=1,
            ),
        )
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = self.c.llama_get_memory(self.context)
        self.rows = self.c.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = vocabulary
        self.prefix = self.decoded = 0

    def _params(self, **changes: int) -> _Record:
        record = self.c.llama_context_default_params()
        for name, (offset, kind, default) in _FIELDS.items():
            field = kind.from_buffer(record, offset)
            if field.value != default:
                raise RuntimeError(f"llama_context_params: expected {name} = {default} at {offset}, got {field.value}")
            field.value = changes.get(name, default)
        return record

    def prefill(self, tokens: Sequence[int]) -> None:
        self.c.llama_memory_seq_rm(self.memory, -1, -1, -1)
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            self.decode([(token, begin + k, 0, k == len(part) - 1) for k, token in enumerate(part)])
        self.prefix = len(tokens)

    def branch(self, count: int) -> None:
        for sequence in range(1, MOST_BRANCHES + 1):
            self.c.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        for sequence in range(1, count + 1):
            self.c.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        self.decoded = 0

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        position = self.prefix + self.decoded
        self.decode([(token, position, 1 + k, True) for k, token in enumerate(tokens)])
        self.decoded += 1
        return [self.logits(k) for k in range(len(tokens))]

    def text(self, tokens: Sequence[int]) -> Tensor:
        """Logits [T, V] of all tokens [T <= BATCH] of a text; forgets everything else."""
        self.c.llama_memory_seq_rm(self.memory, -1, -1, -1)
        self.decode([(token, k, 0, True) for k, token in enumerate(tokens)])
        return torch.stack([self.logits(k) for k in range(len(tokens))])

    def logits(self, row: int) -> Tensor:
        """[V], of a row of the last call that asked for them; valid until the next one."""
        values = self.c.llama_get_logits_ith(self.context, row)
        return torch.from_numpy(np.ctypeslib.as_array(values, (self.vocabulary,)))

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """At most BATCH rows: (token, position, sequence, whether its logits are asked for)."""
        batch = self.rows
        batch.n_tokens = len(rows)
        for k, (token, position, sequence, logits) in enumerate(rows):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.seq_id[k][0] = token, position, 1, sequence
            batch.logits[k] = logits
        code = self.c.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: expected 0, got {code}")

    def close(self) -> None:
        self.c.llama_batch_free(self.rows)
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)
