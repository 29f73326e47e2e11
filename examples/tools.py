"""Agents with tools: a calculator, and a search in a given text.

Run it with ``python examples/tools.py``: any instruct model whose chat template has a place for tools serves, this one
is downloaded once. The functions' signatures and docstrings are all that the model is told; nothing else can be called.
"""

from __future__ import annotations

import ast
from operator import add, mul, sub, truediv
from typing import Any

from asyncthink import Episode, ForkJoinSampler, SamplingParams, Tool

QUESTION = "How many litres do the casks of both cellars hold?"
TEXT = """The north cellar holds 17 casks of 225 litres each.
The south cellar holds 9 casks of 500 litres each.
The tower holds a bell."""
OPERATIONS: dict[type, Any] = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


def calculator(expression: str) -> str:
    """Work out a sum such as 3 * (4 + 5).

    Args:
        expression: Numbers, + - * / and parentheses.
    """

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return float(OPERATIONS[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        raise ValueError(f"expected numbers, + - * / and parentheses, got {expression}")

    return f"{value(ast.parse(expression, mode='eval').body):g}"


def search(word: str) -> str:
    """Find the lines of the text that have a word in them.

    Args:
        word: The word.
    """
    return "\n".join(line for line in TEXT.splitlines() if word.lower() in line.lower()) or "no line has it"


def main(model: Any = "Qwen/Qwen3-0.6B", tokenizer: Any = None) -> Episode:
    sampler = ForkJoinSampler(model, tokenizer, tools=[calculator, Tool(search, timeout=5.0)], pool=3)
    (episode,) = sampler.generate([QUESTION], SamplingParams(temperature=0.0))
    for trace in episode.traces:
        for use in trace.tools:
            print(f"agent {trace.agent}: {use.name}({use.arguments}) -> {use.result}")
    print(f"answer: {episode.answer}")
    return episode


if __name__ == "__main__":
    main()
