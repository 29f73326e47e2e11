"""The state machine of one episode: what a drawn token sets off (fork, wait, join, return, answer), and how it ends.

It computes nothing and holds no cache: it is told what was drawn, and answers with wishes
(:mod:`asyncthink.episode.wishes`) that any engine can carry out: ours on the tree cache, a server's over HTTP, a
script's in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from asyncthink.episode.modes import STRATEGIES
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Listener, Recorder
from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.episode.speaker import Insert, Speaker, Texts, splice_of
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Wish
from asyncthink.protocol.tags import BUDGET_EXCEEDED, POOL_OVERFLOW, Action, Answer, FormatError, Return
from asyncthink.protocol.tags import Fork as ForkTag
from asyncthink.protocol.tags import Join as JoinTag


class EpisodeCore:
    """One episode. ``start``, ``accept``, ``fail`` and ``finish`` return wishes, to be carried out in their order.

    A listener that raises hears nothing more, and the episode ends at the next :meth:`tick`.

    Args:
        question: what is asked, as the record shows it.
        prompt: tokens of the filled template that opens the episode, at least one.
        params: limits: ``max_tokens``, ``max_episode_tokens``, ``stop``, ``timeout``.
        options: mode, pool, context, join, aggregate.
        texts: prompts, detokenizing, and the tokens of a join.
        max_length: positions of the model; None where there is no limit.
        listener: called with every event as it happens.
        clock: seconds; the record's times are its differences.
    """

    def __init__(
        self,
        question: str,
        prompt: Sequence[int],
        params: SamplingParams,
        options: Options,
        texts: Texts,
        *,
        max_length: int | None = None,
        listener: Listener | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.params, self.options, self.mode = params, options, STRATEGIES[options.mode]
        episode = Episode(question, options.mode, options.context, options.join, options.pool, params.seed)
        self.record = Recorder(episode, listener, clock)
        self.episode = episode
        self.speakers: list[Speaker] = []
        self.workers: dict[int, Speaker] = {}  # by the i of <FORK-i>
        self.done = False
        self.prompt, self._texts, self._max_length = prompt, texts, max_length
        self._wishes: list[Wish] = []

    # -- what the engine tells ------------------------------------------------------------------------------------

    def start(self) -> list[Wish]:
        """The organizer (or the independent agents) come to life."""
        self.record.admit()
        role, tokens = self.mode.opening, self.prompt
        for number in range(self.mode.beginners(self.options)):
            speaker = self._add(Trace(number, role), 0)
            speaker.prompt(tokens, self.record.step)
            if number == 0:
                self._wish(Begin(0, tokens, role))
            else:  # the last token is each one's own: from it the first one is drawn
                self._wish(Fork(number, 0, len(tokens) - 1), Feed(number, tokens[-1:]))
            self.record.event("start", speaker, text=self.episode.question)
        return self._taken()

    def accept(self, agent: int, token: int, logprob: float) -> list[Wish]:
        """``agent`` drew ``token`` with natural-log probability ``logprob``: record it, read it, do what it asks."""
        speaker = self.speakers[agent]
        if speaker.done or self.done:
            return []
        ended = token in self._texts.stop_ids
        piece = "" if ended else speaker.stream.push(token)
        speaker.trace.add(token, True, logprob, self.record.step, piece)
        self.record.token(speaker, piece, drawn=True)
        if ended:
            self._close(speaker, "end")
            return self._taken()
        feed = Feed(agent, [token])
        self._wish(feed)
        for action in speaker.parser.feed(piece):
            self._act(speaker, action)
        if not speaker.done and not self.done:
            self._limits(speaker, len(piece))
        return [wish for wish in self._taken() if wish is not feed or not speaker.done]

    def fail(self, agent: int, why: str) -> list[Wish]:
        """``agent`` cannot go on, through no fault of its format; a worker's organizer gets an empty return."""
        speaker = self.speakers[agent]
        if not speaker.done and not self.done:
            self.episode.failures.append(f"{speaker.name}: {why}")
            self.record.event("stop", speaker, speaker.trace.fork_index, text=why)
            self._give_up(speaker, "failed")
        return self._taken()

    def crash(self, error: Exception) -> list[Wish]:
        """The program failed on this episode: it ends as "failed", with the error among its failures."""
        self.episode.failures.append(f"{type(error).__name__}: {error}")
        return self.end("failed")

    def tick(self) -> list[Wish]:
        """A step is over: every agent has had its turn in it."""
        self.record.tick()
        if self.record.listener_error is not None:
            return self.end("cancelled")
        if self.params.timeout is not None and self.record.now() > self.params.timeout:
            return self.end("timeout")
        return []

    def end(self, reason: str) -> list[Wish]:
        """End the episode from outside."""
        self.finish(reason)
        return self._taken()

    # -- what agents ask for --------------------------------------------------------------------------------------

    def _act(self, speaker: Speaker, action: Action) -> None:
        if self.done or speaker.done:
            return
        if isinstance(action, ForkTag):
            self._fork(speaker, action)
        elif isinstance(action, JoinTag):
            worker = speaker.waiting_for = self.workers[action.index]
            if worker.done:
                self._join(speaker)
            else:
                self.record.event("wait", speaker, action.index, worker.number)
        elif isinstance(action, Return):
            speaker.trace.returned = action.text
            speaker.returned = (speaker.prompt_chars + action.span.begin, speaker.prompt_chars + action.span.end)
            self._end(speaker, "return")
        elif isinstance(action, Answer):
            self._end(speaker, "answer")
            speaker.trace.returned = action.text
            self.mode.answered(self, speaker, action.text)
        else:
            self._fail(speaker, action)

    def _fork(self, parent: Speaker, action: ForkTag) -> None:
        live = sum(not worker.done for worker in self.workers.values())
        if live >= self.options.pool - 1:
            detail = f"<FORK-{action.index}> with {live} live workers, pool {self.options.pool}"
            self._fail(parent, parent.parser.fail(POOL_OVERFLOW, detail))
            return
        number, shared = len(self.speakers), self.options.context == "shared"
        trace = Trace(number, "worker", parent.number, action.index, len(parent.trace.tokens))
        worker = self._add(trace, parent.length if shared else 0)
        name = f"worker_{self.options.context}"
        tokens = self._texts.prompt(name, action.subquery)
        worker.prompt(tokens, self.record.step)
        if shared:
            self._wish(Fork(number, parent.number, parent.length), Feed(number, tokens))
        else:
            self._wish(Begin(number, tokens, name))
        self.workers[action.index] = worker
        self.record.event("fork", parent, action.index, number, action.subquery)
        if self._full(worker.length):
            self._run_out(worker)

    def _join(self, speaker: Speaker) -> None:
        """The worker that ``speaker`` waits for is done: its return and the closing tag follow."""
        worker, speaker.waiting_for = speaker.waiting_for, None
        assert worker is not None
        assert worker.trace.fork_index is not None
        index, trace = worker.trace.fork_index, worker.trace
        insert = self._texts.insert(index, worker.stream, trace.tokens, worker.returned)
        if self._full(speaker.length + insert.length + len(insert.closing)):
            self._run_out(speaker)
            return
        record = Join(index, worker.number, len(speaker.trace.tokens), insert.length, self.options.join)
        record.lead = len(insert.lead)
        self.record.event("join", speaker, index, worker.number, trace.returned or "")
        span = trace.tokens[slice(*insert.span)]
        for token in [*insert.lead, *span, *insert.rest, *insert.closing]:
            self.record.token(speaker, speaker.insert(token, self.record.step), drawn=False)
        self._wish_join(speaker, worker, record, insert, span)
        speaker.trace.joins.append(record)

    def _wish_join(self, speaker: Speaker, worker: Speaker, record: Join, insert: Insert, span: list[int]) -> None:
        """How a return enters: computed as tokens, or as the worker's K/V with the rest around it."""
        after = [*insert.rest, *insert.closing]
        if self.options.join == "exact" or not span:
            self._wish(Feed(speaker.number, [*insert.lead, *span, *after]), Release(worker.number))
            return
        record.source = insert.span
        splice = splice_of(speaker, record, self.speakers)
        self._wish(Feed(speaker.number, insert.lead), splice, Feed(speaker.number, after))

    # -- how agents end -------------------------------------------------------------------------------------------

    def _limits(self, speaker: Speaker, new: int) -> None:
        """Stop strings that end in the last ``new`` characters, token budgets, positions of the model."""
        params, text = self.params, speaker.stream.text
        begin = speaker.prompt_chars
        if any(text.find(stop, max(begin, len(text) - new - len(stop) + 1)) >= 0 for stop in params.stop):
            self._close(speaker, "stop")
        elif speaker.trace.decoded >= params.max_tokens:
            self._fail(speaker, speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_tokens} tokens"), "budget")
        elif params.max_episode_tokens is not None and self.episode.total_tokens >= params.max_episode_tokens:
            error = speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_episode_tokens} tokens in the episode")
            self.episode.format_errors.append(str(error))
            self.finish("budget")
        elif self._full(speaker.length):
            self._run_out(speaker)

    def _full(self, length: int) -> bool:
        """Whether a context of ``length`` tokens leaves no position to draw another one."""
        return self._max_length is not None and length >= self._max_length

    def _run_out(self, speaker: Speaker) -> None:
        """The model has no position left for the agent's next token."""
        self._fail(
            speaker, speaker.parser.fail(BUDGET_EXCEEDED, f"{self._max_length} positions of the model"), "length"
        )

    def _close(self, speaker: Speaker, reason: str) -> None:
        """The agent draws no more of its own accord: what is missing is a format error."""
        for action in speaker.parser.close():
            if isinstance(action, FormatError):
                self._fail(speaker, action, reason)
        if not speaker.done:
            self._end(speaker, reason)

    def _fail(self, speaker: Speaker, error: FormatError, reason: str = "error") -> None:
        self.episode.format_errors.append(f"{speaker.name}: {error}")
        self.record.event("error", speaker, speaker.trace.fork_index, text=str(error))
        self._give_up(speaker, reason)

    def _give_up(self, speaker: Speaker, reason: str) -> None:
        self._end(speaker, reason)
        self.mode.gave_up(self, speaker, reason)

    def _end(self, speaker: Speaker, reason: str) -> None:
        """This agent draws no more. A waiting organizer gets the return (nothing, if there is none)."""
        if speaker.done:
            return
        speaker.done = True
        speaker.trace.finish = reason
        if piece := speaker.flush():
            self.record.token(speaker, piece, drawn=True)
        speaker.trace.text = speaker.text
        if speaker.trace.parent is None or self.done:
            return
        if not speaker.trace.returned:  # nothing of its context can enter another one
            self._wish(Release(speaker.number))
        parent = self.speakers[speaker.trace.parent]
        self.record.event("return", speaker, speaker.trace.fork_index, parent.number, speaker.trace.returned or "")
        if parent.waiting_for is speaker:
            self._join(parent)

    def finish(self, reason: str, answer: str | None = None) -> None:
        """End the episode; agents that still run are cut off as "cancelled". Every context is released."""
        if self.done:
            return
        self.done = True
        if self.speakers:
            self.record.event("answer" if answer is not None else "stop", self.speakers[0], text=answer or reason)
        for speaker in self.speakers:
            self._end(speaker, "cancelled" if speaker.number or reason == "answer" else reason)
        self.record.finish(reason, answer)
        self._wishes = [Release(speaker.number) for speaker in self.speakers]

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def _add(self, trace: Trace, offset: int) -> Speaker:
        before = [] if trace.parent is None or not offset else self.speakers[trace.parent].trace.tokens
        speaker = Speaker(trace, self._texts.stream(before), offset)
        self.speakers.append(speaker)
        self.episode.traces.append(trace)
        return speaker

    def _wish(self, *wishes: Wish) -> None:
        self._wishes += wishes

    def _taken(self) -> list[Wish]:
        wishes, self._wishes = self._wishes, []
        return wishes
