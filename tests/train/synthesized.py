"""Questions, and a run of `asyncthink train synthesize` on the double of a server (:mod:`chat_double`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_double import Double, Told, document

from asyncthink.train.synthesize.asking import Document
from asyncthink.train.synthesize.questions import Question

pytest.importorskip("openai", reason="the extra synthesize is not installed")
from asyncthink.train.synthesize.run import Synthesis

QUESTIONS = [Question(f"{k} + 1?", grade=lambda answer: float(answer == "4")) for k in range(5)]


def options(server: Double, out: Path, **more: Any) -> Synthesis:
    return Synthesis(server.url, "double", out, more.pop("asking", Document()), **more)


def right(body: dict[str, Any], number: int) -> Told:
    return Told(document(body))
