"""Traces from another model: drawn action sequences, rules, and a file that survives any end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_double import Told, document, double
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.train.synthesize.actions import actions_of, follows, sample_actions
from asyncthink.train.synthesize.asking import Asked, Document, agents_of
from asyncthink.train.synthesize.journal import journal, rejected_path
from asyncthink.train.synthesize.questions import Question, from_file
from asyncthink.train.synthesize.rules import RejectedError, Reply, check
from asyncthink.train.traces import WrittenTrace, read_traces

pytest.importorskip("openai", reason="the extra synthesize is not installed")
from synthesized import QUESTIONS, options, right

from asyncthink.train.synthesize.run import synthesize


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), pool=st.integers(2, 5), least=st.integers(1, 3), more=st.integers(0, 3))
def test_drawn_sequences_are_legal_and_a_trace_can_follow_them(seed: int, pool: int, least: int, more: int) -> None:
    actions = sample_actions(random.Random(seed), pool, (least, least + more))
    asked = {"messages": [{"content": f"Sequence: {', '.join(actions)}"}]}
    trace = WrittenTrace("?", Document(pool).read(document(asked), {}), pool=pool)  # raises where a pool overflows
    assert follows(actions_of(trace), actions)
    assert actions_of(trace) == actions
    assert least <= sum(action.startswith("FORK") for action in actions) <= least + more
    assert sum(action.startswith("JOIN") for action in actions) == len(trace.agents) - 1


def test_sequences_vary() -> None:
    drawn = {sample_actions(random.Random(seed), 4, (1, 4)) for seed in range(200)}
    assert len(drawn) > 100


def test_traces_are_kept_with_what_they_cost(tmp_path: Path) -> None:
    with double(right) as server:
        told = options(server, tmp_path / "t.jsonl", temperature=0.7, max_tokens=900, extra={"top_p": 0.9}, samples=2)
        totals = synthesize(told, QUESTIONS, "secret")
    traces = read_traces(tmp_path / "t.jsonl")
    assert {trace.id for trace in traces} == {f"{question.id}-{k}" for question in QUESTIONS for k in (0, 1)}
    assert {trace.score for trace in traces} == {1.0}
    assert (totals.kept, totals.prompt_tokens, totals.completion_tokens, totals.unpriced) == (10, 1000, 200, 0)
    assert len({tuple(trace.source["actions"]) for trace in traces}) > 3
    body = server.requests[0]
    fields = ("model", "temperature", "max_completion_tokens", "top_p")
    assert [body[name] for name in fields] == ["double", 0.7, 900, 0.9]
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in (tmp_path / "t.jsonl").read_text()


def test_rejected_replies_are_asked_for_again_with_other_actions(tmp_path: Path) -> None:
    def stubborn(body: dict[str, Any], number: int) -> Told:
        return Told("I would rather not.") if number % 3 < 2 else right(body, number)

    out = tmp_path / "t.jsonl"
    with double(stubborn) as server:
        totals = synthesize(options(server, out, concurrency=1), QUESTIONS[:2], "none")
        assert (totals.kept, dict(totals.rejected), totals.prompt_tokens) == (2, {"sections": 4}, 600)
        again = synthesize(options(server, out, concurrency=1), QUESTIONS[:2], "none")
    assert (again, len(server.requests)) == (totals, 6)
    sequences = {body["messages"][-1]["content"] for body in server.requests}
    assert len(sequences) > 4
    (first, *_) = map(json.loads, rejected_path(out).read_text().splitlines())
    assert first["reply"] == "I would rather not." and first["detail"].startswith("expected the line [organizer] first")


def test_attempts_end(tmp_path: Path) -> None:
    with double(lambda body, number: Told("no")) as server:
        totals = synthesize(options(server, tmp_path / "t.jsonl", attempts=2), QUESTIONS, "none")
        assert (totals.kept, len(server.requests)) == (0, 10)
        more = synthesize(options(server, tmp_path / "t.jsonl", attempts=3), QUESTIONS, "none")
    assert (sum(more.rejected.values()), len(server.requests)) == (15, 15)


PLAN = Asked([], {}, ("FORK-1", "JOIN-1", "ANSWER"))

GOOD = "[organizer]\n<FORK-1>a</FORK-1>\n<JOIN-1>\n[worker 1]\n<RETURN>3</RETURN>\n[organizer]\n<ANSWER>4</ANSWER>"


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("no", "sections", r"expected the line \[organizer\] first, got 'no'"),
        ("", "protocol", r"agents\[0\].text: no answer"),
        (GOOD.replace("[worker 1]", "[worker 2]"), "protocol", r"agents\[1\]: expected a <FORK-2>"),
        (GOOD.replace("<JOIN-1>", "<JOIN-1>3</JOIN-1>"), "protocol", "mismatched closing tag: </JOIN-1>"),
        (GOOD.replace(">3<", "> <"), "empty", "the return of agent 1"),
        (GOOD.replace(">a<", "> <"), "empty", "the sub-query of <FORK-1>"),
        (GOOD.replace(">4<", "> <"), "empty", "the answer"),
        (GOOD.replace("4", "5"), "answer", "expected a score of at least 1.0, got 0.0 for '5'"),
        ("[organizer]\n<ANSWER>4</ANSWER>", "actions", "expected FORK-1 JOIN-1 ANSWER, got ANSWER"),
    ],
)
def test_rules(text: str, reason: str, detail: str) -> None:
    with pytest.raises(RejectedError, match=detail) as caught:
        check(Reply(text), PLAN, Document(), QUESTIONS[3], 1.0)
    assert caught.value.reason == reason


def test_replies_that_pass() -> None:
    for text in (GOOD, f"<think>[organizer]\nhm</think>\n{GOOD}", f"```text\n{GOOD}\n```", GOOD.replace("[w", "[W")):
        trace = check(Reply(text), PLAN, Document(), QUESTIONS[3], 1.0)
        assert trace.agents[0].text == "<FORK-1>a</FORK-1>\n<JOIN-1>\n<ANSWER>4</ANSWER>"
    assert check(Reply(GOOD.replace("4", "5")), PLAN, Document(), Question("?"), 1.0).score is None
    with pytest.raises(RejectedError, match="cut: 20 tokens"):
        check(Reply(GOOD, "length", usage={"completion_tokens": 20}), PLAN, Document(), QUESTIONS[0], 1.0)


def test_an_end_of_text_closes_a_result() -> None:
    """As the guide "plan" lets it: the trace gets the closing tags that were not drawn."""
    organizer = Trace(0, "organizer", text="<FORK-1>a\n</FORK-1>\n<JOIN-1>b</JOIN-1>\n<ANSWER>c<eos>", returned="c")
    organizer.joins.append(Join(1, 1, 0, 1, "exact"))
    worker = Trace(1, "worker", 0, 1, text="<RETURN>b<eos>", returned="b")
    agents = agents_of(Episode("?", "asyncthink", traces=[organizer, worker], answer="c"))
    assert [agent.text for agent in agents] == [
        "<FORK-1>a\n</FORK-1>\n<JOIN-1>\n<ANSWER>c</ANSWER>",
        "<RETURN>b</RETURN>",
    ]
    with pytest.raises(ValueError, match="pool overflow"):
        agents_of(Episode("?", "asyncthink", format_errors=["pool overflow: <FORK-4>"]))
    with pytest.raises(ValueError, match="no answer: the episode ended by 'timeout'"):
        agents_of(Episode("?", "asyncthink", finish="timeout"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "t.jsonl"
    with double(right) as server:
        synthesize(options(server, out, concurrency=1), QUESTIONS, "none")
    return out


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_completed(whole: Path, data: st.DataObject, tmp_path_factory: Any) -> None:
    """What stood whole before the cut is kept, the rest is asked for again, nothing is there twice."""
    content = whole.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    out = tmp_path_factory.mktemp("cut") / "t.jsonl"
    out.write_bytes(content[:cut])
    with double(right) as server:
        synthesize(options(server, out), QUESTIONS, "none")
    kept = content[:cut].count(b"\n")
    assert len(server.requests) == len(QUESTIONS) - kept
    assert out.read_bytes().startswith(content[: content[:cut].rfind(b"\n") + 1])
    assert sorted(trace.id for trace in read_traces(out)) == sorted(f"{question.id}-0" for question in QUESTIONS)


@pytest.mark.parametrize("when", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_process_is_gone_on_with(tmp_path: Path, when: int) -> None:
    """SIGKILL while replies are on their way and lines are being written."""
    questions, out = tmp_path / "q.txt", tmp_path / "t.jsonl"
    questions.write_text("\n".join(f"question {k}" for k in range(12)))
    process: list[subprocess.Popen[bytes]] = []
    started = threading.Event()

    def deadly(body: dict[str, Any], number: int) -> Told:
        started.wait()
        if number == when:
            process[0].send_signal(signal.SIGKILL)
        return Told(document(body))

    code = (
        "import sys; from pathlib import Path\n"
        "from asyncthink.train.synthesize.asking import Document\n"
        "from asyncthink.train.synthesize.questions import from_file\n"
        "from asyncthink.train.synthesize.run import Synthesis, synthesize\n"
        "url, out, questions = sys.argv[1:]\n"
        "synthesize(Synthesis(url, 'm', Path(out), Document(), concurrency=2), from_file(Path(questions)), 'none')\n"
        "assert 'torch' not in sys.modules\n"
    )
    with double(deadly) as server:
        command = [sys.executable, "-c", code, server.url, str(out), str(questions)]
        process.append(subprocess.Popen(command))
        started.set()
        assert process[0].wait() == -signal.SIGKILL
        lines = out.read_bytes().count(b"\n")
        assert lines >= when - 1 - 2  # all but the replies that were on their way
        process[0] = subprocess.Popen(["true"])
        asked = len(server.requests)
        synthesize(options(server, out), from_file(questions), "none")
        assert len(server.requests) - asked == 12 - lines
    assert sorted(trace.question for trace in read_traces(out)) == sorted(f"question {k}" for k in range(12))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    with journal(out), pytest.raises(ValueError, match=r"another process writes .*t.jsonl"), journal(out):
        pass
    out.write_text("something else\n")
    with pytest.raises(ValueError, match=r"t.jsonl, line 1: expected JSON"), journal(out):
        pass
    assert out.read_text() == "something else\n"


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("2 + 2?\n3 + 1?\n")
    with double(right) as server:
        command = [sys.executable, "-m", "asyncthink", "train", "synthesize", "--server", server.url, "--model", "m"]
        command += ["--questions", str(tmp_path / "q.txt"), "--out", str(tmp_path / "t.jsonl"), "--json"]
        done = subprocess.run(
            [*command, "--price-in", "2"], capture_output=True, text=True, env=os.environ, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "kept": 2,
        "rejected": {},
        "prompt_tokens": 200,
        "completion_tokens": 40,
        "replies_without_usage": 0,
        "cost": 0.0004,
        "asked": 2,
        "out": str(tmp_path / "t.jsonl"),
    }
    failed = subprocess.run([*command, "--task", "countdown"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (
        1,
        "asyncthink: questions: expected --questions or --task, got both\n",
    )
