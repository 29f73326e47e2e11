"""The cells of the grid as data: which tree decodes one token a leaf, with how many heads. No torch.

A tree is written `nodes of each level|tokens of each node`: `1,10|4000,400` is a prefix of 4000 tokens with 10 branches
of 400 each, `256|1024` are 256 sequences that share nothing. `~512` on the last level: leaves of 1 to 1023 tokens,
drawn once and for all from the tree's text.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

HEADS = ((32, 8), (64, 8), (16, 1), (8, 1), (32, 32))
PREFIXES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BRANCHES = (1, 2, 4, 8, 16, 32, 64)
SUFFIXES = ("32", "128", "512", "2048", "~512")
TREES = (
    "1,10|4000,400",
    "1,256|256,32",
    "1,16,64|1024,256,32",
    "1,4,16,512|1024,256,128,32",
    "4,16,256|512,32,128",
    "256|1024",
)


@dataclass(frozen=True)
class Tree:
    """`nodes[l]` nodes of `tokens[l]` tokens on level l; node i is a child of node `i * nodes[l - 1] // nodes[l]`."""

    text: str
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    ragged: bool

    @cached_property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of every node, level by level; a leaf's include the one that is decoded."""
        fixed = [(tokens,) * nodes for nodes, tokens in zip(self.nodes, self.tokens, strict=True)]
        if self.ragged:
            rng = random.Random(self.text)
            fixed[-1] = tuple(rng.randrange(1, 2 * self.tokens[-1]) for _ in range(self.nodes[-1]))
        return tuple(fixed)

    @property
    def rows(self) -> int:
        """T: one row a leaf."""
        return self.nodes[-1]

    @cached_property
    def unique_tokens(self) -> int:
        """Tokens that at least one row sees, each counted once."""
        return sum(map(sum, self.lengths))

    @cached_property
    def contexts(self) -> tuple[int, ...]:
        """Tokens that each row sees."""
        seen = list(self.lengths[0])
        for above, level in zip(self.nodes, self.lengths[1:], strict=False):
            seen = [seen[i * above // len(level)] + length for i, length in enumerate(level)]
        return tuple(seen)


def parse_tree(text: str) -> Tree:
    """
    >>> parse_tree("1,10|4000,400").nodes, parse_tree("1,2|16,4").contexts
    ((1, 10), (20, 20))

    Raises ValueError where the text is no tree: levels of unequal number, a level whose nodes do not divide evenly
    among those above, a count below 1, `~` above the last level.
    """
    match = re.fullmatch(r"(\d+(?:,\d+)*)\|((?:\d+,)*~?\d+)", text)
    if match is None:
        raise ValueError(f"tree: expected 'nodes,nodes|tokens,tokens', got {text!r}")
    nodes = tuple(map(int, match[1].split(",")))
    tokens = tuple(map(int, match[2].replace("~", "").split(",")))
    if len(nodes) != len(tokens):
        raise ValueError(f"tree: expected as many node counts as token counts, got {text!r}")
    if min(nodes + tokens) < 1:
        raise ValueError(f"tree: expected counts of at least 1, got {text!r}")
    if any(below % above for above, below in pairwise(nodes)):
        raise ValueError(f"tree: expected each level a multiple of the one above, got {text!r}")
    return Tree(text, nodes, tokens, "~" in match[2])


@dataclass(frozen=True)
class Cell:
    """A decoding step: `heads` query heads on `kv_heads`, all of `head_dim`, a new token for each leaf of the tree."""

    tree: Tree
    heads: int
    kv_heads: int
    head_dim: int = 128
    page_size: int = 16

    @property
    def name(self) -> str:
        return f"{self.heads}/{self.kv_heads} {self.tree.text}"

    def bytes(self, itemsize: int) -> int:
        """What must move at least: K and V of every unique token, queries, outputs."""
        rows = 2 * self.tree.rows * self.heads
        return (2 * self.tree.unique_tokens * self.kv_heads + rows) * self.head_dim * itemsize

    @property
    def operations(self) -> int:
        """Of the two matrix products, a multiply-add counted as two."""
        return 4 * sum(self.tree.contexts) * self.heads * self.head_dim


def parse_cell(name: str) -> Cell:
    """
    >>> parse_cell("8/2 1,4|64,16").bytes(2)
    147456
    """
    heads, _, tree = name.partition(" ")
    query, _, kv = heads.partition("/")
    if not (query.isdecimal() and kv.isdecimal() and int(kv) >= 1 and int(query) >= 1 and int(query) % int(kv) == 0):
        raise ValueError(f"cell: expected 'heads/kv_heads tree', got {name!r}")
    return Cell(parse_tree(tree), int(query), int(kv))


def prefix(prefix: int, branches: int, suffix: str) -> str:
    """The tree of branches behind one prefix."""
    return f"1,{branches}|{prefix},{suffix}"


def quick() -> list[str]:
    """What ten minutes hold, the most telling first: a run that ends early has measured from every part of the grid."""
    heads = {f"{q}/{kv}": (q, kv) for q, kv in HEADS}
    first, *others = heads
    names = [f"{first} {tree}" for tree in TREES]
    names += [f"{first} {prefix(p, b, '128')}" for b in (16, 64, 4, 1) for p in (8192, 32768, 2048, 512)]
    names += [f"{first} {prefix(8192, 16, suffix)}" for suffix in ("~512", "32", "512", "2048")]
    for tree in (prefix(8192, 16, "128"), TREES[0], prefix(32768, 64, "128"), TREES[3]):
        names += [f"{each} {tree}" for each in others]
    for tree in (prefix(8192, 1, "128"), prefix(512, 8, "128"), TREES[1], TREES[2], TREES[4], TREES[5]):
        names += [f"{each} {tree}" for each in others]
    return names


def everything() -> list[str]:
    """The quick cells, then every other one: heads x (trees + prefix x branches x suffix)."""
    trees = [*TREES, *(prefix(p, b, s) for p in PREFIXES for b in BRANCHES for s in SUFFIXES)]
    return list(dict.fromkeys([*quick(), *(f"{q}/{kv} {tree}" for tree in trees for q, kv in HEADS)]))


def chosen(cells: str) -> list[Cell]:
    """`quick`, `all`, or those of all whose name a regular expression finds. ValueError where that is none."""
    names = quick() if cells == "quick" else everything()
    if cells not in ("quick", "all"):
        names = [name for name in names if re.search(cells, name)]
    if not names:
        raise ValueError(f"cells: expected 'quick', 'all' or a regular expression that finds a cell, got {cells!r}")
    return [parse_cell(name) for name in names]
