"""FlashInfer in four variants, each on our own pages through tables of shared page ids.

Written for flashinfer-python 0.6.12. It compiles its kernels with nvcc at first use.
"""

from __future__ import annotations

import functools
import importlib
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .contestant import Contestant
from .problem import Problem, block_tables, indptr, page_tables

WORKSPACE = 512 << 20  # bytes; its documentation recommends 128 MB, too few for 512 rows of 64 heads


@functools.cache
def library() -> Any:
    """The package, or the reason it cannot be imported."""
    try:
        return importlib.import_module("flashinfer")
    except Exception as error:  # its imports fail in many ways
        return f"not importable: {type(error).__name__}: {error}"


@functools.cache
def workspace(device: torch.device) -> Tensor:
    """Scratch of all wrappers, zeroed as its decode wrapper asks: one runs at a time."""
    return torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)


class FlashInfer(Contestant):
    """What the variants share: `wrapper` is one of its classes, `tables` are what its plan is told."""

    peer = "flashinfer"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        cell = problem.cell
        self.heads = {"num_qo_heads": cell.heads, "num_kv_heads": cell.kv_heads}
        self.types = {"q_data_type": problem.dtype, "kv_data_type": problem.dtype}
        self.caches = (problem.k_cache, problem.v_cache)
        self.prepare()

    @classmethod
    def missing(cls, device: str) -> str | None:
        if device != "cuda":
            return "runs on CUDA only"
        return library() if isinstance(library(), str) else None

    @classmethod
    def why_not(cls, problem: Problem) -> str | None:
        if not problem.whole_pages:
            return "a node above the leaves ends within a page: its page tables cannot say so"
        return cls.missing(problem.device.type)

    @abstractmethod
    def prepare(self) -> None:
        """Make the wrapper, and the tables from the cache."""


class BatchDecode(FlashInfer):
    """Decode on tensor cores, a page table a row; rows share ids, not reads."""

    name = "FlashInfer BatchDecode (tensor cores)"

    def prepare(self) -> None:
        x = self.problem
        pages, lengths = block_tables(x)
        last = (lengths - 1) % x.cell.page_size + 1
        self.tables = (indptr([len(each) for each in pages]), torch.cat(pages), last)
        self.wrapper = library().BatchDecodeWithPagedKVCacheWrapper(workspace(x.device), "NHD", use_tensor_cores=True)

    def plan(self) -> None:
        cell = self.problem.cell
        self.wrapper.plan(*self.tables, **self.heads, head_dim=cell.head_dim, page_size=cell.page_size, **self.types)

    def run(self) -> Tensor:
        out: Tensor = self.wrapper.run(self.problem.q, self.caches)
        return out


class BatchAttention(FlashInfer):
    """Its persistent kernel that balances work over the chip, on the same page tables."""

    name = "FlashInfer BatchAttention"

    def prepare(self) -> None:
        x = self.problem
        pages, lengths = block_tables(x)
        rows = indptr([1] * len(pages))
        self.tables = (rows, indptr([len(each) for each in pages]), torch.cat(pages).to(x.device), lengths)
        self.wrapper = library().BatchAttention("NHD", str(x.device))

    def plan(self) -> None:
        cell = self.problem.cell
        sizes = {"head_dim_qk": cell.head_dim, "head_dim_vo": cell.head_dim, "page_size": cell.page_size}
        self.wrapper.plan(*self.tables, **self.heads, **sizes, **self.types)

    def run(self) -> Tensor:
        out: Tensor = self.wrapper.run(self.problem.q, self.caches)[0]
        return out


class Cascade(FlashInfer):
    """Multi-level cascade: each level's pages read once for the rows below it, levels merged by their LSEs."""

    name = "FlashInfer cascade (auto)"

    def prepare(self) -> None:
        x = self.problem
        tables = [page_tables(x, level) for level in x.levels]
        rows = [indptr([node.end - node.begin for node in level]) for level in x.levels]
        self.tables = (rows, *(list(column) for column in zip(*tables, strict=True)))
        self.wrapper = library().MultiLevelCascadeAttentionWrapper(len(x.levels), workspace(x.device), "NHD")

    def plan(self) -> None:
        cell = self.problem.cell
        self.wrapper.plan(*self.tables, **self.heads, head_dim=cell.head_dim, page_size=cell.page_size, **self.types)
        self.detail = ", ".join(dict.fromkeys(each._backend for each in self.wrapper._batch_prefill_wrappers))

    def run(self) -> Tensor:
        out: Tensor = self.wrapper.run(self.problem.q, self.caches)
        return out


class CascadeFa2(Cascade):
    """The same with the fa2 backend at each level; the cascade's constructor has no argument for it."""

    name = "FlashInfer cascade (fa2)"

    def prepare(self) -> None:
        super().prepare()
        levels, scratch = len(self.problem.levels), workspace(self.problem.device)
        paged = library().BatchPrefillWithPagedKVCacheWrapper
        self.wrapper._batch_prefill_wrappers = [paged(scratch, "NHD", backend="fa2") for _ in range(levels)]
