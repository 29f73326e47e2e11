"""An engine without a model: contexts are lists of characters, and scripts say what agents draw."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.contexts import contexts
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.speaker import Insert
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Splice, Wish

END = 3


class Characters:
    """A tokenizer with one token for each character. A worker's prompt is ``W:``, or ``I:`` and the sub-query.

    That of a worker that may fork begins with ``F``.
    """

    stop_ids = frozenset({END})

    def prompt(self, name: str, subquery: str) -> list[int]:
        own = "W:" if name.endswith("worker_shared") else f"I:{subquery}"
        return tokens("F" + own if name.startswith("forking") else own)

    def literal(self, text: str) -> list[int]:
        return tokens(text)

    def stream(self, context: Sequence[int]) -> CharacterStream:
        return CharacterStream()

    def insert(self, index: int, stream: CharacterStream, tokens_: Sequence[int], returned: tuple[int, int]) -> Insert:
        """The first character of a return is encoded again, as if its token held part of the tag."""
        begin, end = returned
        lead = stream.text[begin : min(begin + 1, end)]
        return Insert(tokens(lead), (begin + len(lead), end), [], tokens(f"</JOIN-{index}>"))


class CharacterStream:
    def __init__(self) -> None:
        self.text = ""

    def push(self, token: int) -> str:
        self.text += chr(token)
        return chr(token)

    def flush(self) -> str:
        return ""


def tokens(text: str) -> list[int]:
    return [ord(c) for c in text]


class ScriptedEngine:
    """Carries out wishes on lists, and checks that each of them is possible."""

    def __init__(self, scripts: Sequence[str], options: Options, params: SamplingParams, **given: object) -> None:
        self.core = EpisodeCore("q", tokens("O:q"), params, options, Characters(), clock=lambda: 0.0, **given)  # type: ignore[arg-type]
        self.scripts = scripts
        self.contexts: dict[int, list[int]] = {}
        self.queues: dict[int, list[list[int] | Fork | Splice]] = {}
        self.released: set[int] = set()
        self.left: dict[int, list[int]] = {}

    def carry_out(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            match wish:
                case Begin(agent, given, _):
                    assert agent not in self.queues
                    self.queues[agent] = [list(given)]
                case Fork(agent):
                    assert agent not in self.queues
                    self.queues[agent] = [wish]
                case Feed(agent, given):
                    self.queues[agent].append(list(given))
                case Splice(agent):
                    self.queues[agent].append(wish)
                case Release(agent):
                    self.released.add(agent)
        while any(self._enter(agent) for agent in self.queues):
            pass

    def _enter(self, agent: int) -> bool:
        """Move the first item of an agent's queue into its context, if the contexts that it reads are long enough."""
        if not self.queues[agent]:
            return False
        match self.queues[agent][0]:
            case Fork(_, parent, length):
                entering, enough = self.contexts.get(parent, [])[:length], length
            case Splice(_, worker, start, stop, _):
                entering, enough = self.contexts.get(worker, [])[start:stop], stop - start
            case given:
                entering, enough = given, len(given)
        if len(entering) < enough:
            return False
        self.queues[agent].pop(0)
        self.contexts[agent] = [*self.contexts.get(agent, []), *entering]
        return True

    def lose_everything(self) -> None:
        """Drop all contexts, and rebuild them."""
        self.contexts.clear()
        self.queues.clear()
        self.released.clear()
        self.carry_out(contexts(self.core))
        self.check()

    def run(self, order: Sequence[int], steps: int = 400, pause: int | None = None) -> None:
        """Let agents draw, in each step those that ``order`` says. All contexts are dropped before step ``pause``."""
        self.carry_out(self.core.start())
        for step in range(steps):
            if self.core.done:
                return
            if step == pause:
                self.lose_everything()
            for speaker in list(self.core.speakers):
                turn = order[(step + speaker.number) % len(order)] if order else 1
                if speaker.draws and turn and not self.core.done:
                    self.core.rule(speaker.number)
                    self.carry_out(self.core.accept(speaker.number, self._next(speaker.number), -1.0))
                    self.check()
            self.carry_out(self.core.tick())
        self.carry_out(self.core.end("timeout"))

    def _next(self, agent: int) -> int:
        left = self.left.setdefault(agent, tokens(self.scripts[agent] if agent < len(self.scripts) else ""))
        return left.pop(0) if left else END

    def expected(self, number: int) -> list[int]:
        """An agent's context, from the record alone."""
        speaker = self.core.speakers[number]
        trace, before = speaker.trace, []
        if trace.parent is not None and self.core.options.context == "shared":
            above = self.core.episode.traces[trace.parent].tokens
            before = self.expected(trace.parent)
            before = before[: len(before) - len(above) + trace.fork_at]
        return [*before, *trace.tokens]

    def check(self) -> None:
        """The contexts of all agents that still need one equal the record's."""
        for speaker in self.core.speakers:
            if not speaker.done and not self.core.done:
                assert speaker.number not in self.released
                assert self.contexts[speaker.number] == self.expected(speaker.number)
