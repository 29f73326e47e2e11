"""One server for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tiny_models as tm
from asyncthink import ForkJoinSampler
from scripted import PROMPTS
from served import Served, served


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """A tiny random model that often organizes."""
    model, tok = tm.organizer()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=256)
    with served(sampler) as server:
        yield server
