"""The state machine of one episode: what a drawn token causes (fork, wait, join, return, answer), and how it ends.

It computes no tensors and holds no cache. It takes drawn tokens and returns wishes (:mod:`asyncthink.episode.wishes`),
which any engine can carry out: the local one on the tree cache, a server over HTTP, a script in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from asyncthink.episode.endings import Endings
from asyncthink.episode.forks import Forks
from asyncthink.episode.guides import Legal
from asyncthink.episode.modes import STRATEGIES, opening
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.plan import GUIDES
from asyncthink.episode.recorder import Listener, Recorder
from asyncthink.episode.records import Episode, Trace
from asyncthink.episode.speaker import Speaker, Texts
from asyncthink.episode.tools import ToolCalls, ToolTexts
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Wish
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.tags import Action, Answer, Return
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
        self.endings, self._forks, self._calls = Endings(self), Forks(self), ToolCalls(self, tools)
        self._rule, self._tail = rule, tail
        self._wishes: list[Wish] = []
        self.guide: Legal | None = GUIDES[options.guide](self) if options.guide in GUIDES else None

    # -- called by the engine -------------------------------------------------------------------------------------

    def start(self) -> list[Wish]:
        """The organizer begins, or the independent agents do."""
        self.record.admit()
        role, tokens = opening(self.options), self.prompt
        for number in range(self.strategy.beginners(self.options)):
            speaker = self.add(Trace(number, role), 0)
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
            self.endings.close(speaker, "end")
            return self._take_wishes()
        feed = Feed(agent, [token])
        self.wish(feed)
        for action in speaker.parser.feed(piece):
            self.act(speaker, action)
        if not speaker.done and not self.done:
            self.endings.check_limits(speaker, len(piece))
        if call := call or self._calls.read(speaker, piece, ended):
            self._calls.begin(speaker, call)
        read = not speaker.done  # whether the token is read: by the agent, or by a join of what it returns
        self.lead(speaker)
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
            self.endings.give_up(speaker, "failed")
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

    # -- what happens in it ---------------------------------------------------------------------------------------

    def act(self, speaker: Speaker, action: Action) -> None:
        """``speaker`` has written a tag, or made a format error."""
        if self.done or speaker.done:
            return
        if isinstance(action, ForkTag):
            self._forks.fork(speaker, action)
        elif isinstance(action, JoinTag):
            worker = speaker.waiting_for = self.workers[speaker.number, action.index]
            if worker.done:
                self._forks.join(speaker)
            else:
                self.record.event("wait", speaker, action.index, worker.number)
        elif isinstance(action, Return):
            speaker.trace.returned = action.text
            speaker.returned = (speaker.prompt_chars + action.span.begin, speaker.prompt_chars + action.span.end)
            self.endings.end(speaker, "return")
        elif isinstance(action, Answer):
            self.endings.end(speaker, "answer")
            speaker.trace.returned = action.text
            self.strategy.answered(self, speaker, action.text)
        else:
            self.endings.fail(speaker, action)

    def returned(self, parent: Speaker) -> None:
        """The worker that ``parent`` waits for has ended."""
        self._forks.join(parent)
        self.lead(parent)

    def finish(self, reason: str, answer: str | None = None) -> None:
        """End the episode. Agents that still run end as "cancelled"; all contexts are released."""
        if self.done:
            return
        self.done = True
        if self.speakers:
            self.record.event("answer" if answer is not None else "stop", self.speakers[0], text=answer or reason)
        for speaker in self.speakers:
            self.endings.end(speaker, "cancelled" if speaker.number or reason == "answer" else reason)
        self.record.finish(reason, answer)
        self._wishes = [Release(speaker.number) for speaker in self.speakers]

    # -- what the guide inserts -----------------------------------------------------------------------------------

    def _lead_all(self) -> None:
        """Lead the agents whose text to insert has changed with the tokens that the episode has left."""
        if self.guide is not None and (self.guide.tick() or not self.record.step):
            for speaker in sorted(self.speakers, key=lambda speaker: -speaker.number):  # workers before who joins them
                self.lead(speaker)

    def lead(self, speaker: Speaker) -> None:
        """Insert what is due for the agent before it draws again. The tags in it act."""
        while self.guide is not None and not self.done and speaker.draws and (text := self.guide.due(speaker)):
            for token in self.texts.literal(text):
                piece = speaker.force(token, self.record.step)
                self.record.token(speaker, piece)
                self.wish(Feed(speaker.number, [token]))
                for action in speaker.parser.feed(piece):
                    self.act(speaker, action)

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def add(self, trace: Trace, offset: int) -> Speaker:
        """An agent begins whose context is ``offset`` tokens of its parent's."""
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
        """Have the engine carry these out behind the earlier ones."""
        self._wishes += wishes

    def _take_wishes(self) -> list[Wish]:
        wishes, self._wishes = self._wishes, []
        return wishes
