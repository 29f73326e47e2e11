"""Written traces: the file, the rules of the protocol, the demonstrations and tokens that they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.protocol.codec import Codec
from asyncthink.tasks import Countdown, Demonstration
from asyncthink.train.demonstrations import encode
from asyncthink.train.loading import TINY_PROMPTS
from asyncthink.train.tokenizer import build_tokenizer
from asyncthink.train.traces import WrittenAgent, WrittenTrace, read_traces, to_line, write_traces

TOKENIZER = build_tokenizer()
ORGANIZER = "<FORK-1>2*3?</FORK-1> 4*5=20 <JOIN-1> 6+20=26 <ANSWER>26</ANSWER>"
WORKER = {"parent": 0, "index": 1, "text": "2*3=6 <RETURN>6</RETURN>"}
LINE: dict[str, Any] = {"question": "2*3 + 4*5?", "agents": [{"text": ORGANIZER}, WORKER]}


def written(demonstration: Demonstration) -> WrittenTrace:
    """What the agents of a demonstration say."""
    agents = [
        WrittenAgent(
            "".join(piece.text for piece in script.pieces if piece.said),
            script.parent if script.role == "worker" else None,
            script.fork_index,
        )
        for script in demonstration.scripts
    ]
    options = {"mode": demonstration.mode, "pool": demonstration.pool, "depth": demonstration.depth}
    return WrittenTrace(demonstration.question, tuple(agents), context=demonstration.context, **options)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(["asyncthink", "sequential"]),
    context=st.sampled_from(["shared", "isolated"]),
    depth=st.integers(1, 2),
)
def test_a_demonstration_survives_the_file(seed: int, mode: str, context: str, depth: int) -> None:
    """Written down, read again and encoded, it is the episode that it was."""
    task = Countdown()
    said = task.demonstrate(task.sample(seed), seed, mode, context, 4, depth)
    trace = WrittenTrace.from_dict(json.loads(to_line(written(said))))
    assert trace == written(said)
    before, after = (encode(each, TOKENIZER, TINY_PROMPTS) for each in (said, trace.demonstration()))
    assert len(before.traces) == len(after.traces)
    for one, other in zip(before.traces, after.traces, strict=True):
        for name in ("tokens", "sampled", "fork_index", "fork_at", "parent", "role", "text", "joins"):
            assert getattr(one, name) == getattr(other, name), name


def test_files_hold_their_traces(tmp_path: Path) -> None:
    traces = [
        WrittenTrace.from_dict(LINE),
        WrittenTrace.from_dict(LINE | {"id": "α", "score": 0.5, "context": "isolated", "source": {"model": "m"}}),
        WrittenTrace("two\nlines", (WrittenAgent("\u2028 7 <ANSWER>7</ANSWER>"),), mode="sequential", pool=1),
    ]
    write_traces(tmp_path / "t.jsonl", traces)
    assert read_traces(tmp_path / "t.jsonl") == traces
    assert traces[0].answer == "26"
    assert traces[0].demonstration("isolated").context == "isolated"
    assert traces[0].demonstration().scripts[1].subquery == "2*3?"


def agents(*texts: str, **more: object) -> dict[str, Any]:
    first, *others = texts
    workers = [{"parent": 0, "index": k, "text": text} for k, text in enumerate(others, 1)]
    return {"question": "?", "agents": [{"text": first}, *workers], **more}


RETURN, ANSWER = "<RETURN>1</RETURN>", "<ANSWER>1</ANSWER>"
FORKS = "<FORK-1>a</FORK-1><FORK-2>b</FORK-2>"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"agents": [{"text": ANSWER}]}, r"\$: 'question' is a required property"),
        (LINE | {"scor": 1}, r"\$: Additional properties are not allowed \('scor' was unexpected\)"),
        (LINE | {"mode": "parallel"}, r"mode: 'parallel' is not one of \['asyncthink', 'sequential'\]"),
        (LINE | {"agents": [{"text": 7}]}, r"agents\[0\].text: 7 is not of type 'string'"),
        (
            LINE | {"agents": [{"text": ORGANIZER}, {"text": ANSWER}]},
            r"agents\[1\].parent: expected an agent before",
        ),
        (LINE | {"agents": [WORKER]}, r"agents\[0\].parent: expected none for the first agent, got 0"),
        (LINE | {"agents": [{"text": ORGANIZER}]}, r"agents: expected one worker for <FORK-1> of agent 0, got 0"),
        (LINE | {"agents": [{"text": ANSWER}, WORKER]}, r"agents\[1\]: expected a <FORK-1> of agent 0, got none"),
        (
            LINE | {"agents": [{"text": ORGANIZER}, WORKER, WORKER]},
            r"agents: expected one worker for <FORK-1> .*, got 2",
        ),
        (agents("no tags"), r"agents\[0\].text: no answer"),
        (agents("<ANSWER>1"), r"agents\[0\].text: unclosed tag: <ANSWER>"),
        (agents(f"<JOIN-1>{ANSWER}"), r"agents\[0\].text: join of an index never forked: <JOIN-1>"),
        (agents(f"<FORK-1>a</FORK-1>{ANSWER}", "none"), r"agents\[1\].text: worker without RETURN"),
        (agents(f"{FORKS}{ANSWER}", RETURN, f"<FORK-1>x</FORK-1>{RETURN}"), r"agents\[2\].text: nested tag: <FORK-1>"),
        (agents(f"{ANSWER} more"), r"agents\[0\].text: expected nothing behind the end, got ' more'"),
        (agents(f"{FORKS}{ANSWER}", RETURN, RETURN, pool=2), r"pool: expected at most 2 agents alive, got 3"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=rf"^traces: .*t.jsonl, line 3: {reason}"):
        read_traces(path)


def test_a_join_frees_a_place_in_the_pool() -> None:
    organizer = f"<FORK-1>a</FORK-1><JOIN-1><FORK-2>b</FORK-2><JOIN-2>{ANSWER}"
    assert WrittenTrace.from_dict(agents(organizer, RETURN, RETURN, pool=2)).pool == 2


def test_a_worker_counts_with_its_own() -> None:
    line = agents(f"<FORK-1>a</FORK-1>{ANSWER}", f"<FORK-1>x</FORK-1><JOIN-1>{RETURN}", depth=2, pool=2)
    line["agents"].append({"parent": 1, "index": 1, "text": RETURN})
    with pytest.raises(ValueError, match="pool: expected at most 2 agents alive, got 3"):
        WrittenTrace.from_dict(line)
    assert WrittenTrace.from_dict(line | {"pool": 3}).demonstration().scripts[2].subquery == "x"


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"traces: there is no file .*none.jsonl"):
        read_traces(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"traces: .*empty.jsonl holds no traces"):
        read_traces(tmp_path / "empty.jsonl")
    (tmp_path / "cut.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:40])
    with pytest.raises(ValueError, match=r"cut.jsonl, line 2: expected JSON, got '{\"question\""):
        read_traces(tmp_path / "cut.jsonl")


def test_tags_are_the_only_control_tokens_of_a_trace() -> None:
    """A model that writes an end of text does not teach to draw one."""
    end = TOKENIZER.eos_token
    trace = WrittenTrace("1+1?", (WrittenAgent(f"1{end}1 <ANSWER>2</ANSWER>"),), mode="sequential", pool=1)
    episode = encode(trace.demonstration(), TOKENIZER, TINY_PROMPTS)
    drawn = [token for token, said in zip(episode.traces[0].tokens, episode.traces[0].sampled, strict=True) if said]
    assert TOKENIZER.eos_token_id not in drawn
    assert Codec(TOKENIZER).decode(drawn) == f"1{end}1 <ANSWER>2</ANSWER>"
    tag = Codec(TOKENIZER).encode([("<ANSWER>", True)], continues=True)
    assert any(drawn[k : k + len(tag)] == tag for k in range(len(drawn)))
