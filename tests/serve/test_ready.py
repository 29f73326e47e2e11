"""A server is not ready before its steps are recorded, and serves meanwhile."""

from __future__ import annotations

import threading

import pytest

import tiny_models as tm
from asyncthink import ForkJoinSampler
from asyncthink_kernels.ops.step_program import native
from scripted import PROMPTS
from served import served


@pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
def test_health_says_when_steps_are_recorded() -> None:
    model, tok = tm.organizer()
    go_on = threading.Event()
    with served(
        ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=64), warm_up=2, progress=lambda phrase: go_on.wait()
    ) as server:
        answer = server.client.get("/health")
        assert answer.status_code == 503 and answer.json() == {"status": "recording steps"}
        assert server.client.get("/v1/models").status_code == 200
        go_on.set()
        assert server.post("/v1/completions", prompt="q", max_tokens=3).status_code == 200
        assert server.engine.warmed.result().startswith("steps of up to 2 agents were recorded")
        assert server.client.get("/health").json() == {"status": "ok"}
