"""The server as its clients see it: the openai package, curl, httpx."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest

from asyncthink import SamplingParams
from asyncthink.episode.options import Options
from asyncthink.episode.records import Episode
from served import Served

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 40, "seed": 3, "temperature": 0.8}
TEXT = {"mode": "sequential", "answer": "text"}


def expected(tiny: Served, options: Options | None = None) -> Episode:
    params = SamplingParams(temperature=0.8, max_tokens=40, seed=3)
    request = tiny.engine.sampler.request([{"role": "user", "content": "q"}], params, options)
    return tiny.engine.submit(request).result()


def client(tiny: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)


def test_openai_gets_the_engines_episode(tiny: Served) -> None:
    answer = client(tiny).chat.completions.create(model="tiny", **ASK, extra_body={"asyncthink": {"record": True}})
    episode = expected(tiny)
    told = answer.model_extra["asyncthink"]
    assert episode.forks and told["forks"] == episode.forks and told["agents"] == len(episode.traces)
    record = Episode.from_dict(told["record"])
    assert [trace.tokens for trace in record.traces] == [trace.tokens for trace in episode.traces]
    assert told["critical_path_tokens"] == episode.critical_path_tokens and told["finish"] == episode.finish
    assert answer.choices[0].message.content == (episode.answer or "")
    assert all(trace.text in answer.choices[0].message.reasoning_content for trace in episode.traces)
    assert answer.usage.completion_tokens == episode.total_tokens
    assert answer.usage.prompt_tokens == record.traces[0].sampled.index(True)


def test_openai_streams_the_same(tiny: Served) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with client(tiny).chat.completions.create(
        model="tiny", **ASK, **options, extra_body={"asyncthink": {"record": True}}
    ) as stream:
        chunks = list(stream)
    record = Episode.from_dict(chunks[-1].model_extra["asyncthink"]["record"])
    assert [t.tokens for t in record.traces] == [t.tokens for t in expected(tiny).traces]
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == record.total_tokens
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    deltas = [chunk.choices[0].delta.model_extra for chunk in chunks[1:-2]]
    events = [delta["asyncthink"]["event"] for delta in deltas if "event" in delta["asyncthink"]]
    assert events == record.to_dict()["events"]
    for trace in record.traces:
        pieces = [d["reasoning_content"] for d in deltas if d["asyncthink"]["agent"] == trace.agent and len(d) == 2]
        assert "".join(pieces) == trace.text
    content = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(content) == (record.answer or "")


def test_a_plain_chat_streams_its_content(tiny: Served) -> None:
    body = {**ASK, "stop": ["FORK-2"]}
    whole = client(tiny).chat.completions.create(model="tiny", **body, logprobs=True, extra_body={"asyncthink": TEXT})
    parts = client(tiny).chat.completions.create(model="tiny", **body, stream=True, extra_body={"asyncthink": TEXT})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert text == whole.choices[0].message.content and text and "FORK-2" not in text
    assert "reasoning_content" not in whole.choices[0].message.model_extra
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    assert all(entry.logprob <= 0 for entry in whole.choices[0].logprobs.content)


def test_openai_async_clients_share_steps(tiny: Served) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as many:
            create = many.chat.completions.create
            return await asyncio.gather(*(create(model="tiny", **{**ASK, "seed": seed}) for seed in range(8)))

    answers = asyncio.run(ask())
    assert [answer.model_extra["asyncthink"]["seed"] for answer in answers] == list(range(8))


def test_choices_have_seeds_that_follow(tiny: Served) -> None:
    wild = {**ASK, "temperature": 4.0}
    three = client(tiny).chat.completions.create(model="tiny", **wild, n=3)
    last = client(tiny).chat.completions.create(model="tiny", **{**wild, "seed": 5})
    thoughts = [choice.message.reasoning_content for choice in three.choices]
    assert thoughts[2] == last.choices[0].message.reasoning_content and len(set(thoughts)) > 1
    assert [choice.model_extra["asyncthink"]["seed"] for choice in three.choices] == [3, 4, 5]


def test_completions_by_text_and_by_ids(tiny: Served) -> None:
    create = client(tiny).completions.create
    same: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0, "logprobs": 0}
    by_text = create(prompt="O:q", **same, extra_body={"return_token_ids": True}).choices[0]
    ids = tiny.post("/v1/tokenize", prompt="O:q").json()["tokens"]
    by_ids = create(prompt=ids, **same, extra_body={"return_token_ids": True}).choices[0]
    assert by_text.text == by_ids.text and by_text.model_extra == by_ids.model_extra
    assert by_text.logprobs.token_logprobs == pytest.approx(by_ids.logprobs.token_logprobs, abs=1e-4)
    assert by_ids.model_extra["prompt_token_ids"] == ids
    drawn = by_ids.model_extra["token_ids"]
    assert len(drawn) == len(by_ids.logprobs.token_logprobs) and by_ids.text
    assert tiny.post("/v1/detokenize", tokens=drawn).json()["prompt"].startswith(by_ids.text)
    several = create(prompt=[ids, ids], **same, n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in several.choices} == {by_text.text}
    assert several.usage.prompt_tokens == 2 * len(ids)
    streamed = create(prompt=ids, **same, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == by_text.text


def test_echo_scores_the_prompt_as_the_model_does(tiny: Served) -> None:
    ids = tiny.post("/v1/tokenize", prompt="O:q\n<FORK-1>ab</FORK-1>").json()["tokens"]
    told = tiny.post("/v1/completions", prompt=ids, max_tokens=0, echo=True, logprobs=1).json()["choices"][0]
    import torch

    import tiny_models as tm

    logprobs = tm.eager(tiny.engine.sampler.decoder.model, torch.tensor(ids)).log_softmax(-1)
    exact = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(told["logprobs"]["token_logprobs"][1:]), exact, atol=1e-4, rtol=0)
    best = [max(top.values()) for top in told["logprobs"]["top_logprobs"][1:]]
    torch.testing.assert_close(torch.tensor(best), logprobs[:-1].amax(-1), atol=1e-4, rtol=0)
    assert told["text"] == "O:q\n<FORK-1>ab</FORK-1>" and told["finish_reason"] == "length"


def test_openai_lists_the_model(tiny: Served) -> None:
    (model,) = client(tiny).models.list()
    assert model.id == "tiny" and model.model_extra["max_model_len"] == 256 * 16


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(tiny: Served) -> None:
    def curl(path: str, *options: str) -> str:
        command = ["curl", "-sS", *options, tiny.url + path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert json.loads(curl("/health")) == {"status": "ok"}
    assert "asyncthink_pages 256.0" in curl("/metrics")
    body = json.dumps({**ASK, "stream": True})
    lines = curl("/v1/chat/completions", "-N", "-d", body, "-H", "content-type: application/json").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert json.loads(lines[-3].removeprefix("data: "))["asyncthink"]["seed"] == 3
    assert curl("/").startswith("<!doctype html>") or "<html" in curl("/")


def test_metrics_count(tiny: Served) -> None:
    tiny.post("/v1/chat/completions", **ASK)
    text = tiny.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["asyncthink_healthy"]) == 1 and float(values["asyncthink_forks_total"]) > 0
    assert float(values["asyncthink_drawn_tokens_total"]) > 0 and float(values["asyncthink_pages"]) == 256
    assert float(values["asyncthink_time_to_first_token_seconds_count"]) > 0
    assert float(values["asyncthink_prefix_hit_tokens_total"]) > 0


def test_a_streamed_completion_tells_ids_as_they_are_drawn(tiny: Served) -> None:
    body = {"prompt": "O:q", "max_tokens": 6, "temperature": 0.7, "seed": 5, "logprobs": 0, "return_token_ids": True}
    whole = tiny.post("/v1/completions", **body).json()["choices"][0]
    with tiny.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    assert [token for choice in choices for token in choice["token_ids"]] == whole["token_ids"]
    told = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]]
    assert told == pytest.approx(whole["logprobs"]["token_logprobs"], abs=1e-4)
    assert len([choice for choice in choices if choice["token_ids"]]) == len(whole["token_ids"]), "one a step"
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    assert choices[-1]["prompt_token_ids"] == whole["prompt_token_ids"]


def test_a_completion_goes_on_as_an_agent_elsewhere(tiny: Served) -> None:
    """What an agent draws after its first tokens is what a request draws that is told how many there were."""
    body = {"max_tokens": 8, "temperature": 0.9, "seed": 5, "return_token_ids": True}
    whole = tiny.post("/v1/completions", prompt="O:q", **body, asyncthink={"agent": 2}).json()["choices"][0]
    ids = [*whole["prompt_token_ids"], *whole["token_ids"][:3]]
    rest = tiny.post("/v1/completions", prompt=ids, **body, asyncthink={"agent": 2, "position": 3}).json()
    assert rest["choices"][0]["token_ids"][:5] == whole["token_ids"][3:]
    other = tiny.post("/v1/completions", prompt="O:q", **body, asyncthink={"agent": 3}).json()["choices"][0]
    assert other["token_ids"] != whole["token_ids"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"agent": -1}, 422), ({"strange": 1}, 422), ({"rule": {"acting": ["FORK"], "text": "odd"}}, 422),
        ({"tail": "abc"}, 400),
    ],
)  # fmt: skip
def test_an_origin_is_checked(tiny: Served, given: dict[str, Any], status: int) -> None:
    answer = tiny.post("/v1/completions", prompt="q", max_tokens=2, asyncthink=given)
    assert answer.status_code == status and "asyncthink" in answer.json()["error"]["message"]


def test_a_rule_without_a_token_fails_its_own_request(tiny: Served) -> None:
    """It ends, and nothing else does."""
    rule = {"acting": ["ANSWER"], "text": "begun", "unlike": [*map(chr, range(1, 127)), "é"]}
    body: dict[str, Any] = {"prompt": "q", "max_tokens": 3}
    assert tiny.post("/v1/completions", **body, asyncthink={"rule": rule}).status_code == 500
    assert tiny.post("/v1/completions", **body).status_code == 200
