"""What a model is asked for a trace, and the trace in its reply.

Two ways to ask: for a :class:`Document`, one reply in which any model writes what all agents write; or for an
:class:`Organized` episode, which our own server runs under a guide.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, Protocol

from asyncthink.episode.records import Episode
from asyncthink.protocol.tags import join_insert
from asyncthink.train.synthesize.actions import check_forks, sample_actions
from asyncthink.train.traces import WrittenAgent

SYSTEM = """\
You write examples of how a team solves a problem together. An organizer thinks about the problem and hands parts of \
it to workers, who think at the same time as the organizer goes on.

The organizer writes text and these tags:
<FORK-1>a task for worker 1</FORK-1> starts worker 1. The task is written out in full: a worker may not see anything \
else.
<JOIN-1> waits for worker 1. From then on the organizer knows its result. There is no closing tag.
<ANSWER>the final answer</ANSWER> ends the organizer's text.
A worker thinks step by step, and its text ends with <RETURN>its result, short and complete</RETURN>.

Rules:
- The organizer follows the sequence of actions that you are given. THINK means: it does part of the work itself, in \
words, at this place. The numbers of the tags are those of the sequence.
- Fork only what does not depend on a result that is not joined yet, and do not use a result before its JOIN.
- Never put one tag inside another. Workers use no tag but RETURN.

Your reply has sections, each under a line with a name in brackets, and nothing else. A worker's section stands before \
the organizer goes on behind its JOIN. For the sequence FORK-1, FORK-2, THINK, JOIN-2, JOIN-1, ANSWER:

[organizer]
The sum has three products; two can be computed elsewhere.
<FORK-1>What is 17 * 24?</FORK-1>
<FORK-2>What is 13 * 31?</FORK-2>
Meanwhile, 9 * 9 = 81.
<JOIN-2>
[worker 2]
13 * 31 = 13 * 30 + 13 = 390 + 13 = 403. <RETURN>403</RETURN>
[organizer]
81 + 403 = 484.
<JOIN-1>
[worker 1]
17 * 24 = 17 * 20 + 17 * 4 = 340 + 68 = 408. <RETURN>408</RETURN>
[organizer]
484 + 408 = 892. <ANSWER>892</ANSWER>"""

_SECTION = re.compile(r"^[ \t]*\[(organizer|worker ([1-9][0-9]{0,2}))\][ \t]*$", re.MULTILINE | re.IGNORECASE)
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # of models that show how they came to their reply
_FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its messages, further fields of its body, and the actions that the organizer is to follow.

    ``actions`` is None where they are not prescribed.
    """

    messages: list[dict[str, str]]
    body: dict[str, Any]
    actions: tuple[str, ...] | None


class Asking(Protocol):
    """A way to ask for a trace."""

    @property
    def fields(self) -> dict[str, Any]:
        """What the traces have in common: fields of :class:`.traces.WrittenTrace`."""

    def ask(self, question: str, rng: random.Random) -> Asked:
        """The request for a trace of this question; a pure function of its arguments."""

    def read(self, message: str, extra: dict[str, Any]) -> tuple[WrittenAgent, ...]:
        """The agents in a reply, from its text and its further fields. Raises ValueError if there are none."""


@dataclass(frozen=True, slots=True)
class Document:
    """One reply holds what the organizer and its workers write, in the order of a drawn action sequence."""

    pool: int = 4
    forks: tuple[int, int] = (1, 4)

    def __post_init__(self) -> None:
        check_forks(self.forks, self.pool)

    @property
    def fields(self) -> dict[str, Any]:
        return {"pool": self.pool, "context": "isolated"}

    def ask(self, question: str, rng: random.Random) -> Asked:
        actions = sample_actions(rng, self.pool, self.forks)
        user = f"Problem: {question}\n\nSequence: {', '.join(actions)}"
        return Asked([{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}], {}, actions)

    def read(self, message: str, extra: dict[str, Any]) -> tuple[WrittenAgent, ...]:
        text = _THOUGHTS.sub("", message).strip()
        text = match[1] if (match := _FENCE.match(text)) else text
        before, *pieces = _SECTION.split(text)
        if before.strip():
            raise ValueError(f"expected the line [organizer] first, got {before.strip()!r:.80}")
        sections: dict[int, list[str]] = {0: []}
        for number, content in zip(pieces[1::3], pieces[2::3], strict=True):
            sections.setdefault(int(number or 0), []).append(content.strip())
        texts = {number: "\n".join(filter(None, contents)) for number, contents in sections.items()}
        workers = [WrittenAgent(texts[number], 0, number) for number in sorted(texts) if number]
        return (WrittenAgent(texts[0]), *workers)


@dataclass(frozen=True, slots=True)
class Organized:
    """Our own server runs an episode under the guide "plan", with a drawn number of forks, or "legal"."""

    guide: str
    pool: int = 4
    forks: tuple[int, int] = (1, 3)
    context: str = "shared"

    def __post_init__(self) -> None:
        if self.guide not in ("plan", "legal"):
            raise ValueError(f"guide: expected plan or legal, got {self.guide!r}")
        check_forks(self.forks, self.pool)
        if self.forks[1] >= self.pool:
            raise ValueError(f"forks: expected at most {self.pool - 1} (a plan forks all at once), got {self.forks[1]}")

    @property
    def fields(self) -> dict[str, Any]:
        return {"pool": self.pool, "context": self.context}

    def ask(self, question: str, rng: random.Random) -> Asked:
        options: dict[str, Any] = {"mode": "asyncthink", "guide": self.guide, "record": True, **self.fields}
        actions = None
        if self.guide == "plan":
            options["forks"] = count = rng.randint(*self.forks)
            forks, joins = ([f"{name}-{k}" for k in range(1, count + 1)] for name in ("FORK", "JOIN"))
            actions = (*forks, *joins, "ANSWER")
        return Asked([{"role": "user", "content": question}], {"asyncthink": options}, actions)

    def read(self, message: str, extra: dict[str, Any]) -> tuple[WrittenAgent, ...]:
        record = (extra.get("asyncthink") or {}).get("record")
        if not isinstance(record, dict):
            raise ValueError("expected a reply with asyncthink.record (a server of `asyncthink serve`), got none")
        try:
            return agents_of(Episode.from_dict(record))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected an episode in asyncthink.record, got {error!r}") from None


def agents_of(episode: Episode) -> tuple[WrittenAgent, ...]:
    """What the agents of an episode wrote, without what the runtime inserted, each up to its closing tag.

    Raises ValueError for an episode with a format error or without an answer.
    """
    if episode.format_errors or episode.answer is None:
        raise ValueError("; ".join(episode.format_errors) or f"no answer: the episode ended by {episode.finish!r}")
    agents = []
    for trace in episode.traces:
        text = trace.text
        for join in trace.joins:
            inserted = join_insert(join.index, episode.traces[join.worker].returned or "")
            text = text.replace(f"<JOIN-{join.index}>{inserted}", f"<JOIN-{join.index}>", 1)
        name = "RETURN" if trace.role == "worker" else "ANSWER"
        if trace.returned is not None:  # under a guide, an end of text may stand for the closing tag
            head, tag, _ = text.partition(f"<{name}>")
            text = f"{head}{tag}{trace.returned}</{name}>"
        agents.append(WrittenAgent(text, trace.parent, trace.fork_index))
    return tuple(agents)
