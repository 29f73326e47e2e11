"""The state machine of one episode: what a drawn token causes (fork, wait, join, return, answer), and how it ends.

It computes no tensors and holds no cache. It takes drawn tokens and returns wishes (:mod:`asyncthink.episode.wishes`),
which any engine can carry out: the local one on the tree cache, a server over HTTP, a script in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from asyncthink.episode.joins import enter
from asyncthink.episode.modes import STRATEGIES, opening
from asyncthink.episode.options import Context, Guide, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.plan import GUIDES
from asyncthink.episode.recorder import Listener, Recorder
from asyncthink.episode.records import Episode, Trace
from asyncthink.episode.speaker import Speaker, Texts
from asyncthink.episode.tools import ToolCalls, ToolTexts
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Wish
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.prompts import worker_template
from asyncthink.protocol.tags import BUDGET_EXCEEDED, POOL_OVERFLOW, Action, Answer, FormatError, Return
from asyncthink.protocol.tags import Fork as ForkTag
from asyncthink.protocol.tags import Join as JoinTag


class EpisodeCore:
    """One episode. Every call of the engine returns wishes, to be carried out in their order.

    A listener that raises is called no more, and the episode ends at the next :meth:`tick`.

    Args:
        question: the question, as the record shows it.
        prompt: tokens of the filled template that opens the episode, at least one.
        params: limits: ``max_tokens``, ``max_episode_tokens``, ``stop``, ``timeout``.
        options: mode, pool, context, join, aggregate, guide.
        texts: prompts, detokenizing, and the tokens of a join.
        max_length: positions of the model; None where there is no limit.
        listener: called with every event as it happens.
        tools: the model's format of tool calls; None: what looks like a call is text.
        clock: returns seconds; the record's times are differences of it.
        rule, tail: without a guide, what the first agent may write, behind the characters ``tail`` of a tag that has
            begun: the episode goes on with the text of an agent that is guided elsewhere.

    Raises:
        ValueError: a guide, and limits under which it cannot lead to an answer.
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
        tools: ToolTexts | None = None,
        clock: Callable[[], float] = time.perf_counter,
        rule: Rule | None = None,
        tail: str = "",
    ) -> None:
        self.params, self.options, self.strategy = params, options, STRATEGIES[options.mode]
        organized = (str(options.mode), str(options.context), str(options.join))
        self.episode = Episode(question, *organized, options.pool, params.seed, depth=options.depth)
        self.record = Recorder(self.episode, listener, clock)
        self.speakers: list[Speaker] = []
        self.workers: dict[tuple[int, int], Speaker] = {}  # by the parent's number and the i of <FORK-i>
        self.done = False
        self.prompt, self.texts, self.max_length = prompt, texts, max_length
        self._calls = ToolCalls(self, tools)
        self._rule, self._tail = rule, tail
        self._wishes: list[Wish] = []
        self.guide = GUIDES[options.guide](self) if options.guide in GUIDES else None

    # -- called by the engine -------------------------------------------------------------------------------------

    def start(self) -> list[Wish]:
        """The organizer begins, or the independent agents do."""
        self.record.admit()
        role, tokens = opening(self.options), self.prompt
        for number in range(self.strategy.beginners(self.options)):
            speaker = self._add(Trace(number, role), 0)
            speaker.prompt(tokens, self.record.step)
            if number == 0:
                speaker.parser.feed(self._tail)
                self.wish(Begin(0, tokens, role))
            else:  # each agent computes the last token itself: its first draw needs those logits
                self.wish(Fork(number, 0, len(tokens) - 1), Feed(number, tokens[-1:]))
            self.record.event("start", speaker, text=self.episode.question)
        self._lead_all()
        return self._take_wishes()

    def accept(self, agent: int, token: int, logprob: float) -> list[Wish]:
        """``agent`` drew ``token`` with natural-log probability ``logprob``: record it, parse it, act on its tags."""
        speaker = self.speakers[agent]
        if speaker.done or self.done:
            return []
        if speaker.rule is not None:
            speaker.trace.ruled(speaker.rule)
        ended = token in self.texts.stop_ids
        call = self._calls.read(speaker, "", ended) if ended else None
        piece = "" if ended and call is None else speaker.stream.push(token)
        speaker.trace.add(token, True, logprob, self.record.step, piece)
        self.record.token(speaker, piece, (token, logprob))
        if ended and call is None:
            self._close(speaker, "end")
            return self._take_wishes()
        feed = Feed(agent, [token])
        self.wish(feed)
        for action in speaker.parser.feed(piece):
            self._act(speaker, action)
        if not speaker.done and not self.done:
            self._check_limits(speaker, len(piece))
        if call := call or self._calls.read(speaker, piece, ended):
            self._calls.begin(speaker, call)
        read = not speaker.done  # whether the token is read: by the agent, or by a join of what it returns
        self._lead(speaker)
        return [wish for wish in self._take_wishes() if wish is not feed or read]

    def rule(self, agent: int) -> Rule | None:
        """What ``agent`` may draw next, to be asked before its draw; None: anything."""
        speaker = self.speakers[agent]
        speaker.rule = self._rule if self.guide is None else self.guide.rule(speaker)
        return speaker.rule

    def may_fork(self, speaker: Speaker) -> bool:
        """Whether this agent may have workers."""
        return speaker.parser.may_fork

    def free_seats(self) -> int:
        """How many more workers may live now."""
        return self.options.pool - 1 - sum(not worker.done for worker in self.workers.values())

    def told(self, agent: int, text: str) -> list[Wish]:
        """The tool that ``agent`` waits for gave ``text``. Late results, after the agent's end, are ignored."""
        self._calls.tell(self.speakers[agent], text)
        return self._take_wishes()

    def fail(self, agent: int, why: str) -> list[Wish]:
        """End ``agent`` for a failure that is no format error. If it is a worker, its return is empty."""
        speaker = self.speakers[agent]
        if not speaker.done and not self.done:
            self.episode.failures.append(f"{speaker.name}: {why}")
            self.record.event("stop", speaker, speaker.trace.fork_index, text=why)
            self._give_up(speaker, "failed")
        return self._take_wishes()

    def crash(self, error: Exception) -> list[Wish]:
        """End the episode as "failed", with ``error`` among its failures."""
        self.episode.failures.append(f"{type(error).__name__}: {error}")
        return self.end("failed")

    def tick(self) -> list[Wish]:
        """A step is over, for all agents."""
        self.record.tick()
        if self.record.listener_error is not None:
            return self.end("cancelled")
        if self.params.timeout is not None and self.record.now() > self.params.timeout:
            return self.end("timeout")
        self._lead_all()
        return self._take_wishes()

    def end(self, reason: str) -> list[Wish]:
        """End the episode from outside."""
        self.finish(reason)
        return self._take_wishes()

    # -- tags that agents write -----------------------------------------------------------------------------------

    def _act(self, speaker: Speaker, action: Action) -> None:
        if self.done or speaker.done:
            return
        if isinstance(action, ForkTag):
            self._fork(speaker, action)
        elif isinstance(action, JoinTag):
            worker = speaker.waiting_for = self.workers[speaker.number, action.index]
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
            self.strategy.answered(self, speaker, action.text)
        else:
            self._fail(speaker, action)

    def _fork(self, parent: Speaker, action: ForkTag) -> None:
        if (seats := self.free_seats()) <= 0:
            live = self.options.pool - 1 - seats
            detail = f"<FORK-{action.index}> with {live} live workers, pool {self.options.pool}"
            self._fail(parent, parent.parser.fail(POOL_OVERFLOW, detail))
            return
        number, shared = len(self.speakers), self.options.context == Context.SHARED
        trace = Trace(number, "worker", parent.number, action.index, len(parent.trace.tokens))
        worker = self._add(trace, parent.length if shared else 0)
        name = worker_template(str(self.options.context), worker.parser.may_fork)
        planned = self.options.guide == Guide.PLAN  # a line of its own, with the newline that ended it
        tokens = self.texts.prompt(name, action.subquery.strip() if planned else action.subquery)
        worker.prompt(tokens, self.record.step)
        if shared:
            self.wish(Fork(number, parent.number, parent.length), Feed(number, tokens))
        else:
            self.wish(Begin(number, tokens, name))
        self.workers[parent.number, action.index] = worker
        self.record.event("fork", parent, action.index, number, action.subquery)
        if self.guide is not None:
            self._lead(worker) if self.guide.fits(worker) else self._give_up(worker, "length")
        elif self.full(worker.length):
            self.run_out(worker)

    def _join(self, speaker: Speaker) -> None:
        """The worker that ``speaker`` waits for is done: insert its return and the closing tag."""
        worker, speaker.waiting_for = speaker.waiting_for, None
        assert worker is not None
        assert worker.trace.fork_index is not None
        index, trace = worker.trace.fork_index, worker.trace
        insert = self.texts.insert(index, worker.stream, trace.tokens, worker.returned)
        if self.guide is not None:
            insert = self.guide.fit(speaker, insert)
        elif self.full(speaker.length + insert.length + len(insert.closing)):
            self.run_out(speaker)
            return
        join, wishes = enter(speaker, worker, insert, str(self.options.join))
        self.record.event("join", speaker, index, worker.number, trace.returned or "")
        self.insert(speaker, insert.tokens(trace.tokens))
        self.wish(*wishes)
        speaker.trace.joins.append(join)

    # -- how agents end -------------------------------------------------------------------------------------------

    def _check_limits(self, speaker: Speaker, new: int) -> None:
        """End at a stop string in the last ``new`` characters, at a token budget, or at the model's last position."""
        params = self.params
        if speaker.ends_in(params.stop, new):
            self._close(speaker, "stop")
        elif self.guide is not None:
            return  # it leads the agent to its end in time
        elif speaker.trace.decoded >= params.max_tokens:
            self._fail(speaker, speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_tokens} tokens"), "budget")
        elif params.max_episode_tokens is not None and self.episode.total_tokens >= params.max_episode_tokens:
            for other in self.speakers if speaker.replies else ():
                self._reply(other, "budget")
            if self.done:
                return
            error = speaker.parser.fail(BUDGET_EXCEEDED, f"{params.max_episode_tokens} tokens in the episode")
            self.episode.format_errors.append(str(error))
            self.finish("budget")
        elif self.full(speaker.length):
            self.run_out(speaker)

    def full(self, length: int) -> bool:
        """Whether a context of ``length`` tokens leaves no position for another one."""
        return self.max_length is not None and length >= self.max_length

    def run_out(self, speaker: Speaker) -> None:
        """The model has no position left for the agent's next token."""
        error = speaker.parser.fail(BUDGET_EXCEEDED, f"{self.max_length} positions of the model")
        self._fail(speaker, error, "length")

    def _close(self, speaker: Speaker, reason: str) -> None:
        """The agent stopped by itself. A missing or open tag is a format error, but not under a guide."""
        if self.guide is not None:
            result = speaker.parser.conclude()
            self._give_up(speaker, reason) if result is None else self._act(speaker, result)
            return
        for action in speaker.parser.close():
            if isinstance(action, FormatError):
                self._fail(speaker, action, reason)
        if speaker.replies:
            self._reply(speaker, reason)
        elif not speaker.done:
            self._end(speaker, reason)

    def _reply(self, speaker: Speaker, reason: str) -> None:
        """An agent whose text is its answer has ended; a stop string is no part of the answer."""
        if speaker.done:
            return
        self._end(speaker, reason)
        speaker.trace.returned = speaker.before(self.params.stop if reason == "stop" else ())
        self.strategy.answered(self, speaker, speaker.trace.returned)

    def _fail(self, speaker: Speaker, error: FormatError, reason: str = "error") -> None:
        if speaker.replies:  # without tags, an end at a limit is an ordinary one
            self._reply(speaker, reason)
            return
        self.episode.format_errors.append(f"{speaker.name}: {error}")
        self.record.event("error", speaker, speaker.trace.fork_index, text=str(error))
        self._give_up(speaker, reason)

    def _give_up(self, speaker: Speaker, reason: str) -> None:
        self._end(speaker, reason)
        self.strategy.gave_up(self, speaker, reason)

    def _end(self, speaker: Speaker, reason: str) -> None:
        """End the agent and its own workers. A parent that waits for it gets its return, which may be empty."""
        if speaker.done:
            return
        speaker.done = True
        speaker.trace.finish = reason
        if piece := speaker.flush():
            self.record.held_back(speaker, piece)
        speaker.trace.text = speaker.text
        if speaker.trace.parent is None or self.done:
            return
        self._cancel_workers(speaker)
        if not speaker.trace.returned:  # no join can read its context
            self.wish(Release(speaker.number))
        parent = self.speakers[speaker.trace.parent]
        if parent.done:  # it has cancelled this worker
            return
        self.record.event("return", speaker, speaker.trace.fork_index, parent.number, speaker.trace.returned or "")
        if parent.waiting_for is speaker:
            self._join(parent)
            self._lead(parent)

    def _cancel_workers(self, parent: Speaker) -> None:
        """``parent`` has ended: nobody joins its workers any more, as nobody does when the organizer has answered."""
        for worker in [self.workers[number, i] for number, i in self.workers if number == parent.number]:
            if not worker.done:
                self.record.event("stop", worker, worker.trace.fork_index, text="cancelled")
                self._end(worker, "cancelled")
            else:
                self.wish(Release(worker.number))

    def finish(self, reason: str, answer: str | None = None) -> None:
        """End the episode. Agents that still run end as "cancelled"; all contexts are released."""
        if self.done:
            return
        self.done = True
        if self.speakers:
            self.record.event("answer" if answer is not None else "stop", self.speakers[0], text=answer or reason)
        for speaker in self.speakers:
            self._end(speaker, "cancelled" if speaker.number or reason == "answer" else reason)
        self.record.finish(reason, answer)
        self._wishes = [Release(speaker.number) for speaker in self.speakers]

    # -- what the guide inserts -----------------------------------------------------------------------------------

    def _lead_all(self) -> None:
        """Lead the agents whose text to insert has changed with the tokens that the episode has left."""
        if self.guide is not None and (self.guide.tick() or not self.record.step):
            for speaker in sorted(self.speakers, key=lambda speaker: -speaker.number):  # workers before who joins them
                self._lead(speaker)

    def _lead(self, speaker: Speaker) -> None:
        """Insert what is due for the agent before it draws again. The tags in it act."""
        while self.guide is not None and not self.done and speaker.draws and (text := self.guide.due(speaker)):
            for token in self.texts.literal(text):
                piece = speaker.force(token, self.record.step)
                self.record.token(speaker, piece)
                self.wish(Feed(speaker.number, [token]))
                for action in speaker.parser.feed(piece):
                    self._act(speaker, action)

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def _add(self, trace: Trace, offset: int) -> Speaker:
        parent = None if trace.parent is None else self.speakers[trace.parent]
        before = parent.trace.tokens if parent is not None and offset else []
        speaker = Speaker(trace, self.texts.stream(before), offset, parent, self.options.depth)
        self.speakers.append(speaker)
        self.episode.traces.append(trace)
        return speaker

    def insert(self, speaker: Speaker, tokens: Sequence[int]) -> None:
        """Tokens enter the agent's trace that it did not draw; tags in them do nothing."""
        for token in tokens:
            self.record.token(speaker, speaker.insert(token, self.record.step))
        speaker.turn_chars = len(speaker.stream.text)

    def wish(self, *wishes: Wish) -> None:
        self._wishes += wishes

    def _take_wishes(self) -> list[Wish]:
        wishes, self._wishes = self._wishes, []
        return wishes
