"""Served over HTTP: a model on caches of its own, and one with recurrent layers."""

from __future__ import annotations

import pytest

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode
from scripted import PROMPTS
from served import served
from tiny_fallbacks import taught_own
from tiny_hybrids import taught_hybrid

ASK = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 40, "temperature": 0.8}


@pytest.mark.parametrize("kind", ["falcon", "qwen3_5"])
def test_answers_are_the_engines_and_say_what_forks_copied(kind: str) -> None:
    own = kind == "falcon"
    options = {"fallback": True} if own else {"num_states": 24}
    model, tok = taught_own(kind) if own else taught_hybrid(kind)
    with served(ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=400, **options)) as server:
        copied = 0
        for seed in range(4):
            body = ASK | {"model": "tiny", "seed": seed, "asyncthink": {"record": True}}
            told = server.post("/v1/chat/completions", **body).json()["asyncthink"]
            record = Episode.from_dict(told["record"])
            params = SamplingParams(temperature=0.8, max_tokens=40, seed=seed)
            request = server.engine.sampler.request(ASK["messages"], params)
            expected = server.engine.submit(request).result()
            assert [trace.tokens for trace in record.traces] == [trace.tokens for trace in expected.traces]
            assert told["kv_bytes_shared"] == 0 or not own
            copied += told["kv_bytes_copied"] if own else told["state_bytes_copied"]
        assert copied > 0
        figures = server.client.get("/metrics").text
    name = "kv" if own else "state"
    (line,) = [line for line in figures.splitlines() if line.startswith(f"asyncthink_{name}_copied_bytes_total")]
    assert float(line.split()[-1]) >= copied
    assert f"asyncthink_states {0 if own else 24}.0\n" in figures
