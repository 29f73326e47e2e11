"""Our own ops: the tree, the tree with its smallest tile, and plain block tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asyncthink_kernels import dispatch, paged_attention, tree_attention, tuning, use_backend

from .contestant import Contestant
from .problem import Problem, block_tables


class Tree(Contestant):
    """tree_attention as it comes. Its planning is TreeCache.plan, timed apart (Problem.planning)."""

    name = "tree_attention"
    ours = True

    def run(self) -> Tensor:
        x = self.problem
        return tree_attention(x.q, x.k_cache, x.v_cache, x.plan)

    def check(self) -> float:
        with tiles() as chosen:
            error = super().check()
        self.detail = ", ".join(dict.fromkeys(chosen))
        return error


class SmallestTile(Tree):
    """The same kernel with the fewest rows a tile: what the tile's choice is worth."""

    name = "tree_attention, smallest tile"

    @classmethod
    def missing(cls, device: str) -> str | None:
        return None if device == "cuda" else "only the GPU's kernels have tiles to choose from"

    def run(self) -> Tensor:
        with tiles(forced=1):
            return super().run()

    def check(self) -> float:
        error = super().check()
        if not self.detail:
            raise RuntimeError("the backend asked for no tile, so it cannot have used the smallest")
        return error


class TreeCuda(Tree):
    """The same plan on the CUDA C++ kernels."""

    name = "tree_attention, CUDA C++"

    @classmethod
    def missing(cls, device: str) -> str | None:
        if device != "cuda":
            return "only a GPU has them"
        rows = {row.backend: row for row in dispatch.explain("tree_attention", device)}
        return None if rows["cuda"].available else rows["cuda"].reason

    def run(self) -> Tensor:
        with use_backend("cuda"):
            return super().run()


class Paged(Contestant):
    """paged_attention: a block table a row, prefixes read again for each row."""

    name = "paged_attention"
    ours = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        pages, lengths = block_tables(problem)
        padded = torch.nn.utils.rnn.pad_sequence(pages, batch_first=True, padding_value=-1)
        self.tables, self.lengths = padded.to(problem.device), lengths.to(problem.device)

    @classmethod
    def why_not(cls, problem: Problem) -> str | None:
        return None if problem.whole_pages else "a node above the leaves ends within a page: no block table names it"

    def run(self) -> Tensor:
        x = self.problem
        return paged_attention(x.q, x.k_cache, x.v_cache, self.tables, self.lengths, chunk=x.chunk)


@contextmanager
def tiles(forced: float | None = None) -> Iterator[list[str]]:
    """Write down which tiles a backend asks `tuning` for; with `forced`, answer as for that many rows."""
    attention_tile, chosen = tuning.attention_tile, list[str]()

    def answer(arch: str, itemsize: int, head_dim: int, v_head_dim: int, rows: float) -> tuning.Tile:
        tile = attention_tile(arch, itemsize, head_dim, v_head_dim, rows if forced is None else forced)
        chosen.append(f"tile {tile.rows}x{tile.tokens}")
        return tile

    tuning.attention_tile = answer
    try:
        yield chosen
    finally:
        tuning.attention_tile = attention_tile
