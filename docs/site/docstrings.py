"""Docstrings are written for a reader of the source; this makes their Sphinx roles and literal blocks Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?\.?([^`]+)`")
BLOCK = re.compile(r"::\n\n(?= {4})")
RULE = re.compile(r"^=+( =+)+$", re.MULTILINE)
DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Roles become code, ``text::`` before an indented block ``text:``, ruled tables and doctests code blocks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    text = ROLE.sub(r"`\1`", text)
    text = BLOCK.sub(":\n\n", text)
    text = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)
    rules = list(RULE.finditer(text))
    if len(rules) >= 2:
        start, end = rules[0].start(), rules[-1].end()
        text = f"{text[:start]}```\n{text[start:end]}\n```{text[end:]}"
    return text
