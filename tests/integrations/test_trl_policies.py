"""Both policies draw the same episodes, and take the trainer's weights whole or not at all."""

from __future__ import annotations

import functools
import json
from concurrent.futures import CancelledError
from pathlib import Path

import httpx
import pytest
import torch
from rollouts import sampler

from asyncthink import Options, SamplingParams
from asyncthink.engine.async_engine import EngineStoppedError
from asyncthink.engine.remote.errors import RefusedError, UnreachableError
from asyncthink.engine.remote.retries import Retries
from asyncthink.episode.records import Episode
from asyncthink.integrations.trl.policy import LocalPolicy
from asyncthink.integrations.trl.server import ServerPolicy
from asyncthink.serve.settings import Settings
from served import served

OPTIONS, PARAMS = Options(pool=3, context="isolated"), SamplingParams(max_tokens=30, seed=2**63 + 3)
OPEN = Settings("tiny", api_key="key", weight_updates=True)


def told(episode: Episode) -> list[tuple[list[int], list[bool]]]:
    return [(trace.tokens, trace.sampled) for trace in episode.traces]


def other_weights() -> dict[str, torch.Tensor]:
    model = sampler().decoder.model
    with torch.no_grad():
        model.lm_head.weight.neg_()  # type: ignore[union-attr]
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_the_server_draws_what_this_process_draws_before_and_after_new_weights(tmp_path: Path) -> None:
    local = LocalPolicy(sampler())
    with served(sampler(), OPEN) as server:
        remote = ServerPolicy(server.url, tmp_path, api_key="key")
        drawn = []
        for policy in (local, remote):
            policy.init_weight_transfer()
            before = policy.submit(" 5 9 2", PARAMS, OPTIONS).result()
            policy.pause()
            waiting = policy.submit(" 5 9 2", PARAMS, OPTIONS)
            policy.send_weights(iter(other_weights().items()))
            assert not waiting.done()
            policy.resume()
            drawn.append((before, waiting.result()))
        remote.destroy()
        remote.destroy()
    (a, b), (c, d) = drawn
    assert told(a) == told(c) and told(b) == told(d) and told(a) != told(b)
    assert a.traces[0].logprobs == pytest.approx(c.traces[0].logprobs, abs=1e-5)
    assert list(tmp_path.iterdir()) == []
    local.destroy()
    local.destroy()
    with pytest.raises(EngineStoppedError):
        local.submit(" 5 9 2", PARAMS, OPTIONS)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("nothing", torch.zeros(2), "expected names of the model's parameters, got 'nothing'"),
        ("lm_head.weight", torch.zeros(2), r"lm_head.weight: expected \(\d+, 48\), got \(2,\)"),
        ("model.norm.weight", torch.full((48,), torch.nan), "model.norm.weight: expected finite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused_whole(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    sent = {**other_weights(), name: tensor}
    local = LocalPolicy(sampler())
    with served(sampler(), OPEN) as server:
        remote = ServerPolicy(server.url, tmp_path, api_key="key")
        for policy, engine, error in ((local, local.engine, ValueError), (remote, server.engine, RefusedError)):
            kept = {name: weight.detach().clone() for name, weight in engine.sampler.decoder.model.named_parameters()}
            with pytest.raises(error, match=message):
                policy.send_weights(iter(sent.items()))
            assert all(torch.equal(w, kept[name]) for name, w in engine.sampler.decoder.model.named_parameters())
        remote.destroy()
    assert list(tmp_path.iterdir()) == []
    local.destroy()


def test_a_server_that_takes_no_weights_or_has_gone_says_so(tmp_path: Path) -> None:
    with served(sampler(), Settings("tiny")) as server:
        policy = ServerPolicy(server.url, tmp_path, retries=Retries(most=2, first=0.0))
        with pytest.raises(RefusedError, match="started with --allow-weight-updates"):
            policy.init_weight_transfer()
        with pytest.raises(RefusedError, match=r"/v1/chat/completions: 400: .*pool"):
            policy.submit("q", PARAMS, Options(pool=99)).result()
        with pytest.raises(ValueError, match=r"params.timeout: expected None \(the server has its own\), got 3"):
            policy.submit("q", SamplingParams(timeout=3), OPTIONS)
    with pytest.raises(UnreachableError, match=r"no answer after 2 attempts: .*ConnectError"):
        policy.submit("q", PARAMS, OPTIONS).result()
    policy.destroy()
    with pytest.raises(ValueError, match="folder: expected one that exists"):
        ServerPolicy("http://127.0.0.1:1", tmp_path / "none")


def test_a_cancelled_future_cancels_the_episode_on_the_server(tmp_path: Path) -> None:
    with served(sampler(), OPEN) as server:
        policy = ServerPolicy(server.url, tmp_path, api_key="key")
        policy.pause()
        running = [policy.submit(" 1 2 3", PARAMS, OPTIONS) for _ in range(3)]
        while server.engine.stats().waiting < 3:
            pass
        assert running[0].cancel()
        with pytest.raises(CancelledError):
            running[0].result()
        while server.engine.stats().waiting > 2:
            pass
        policy.destroy()
        assert all(future.cancelled() for future in running)
        while server.engine.stats().waiting:
            pass
        server.engine.resume()


@pytest.mark.parametrize("seconds", [0, None])
def test_what_may_pass_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int | None) -> None:
    told = {} if seconds is None else {"retry-after": str(seconds)}
    passing = [httpx.Response(status, headers=told) for status in (429, 503, 504)] + [httpx.ConnectError("gone")]
    record = Episode("q", "asyncthink", "shared", "exact", 4, 0).to_dict()
    answer, asked = httpx.Response(200, json={"asyncthink": {"record": record}}), list[bytes]()

    def answers(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        next_ = passing.pop(0) if passing else answer
        if isinstance(next_, Exception):
            raise next_
        return next_

    double = functools.partial(httpx.AsyncClient, transport=httpx.MockTransport(answers))
    monkeypatch.setattr("asyncthink.integrations.trl.server.httpx.AsyncClient", double)
    policy = ServerPolicy("http://server", tmp_path, retries=Retries(most=5, first=0.0))
    assert policy.submit("q", PARAMS, OPTIONS).result().question == "q"
    assert len(asked) == 5 and len(set(asked)) == 1
    assert json.loads(asked[0])["seed"] == PARAMS.seed
    passing += [httpx.Response(503)] * 4
    policy.pause()
    passing += [httpx.Response(503, text="busy")] * 5
    with pytest.raises(UnreachableError, match=r"no answer after 5 attempts: http://server/resume: 503: busy"):
        policy.resume()
    passing.append(httpx.Response(501, text="off"))
    with pytest.raises(RefusedError, match="501: off"):
        policy.resume()
    assert not passing
    policy.destroy()
