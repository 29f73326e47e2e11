"""An episode over verl's server manager, without verl: requests, rows, figures, rewards."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from verl_doubles import PROMPTS, SAMPLING, SCRIPTS, CharacterTokenizer, ScriptedServers

from asyncthink.engine.prompting import texts_for
from asyncthink.engine.remote.driver import Driver
from asyncthink.engine.remote.transport import Ask
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.verl_outputs import outputs, reward_of
from asyncthink.integrations.verl_transport import ServerTransport, Usage
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.guide import Rule
from asyncthink.tasks import TASKS
from asyncthink.tasks.rewards import Reward, RewardRule

CODEC = Codec(CharacterTokenizer())


def run(
    servers: ScriptedServers, engine: str = "vllm", sampling: dict[str, Any] = SAMPLING, **given: Any
) -> tuple[Episode, ServerTransport]:
    options = Options(**{name: given.pop(name) for name in ("mode", "context") if name in given})
    transport = ServerTransport(servers, engine, sampling, **given)
    opening = "S:q\n" if options.mode == "sequential" else "O:q\n"
    core = EpisodeCore(
        "q", CODEC.encode([(opening, True)]), SamplingParams(seed=5), options, texts_for(CODEC, PROMPTS), max_length=500
    )
    episode = asyncio.run(Driver(core, transport, order="arrival", session="s").run())
    return episode, transport


@pytest.mark.parametrize("context", ["shared", "isolated"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_rows_of_an_episode(engine: str, context: str) -> None:
    servers = ScriptedServers(CODEC, SCRIPTS)
    episode, transport = run(servers, engine, context=context)
    assert (episode.answer, episode.format_errors, episode.failures) == ("z", [], [])
    rows = outputs(episode, transport.usage)
    whole = [CODEC.decode(row["prompt_ids"] + row["response_ids"]) for row in rows]
    workers = SCRIPTS[1:3] if context == "shared" else SCRIPTS[3:5]
    assert whole == [text.removesuffix("never") for text in (*workers, SCRIPTS[0])]
    organizer = rows[-1]
    assert all(len(row["prompt_ids"]) <= len(organizer["prompt_ids"]) == len("O:q\n") for row in rows)
    learned = [t for t, drawn in zip(organizer["response_ids"], organizer["response_mask"], strict=True) if drawn]
    assert "one" not in CODEC.decode(learned)
    assert [row["num_turns"] for row in rows] == [2, 2, 6]
    for row in rows:
        assert row["response_logprobs"] == [-0.5 * drawn for drawn in row["response_mask"]]


def test_the_schema_of_all_rows_is_one() -> None:
    """verl stacks the rows of an episode by their names; versions must be there, for it makes integers of them."""
    episode, transport = run(ScriptedServers(CODEC, SCRIPTS))
    rows = outputs(episode, transport.usage, Reward(1.0, 0.5, 0.1, False, 1.1), graded_in=2.0)
    assert len({tuple(sorted(row)) for row in rows}) == 1
    assert len({tuple(sorted(row["extra_fields"])) for row in rows}) == 1
    for row in rows:
        assert (row["extra_fields"]["min_global_steps"], row["extra_fields"]["max_global_steps"]) == (3, 3)
        assert row["reward_score"] == row["extra_fields"]["reward_extra_info"]["score"] == 1.1
    assert [row["metrics"].get("compute_score") for row in rows] == [None, None, 2.0]
    assert rows[-1]["metrics"]["num_preempted"] == 2 * transport.usage.requests
    about = rows[-1]["extra_fields"]["asyncthink"]
    assert (about["answer"], about["forks"], about["joins"], about["role"]) == ("z", 2.0, 2.0, "organizer")
    assert about["critical_path_tokens"] == episode.critical_path_tokens


def test_requests_are_of_one_session_and_stop_where_nothing_more_is_used() -> None:
    servers = ScriptedServers(CODEC, SCRIPTS)
    episode, _ = run(servers, priority=4)
    assert {(request["id"], request["priority"]) for request in servers.requests} == {("s", 4)}
    for request in servers.requests:
        assert request["include_stop_str_in_output"]
        assert (request["top_k"], request["repetition_penalty"], request["temperature"]) == (-1, 1.0, 1.0)
        assert "seed" not in request
    assert episode.total_tokens == sum(
        len(answer) for answer in ("p<RETURN>one</RETURN>", "<RETURN>two</RETURN>")
    ) + len(
        SCRIPTS[0].removeprefix("O:q\n").removesuffix("never").replace("one</JOIN-1>", "").replace("two</JOIN-2>", "")
    )


def test_sglang_is_asked_in_its_words() -> None:
    servers = ScriptedServers(CODEC, SCRIPTS)
    run(servers, "sglang", deterministic=True)
    assert all(request["no_stop_trim"] for request in servers.requests)
    assert len({request["sampling_seed"] for request in servers.requests}) == len(servers.requests)
    assert not any({"include_stop_str_in_output", "seed"} & request.keys() for request in servers.requests)


def test_deterministic_requests_have_names_and_seeds_of_their_own() -> None:
    asked = []
    for _ in range(2):
        servers = ScriptedServers(CODEC, SCRIPTS)
        run(servers, deterministic=True)
        asked.append(sorted((request["id"], request["seed"]) for request in servers.requests))
    assert asked[0] == asked[1]
    names, seeds = zip(*asked[0], strict=True)
    assert len(set(names)) == len(set(seeds)) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_without_log_probabilities_rows_have_none() -> None:
    episode, transport = run(ScriptedServers(CODEC, SCRIPTS), sampling=SAMPLING | {"logprobs": False})
    assert all(math.isnan(lp) for t in episode.traces for lp, drawn in zip(t.logprobs, t.sampled, strict=True) if drawn)
    assert [row["response_logprobs"] for row in outputs(episode, transport.usage, logprobs=False)] == [None] * 3


def test_one_agent_alone_is_one_row() -> None:
    episode, transport = run(ScriptedServers(CODEC, SCRIPTS), mode="sequential")
    (row,) = outputs(episode, transport.usage)
    assert CODEC.decode(row["prompt_ids"] + row["response_ids"]) == SCRIPTS[-1]


def test_an_aborted_answer_ends_the_rollout() -> None:
    servers = ScriptedServers(CODEC, SCRIPTS)
    servers.aborts = True
    with pytest.raises(RuntimeError, match=r"expected drawn tokens from the server, got \d+ and 'aborted'"):
        run(servers)


def test_what_the_servers_cannot_do_is_refused() -> None:
    servers = ScriptedServers(CODEC, SCRIPTS)
    with pytest.raises(ValueError, match=r"rollout.name: expected 'vllm' or 'sglang'.*got 'trtllm'"):
        ServerTransport(servers, "trtllm", SAMPLING)
    ruled = Ask([1], 1, SamplingParams(), rule=Rule(("ANSWER",)))
    with pytest.raises(ValueError, match="guide: expected 'off'"):
        asyncio.run(anext(ServerTransport(servers, "vllm", SAMPLING).draw(ruled)))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_puzzle_that_a_row_names_gives_the_reward(held_out: bool) -> None:
    task = TASKS["countdown"]
    puzzle = task.sample(7, held_out)
    (script, *_) = task.demonstrate(puzzle, 0).scripts
    answer = script.text.partition("<ANSWER>")[2].partition("</ANSWER>")[0]
    named = {"task": "countdown", "seed": 7, "held_out": held_out}
    right = Episode(task.prompt(puzzle), "asyncthink", answer=answer)
    assert reward_of(RewardRule(), named, right).accuracy == 1.0
    assert reward_of(RewardRule(), named, Episode("q", "asyncthink", answer="1")).total == 0.0
    with pytest.raises(ValueError, match="task: expected one of"):
        reward_of(RewardRule(), named | {"task": "nonsense"}, right)


def test_usage_without_counts() -> None:
    usage = Usage()
    assert (usage.preempted, usage.versions) == (-1, set())
    assert outputs(Episode("q", "asyncthink"), usage) == []
