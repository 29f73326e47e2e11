"""Servers of each kind as doubles: what is asked of them, what their answers mean, what happens when they fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from asyncthink.engine.remote.errors import BrokenError, RefusedError, UnreachableError
from asyncthink.engine.remote.replicas import Replicas
from asyncthink.engine.remote.retries import Retries
from asyncthink.engine.remote.server import Server
from asyncthink.engine.remote.transport import Ask, Chunk
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.guide import Rule

ASK = Ask([5, 6, 7], 9, SamplingParams(temperature=0.5, top_k=4, top_p=0.9, seed=11), ("<JOIN-1>",), 2, 3, "one")
AT_ONCE = Retries(most=4, first=0.0, longest=0.0)


def events(*values: Any, done: bool = True) -> bytes:
    lines = [b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) for value in values]
    return b"\n\n".join([*lines, *([b"data: [DONE]"] if done else [])]) + b"\n\n"


def completion(ids: list[int], reason: str | None = None, text: str = "x") -> dict[str, Any]:
    logprobs = {"token_logprobs": [-0.5 * token for token in ids]} if ids else None
    return {"choices": [{"index": 0, "text": text, "token_ids": ids, "logprobs": logprobs, "finish_reason": reason}]}


class Double:
    """Answers requests one after the other, the last answer for ever."""

    def __init__(self, owner: str, *answers: bytes | httpx.Response | Exception) -> None:
        self.owner, self.answers, self.bodies = owner, list(answers), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": self.owner, "max_model_len": 64}]})
        self.bodies.append(json.loads(request.content))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, content=answer)


def client(*doubles: Double) -> httpx.AsyncClient:
    """One for hosts 0, 1, ..."""
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda request: doubles[int(request.url.host)](request)))


async def drawn(source: Server | Replicas, ask: Ask = ASK) -> list[Chunk]:
    return [chunk async for chunk in source.draw(ask)]


def from_one(double: Double, ask: Ask = ASK, **named: Any) -> list[Chunk]:
    return asyncio.run(drawn(Server("http://0/v1/", client(double), **named), ask))


def test_vllm_is_asked_for_ids_and_tells_them() -> None:
    double = Double(
        "vllm", events(completion([3, 4]), completion([], text=""), completion([8], "stop"), {"choices": []})
    )
    assert from_one(double) == [Chunk([3, 4], [-1.5, -2.0]), Chunk([8], [-4.0])]
    (body,) = double.bodies
    assert body["prompt"] == [5, 6, 7] and body["model"] == "m" and body["stop"] == ["<JOIN-1>"]
    assert (body["temperature"], body["top_k"], body["top_p"], body["max_tokens"]) == (0.5, 4, 0.9, 9)
    assert body["return_token_ids"] and body["logprobs"] == 0 and not body["skip_special_tokens"]
    assert 0 <= body["seed"] < 2**31 and "asyncthink" not in body


def test_vllm_takes_four_stop_strings_and_ours_all() -> None:
    many = Ask([5], 9, ASK.params, tuple("abcdef"))
    for owner, expected in (("vllm", "abcd"), ("asyncthink", "abcdef")):
        double = Double(owner, events(completion([3], "stop")))
        from_one(double, many)
        assert double.bodies[0]["stop"] == list(expected)


def test_seeds_differ_by_agent_and_position() -> None:
    double = Double("vllm", events(completion([3], "stop")))
    asks = [ASK, Ask([5], 9, ASK.params, agent=2, position=4), Ask([5], 9, ASK.params, agent=3, position=3)]
    for ask in [*asks, ASK]:
        from_one(double, ask)
    seeds = [body["seed"] for body in double.bodies]
    assert len(set(seeds)) == 3 and seeds[0] == seeds[3]
    from_one(double, Ask([5], 9, SamplingParams(temperature=0.0, seed=3)))
    assert "seed" not in double.bodies[-1], "a greedy request needs none"


def test_ours_is_told_agent_position_and_rule() -> None:
    double = Double("asyncthink", events(completion([3], "stop")))
    from_one(double, Ask([5], 9, ASK.params, agent=2, position=3, rule=Rule(("FORK",), ("</FORK-1>",)), tail="</"))
    (body,) = double.bodies
    assert body["seed"] == 11 and "skip_special_tokens" not in body
    own = body["asyncthink"]
    assert (own["agent"], own["position"], own["tail"], own["rule"]["tags"]) == (2, 3, "</", ["</FORK-1>"])


@pytest.mark.parametrize("cumulative", [True, False])
def test_sglang_by_both_of_its_ways_to_stream(cumulative: bool) -> None:
    rows = [[-0.5, 3, None], [-1.0, 4, None], [-1.5, 8, None]]

    def told(first: int, last: int, reason: Any = None) -> dict[str, Any]:
        shown = rows[: last if cumulative else None][0 if cumulative else first : last]
        return {
            "text": "x",
            "meta_info": {"output_token_logprobs": shown, "completion_tokens": last, "finish_reason": reason},
        }

    double = Double("sglang", events(told(0, 2), told(2, 3), told(3, 3, {"type": "stop", "matched": 2})))
    assert from_one(double) == [Chunk([3, 4], [-0.5, -1.0]), Chunk([8], [-1.5])]
    (body,) = double.bodies
    assert body["input_ids"] == [5, 6, 7] and body["return_logprob"] and body["sampling_params"]["max_new_tokens"] == 9
    assert body["sampling_params"]["no_stop_trim"] and "prompt" not in body


def test_an_aborted_request_of_sglang_is_tried_again() -> None:
    info = {"output_token_logprobs": [], "completion_tokens": 0, "finish_reason": {"type": "abort", "message": "full"}}
    with pytest.raises(BrokenError, match="gave the request up: full"):
        from_one(Double("sglang", events({"meta_info": info})))


def test_lines_end_at_newlines_alone() -> None:
    odd = json.dumps(completion([3], "stop", "\u2028\x85"), ensure_ascii=False).encode()
    assert from_one(Double("vllm", events(odd).replace(b"\n", b"\r\n"))) == [Chunk([3], [-1.5])]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (httpx.Response(400, json={"error": {"message": "too long"}}), RefusedError, "http://0: 400: too long"),
        (httpx.Response(404, text="<html>no"), RefusedError, "404: <html>no"),
        (httpx.Response(500, text="oh"), BrokenError, "500: oh"),
        (httpx.ConnectError("refused"), BrokenError, "ConnectError: refused"),
        (events(completion([3]), done=False), BrokenError, "without its end"),
        (events(completion([3]), {"error": {"message": "full", "code": 503}}), BrokenError, "full"),
        (events({"error": {"message": "bad", "code": 400}}), RefusedError, "bad"),
        (events({"choices": [{"text": "x", "finish_reason": None}]}), RefusedError, "return_token_ids"),
        (events({"choices": [{"text": "x", "token_ids": [3], "finish_reason": None}]}), RefusedError, "for each of 1"),
        (events(b"{not json"), RefusedError, "expected an answer of its kind"),
    ],
)  # fmt: skip
def test_errors_say_where_and_what(answer: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        from_one(Double("vllm", answer))


def test_who_it_is_is_checked() -> None:
    with pytest.raises(RefusedError, match="kind asyncthink, vllm, sglang, got 'ollama'"):
        from_one(Double("ollama", b""))
    assert from_one(Double("ollama", events(completion([3], "stop"))), kind="vllm") == [Chunk([3], [-1.5])]
    with pytest.raises(RefusedError, match="model: expected one of m, got 'other'"):
        from_one(Double("vllm", b""), model="other")
    with pytest.raises(RefusedError, match="guide: expected 'off' on vllm"):
        from_one(Double("vllm", b""), Ask([5], 1, ASK.params, rule=Rule(("FORK",))))


def run(doubles: list[Double], work: Callable[[Replicas], Any], retries: Retries = AT_ONCE) -> Any:
    async def go() -> Any:
        async with client(*doubles) as shared:
            servers = [Server(f"http://{k}", shared) for k in range(len(doubles))]
            return await work(Replicas(servers, retries=retries))

    return asyncio.run(go())


FINE = events(completion([3], "stop"))
FULL = httpx.Response(429, headers={"retry-after": "0"}, text="full")


def test_a_full_server_is_asked_again() -> None:
    double, other = Double("vllm", FULL, FULL, FINE), Double("vllm", FINE)

    async def work(replicas: Replicas) -> Any:
        return await drawn(replicas), replicas.stats

    chunks, stats = run([double, other], work)
    assert chunks == [Chunk([3], [-1.5])] and stats.failures == 2 and stats.moved == 0
    assert len(double.bodies) == 3 and not other.bodies, "the episode's prefix cache is there"


def test_an_episode_moves_when_its_server_is_down_and_others_stay() -> None:
    down = httpx.Response(503, headers={"retry-after": "60"}, text="closing")
    first, second = Double("vllm", FINE, down), Double("vllm", FINE)

    async def work(replicas: Replicas) -> Any:
        for session in ("one", "two", "one", "two", "one"):
            await drawn(replicas, Ask([5], 9, ASK.params, session=session))
        return replicas.where("one"), replicas.where("two"), replicas.stats

    one, two, stats = run([first, second], work)
    assert (one, two) == ("http://1", "http://1") and len(first.bodies) == 2 and len(second.bodies) == 4
    assert stats.moved == 1 and stats.failures == 1


def test_sessions_are_spread() -> None:
    async def work(replicas: Replicas) -> Any:
        for session in "abcd":
            await drawn(replicas, Ask([5], 9, ASK.params, session=session))
        replicas.forget("b")
        await drawn(replicas, Ask([5], 9, ASK.params, session="e"))
        return [replicas.where(session) for session in "abcde"]

    assert run([Double("vllm", FINE), Double("vllm", FINE)], work) == [
        "http://0",
        "",
        "http://0",
        "http://1",
        "http://1",
    ]


def test_what_came_before_a_failure_is_kept_and_not_asked_again() -> None:
    double = Double("vllm", events(completion([3]), done=False), FINE)

    async def work(replicas: Replicas) -> Any:
        return await drawn(replicas), len(double.bodies), await drawn(replicas)

    assert run([double], work) == ([Chunk([3], [-1.5])], 1, [Chunk([3], [-1.5])])


def test_a_dead_server_is_given_up_after_all_attempts() -> None:
    double = Double("vllm", httpx.ConnectError("refused"))
    with pytest.raises(UnreachableError, match="no answer after 4 attempts: http://0: ConnectError: refused"):
        run([double], drawn)
    assert len(double.bodies) == 4


def test_a_refusal_is_final() -> None:
    double = Double("vllm", httpx.Response(400, text="no"))
    with pytest.raises(RefusedError):
        run([double], drawn)
    assert len(double.bodies) == 1


def test_requests_are_bounded() -> None:
    class Waits(Server):
        under_way = most = 0

        async def draw(self, ask: Ask):  # type: ignore[no-untyped-def, override]
            Waits.under_way += 1
            Waits.most = max(Waits.most, Waits.under_way)
            for _ in range(5):
                await asyncio.sleep(0)
            yield Chunk([1], [0.0])
            Waits.under_way -= 1

    async def go() -> None:
        replicas = Replicas([Waits("http://0", client())], max_requests=3)
        await asyncio.gather(*(drawn(replicas) for _ in range(10)))

    asyncio.run(go())
    assert Waits.most == 3


@pytest.mark.parametrize(("name", "value"), [("most", 0), ("first", -1.0), ("longest", float("nan"))])
def test_retries_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Retries(**{name: value})  # type: ignore[arg-type]
