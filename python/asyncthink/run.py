"""One episode while it runs: what a drawn token sets off (fork, wait, join, return, answer), and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from asyncthink.agent import Agent, Splice
from asyncthink.codec import Codec
from asyncthink.detokenize import join_tokens
from asyncthink.messages import Question
from asyncthink.options import Options, combine
from asyncthink.protocol import BUDGET_EXCEEDED, POOL_OVERFLOW, Answer, Fork, FormatError, Join, Return
from asyncthink.records import Episode, Event, Role, TokenEvent, Trace
from asyncthink.records import Join as JoinRecord
from asyncthink.sampling import SamplingParams

if TYPE_CHECKING:
    from asyncthink_kernels.cache import Branch, TreeCache

Listener = Callable[[Event | TokenEvent], None]


class Prompts(Protocol):
    """Where agents begin: a branch that already holds the role's prompt head (or None), and all prompt tokens."""

    def begin(self, name: str, *, question: Question = "", subquery: str = "") -> tuple[Branch, list[int]]: ...

    def encode(self, name: str, *, question: Question = "", subquery: str = "") -> list[int]: ...


class EpisodeRun:
    """State machine of one episode. The sampler feeds its agents' queues to the model and hands back drawn tokens.

    Every way out (:meth:`finish`) releases every branch of the episode.
    """

    def __init__(
        self,
        question: str,
        params: SamplingParams,
        options: Options,
        *,
        codec: Codec,
        cache: TreeCache,
        prompts: Prompts,
        bytes_per_token: int,
        listener: Listener | None = None,
    ) -> None:
        self.question, self.params, self.options = question, params, options
        self._codec, self._cache, self._prompts = codec, cache, prompts
        self._bytes_per_token = bytes_per_token
        self._listener = listener
        self._submitted = time.perf_counter()
        self.episode = Episode(question, options.mode)
        self.agents: list[Agent] = []
        self.reset()

    def reset(self) -> None:
        """Back to the state before admission; pages are released. The same seed makes the same episode again."""
        self._release()
        self.agents = []
        o = self.options
        fresh = Episode(self.question, o.mode, o.context, o.join, o.pool, self.params.seed)
        for name in fresh.__slots__:  # in place: a caller may hold the episode already
            setattr(self.episode, name, getattr(fresh, name))
        self.workers: dict[int, Agent] = {}
        self.step = 0
        self.done = False
        self._admitted = 0.0

    @cached_property
    def pages_to_start(self) -> int:
        """Pages that the prompt takes, and one more to draw into."""
        name = "organizer" if self.options.mode == "asyncthink" else "solo"
        return -(-len(self._prompts.encode(name, question=self.question)) // self._cache.page_size) + 1

    # -- life of the episode ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Admission: the organizer (or the independent traces) come to life."""
        self._admitted = time.perf_counter()
        name: Role = "organizer" if self.options.mode == "asyncthink" else "solo"
        branch, tokens = self._prompts.begin(name, question=self.question)
        first = self._add(Trace(0, name), branch)
        first.prompt(tokens, branch.length, self.step)
        self._event("start", first, text=self.question)
        for number in range(1, self.options.pool if self.options.mode == "parallel" else 1):
            sibling = self._add(Trace(number, name), None)
            sibling.source = (first, len(tokens) - 1)
            sibling.prompt(tokens, len(tokens) - 1, self.step)
            self._event("start", sibling, text=self.question)

    def prepare(self) -> None:
        """Before a step: siblings whose prompt is in the cache by now branch from it."""
        for agent in self.agents:
            if agent.source and agent.branch is None and not agent.done:
                source, at = agent.source
                if source.branch is not None and source.branch.length >= at:
                    agent.branch = self._cache.fork(source.branch, at)
                    self.episode.kv_bytes_shared += at * self._bytes_per_token

    def accept(self, agent: Agent, token: int, logprob: float) -> None:
        """``agent`` drew ``token``: record it, read it, do what it asks for."""
        if agent.done or self.done:
            return
        ended = token in self._codec.stop_ids
        piece = "" if ended else agent.text.push(token)
        agent.trace.add(token, True, logprob, self.step, piece)
        self._tell(TokenEvent(agent.trace.agent, piece, True, self.step))
        if ended:
            self._close(agent, "end")
            return
        agent.put([token])
        for action in agent.parser.feed(piece):
            self._act(agent, action)
        if not agent.done and not self.done:
            self._limits(agent, len(piece))

    def after_step(self) -> None:
        """Every agent of the episode has had its turn in this step."""
        self.episode.step_times.append(self._now())
        self.step += 1
        if not self.done and self.params.timeout is not None and self._now() > self.params.timeout:
            self.finish("timeout")

    def finish(self, reason: str, answer: str | None = None) -> None:
        """End the episode; agents that still run are cut off as "cancelled". Everything is released."""
        if self.done:
            return
        self.done = True
        if self.agents:
            self._event("answer" if answer is not None else "stop", self.agents[0], text=answer or reason)
        for agent in self.agents:
            self._end(agent, "cancelled" if agent.trace.agent or reason == "answer" else reason)
        episode, now = self.episode, time.perf_counter()
        episode.answer, episode.finish = answer, reason
        episode.wall_seconds = now - self._submitted
        episode.critical_path_seconds = now - self._admitted if self._admitted else 0.0
        self._release()

    # -- what agents ask for ------------------------------------------------------------------------------------

    def _act(self, agent: Agent, action: Fork | Join | Answer | Return | FormatError) -> None:
        if self.done or agent.done:
            return
        if isinstance(action, Fork):
            self._fork(agent, action)
        elif isinstance(action, Join):
            worker = self.workers[action.index]
            agent.waiting_for = worker
            if worker.done:
                self._join(agent)
            else:
                self._event("wait", agent, action.index, worker.trace.agent)
        elif isinstance(action, Return):
            agent.trace.returned = action.text
            agent.returned = (agent.prompt_chars + action.span.begin, agent.prompt_chars + action.span.end)
            self._end(agent, "return")
        elif isinstance(action, Answer):
            self._answer(agent, action.text)
        else:
            self._fail(agent, action)

    def _fork(self, parent: Agent, action: Fork) -> None:
        live = sum(not worker.done for worker in self.workers.values())
        if live >= self.options.pool - 1:
            detail = f"<FORK-{action.index}> with {live} live workers, pool {self.options.pool}"
            self._fail(parent, parent.parser.fail(POOL_OVERFLOW, detail))
            return
        tokens = parent.trace.tokens
        trace = Trace(len(self.agents), "worker", parent.trace.agent, action.index, len(tokens))
        if self.options.context == "shared":
            # The parent's last token was drawn just now and is not in its cache yet: the worker computes its own copy
            # and so starts in the very next step.
            branch = self._cache.fork(parent.place)
            worker = self._add(trace, branch, parent.trace.tokens)
            worker.put(tokens[branch.length :])
            worker.prompt(self._prompts.encode("worker_shared", subquery=action.subquery), 0, self.step)
        else:
            branch, prompt = self._prompts.begin("worker_isolated", subquery=action.subquery)
            worker = self._add(trace, branch)
            worker.prompt(prompt, branch.length, self.step)
        self.episode.kv_bytes_shared += branch.length * self._bytes_per_token
        self.workers[action.index] = worker
        self._event("fork", parent, action.index, trace.agent, action.subquery)

    def _join(self, agent: Agent) -> None:
        """The worker that ``agent`` waits for is done: put its return and the closing tag into the queue."""
        worker, agent.waiting_for = agent.waiting_for, None
        assert worker is not None
        assert worker.trace.fork_index is not None
        index, text = worker.trace.fork_index, worker.trace.returned or ""
        insert = join_tokens(self._codec, index, worker.text, worker.trace.tokens, worker.returned)
        (first, last), lead, rest, closing = insert.span, insert.lead, insert.rest, insert.closing
        span = worker.trace.tokens[first:last]
        record = JoinRecord(index, worker.trace.agent, len(agent.trace.tokens), insert.length, self.options.join)
        record.lead = len(lead)
        self._event("join", agent, index, worker.trace.agent, text)
        for token in [*lead, *span, *rest, *closing]:
            piece = agent.insert(token, self.step)
            self._tell(TokenEvent(agent.trace.agent, piece, False, self.step))
        if self.options.join == "exact" or not span:
            agent.put([*lead, *span, *rest, *closing])
            self._let_go(worker)
        else:
            record.source = (first, last)
            agent.put(lead)
            agent.put(Splice(worker, worker.offset + first, worker.offset + last, self.options.join))
            agent.put([*rest, *closing])
        agent.trace.joins.append(record)

    def spliced(self, splice: Splice) -> None:
        """The K/V of a join have entered their new context."""
        size = (splice.stop - splice.start) * self._bytes_per_token
        if self.options.join == "append":
            self.episode.kv_bytes_copied += size
        else:
            self.episode.kv_bytes_shared += size
        self._let_go(splice.worker)

    def _answer(self, agent: Agent, text: str) -> None:
        self._end(agent, "answer")
        agent.trace.returned = text
        if self.options.mode != "parallel":
            self.finish("answer", text)
        else:
            self._settle()

    def _settle(self) -> None:
        """Parallel traces: when the last one has ended, their answers become one."""
        if not all(agent.done for agent in self.agents):
            return
        answers = [agent.trace.returned for agent in self.agents if agent.trace.returned is not None]
        if not answers:
            self.finish(self.agents[0].trace.finish)
        else:
            self.finish("answer", combine(answers, self.options.aggregate))

    # -- how agents end -----------------------------------------------------------------------------------------

    def _limits(self, agent: Agent, new: int) -> None:
        """Stop strings that end in the last ``new`` characters, and token budgets."""
        params, text = self.params, agent.text.text
        if any(text.find(stop, max(agent.prompt_chars, len(text) - new - len(stop) + 1)) >= 0 for stop in params.stop):
            self._close(agent, "stop")
        elif agent.trace.decoded >= params.max_tokens:
            self._fail(agent, agent.parser.fail(BUDGET_EXCEEDED, f"{params.max_tokens} tokens"), "budget")
        elif params.max_episode_tokens is not None and self.episode.total_tokens >= params.max_episode_tokens:
            error = agent.parser.fail(BUDGET_EXCEEDED, f"{params.max_episode_tokens} tokens in the episode")
            self.episode.format_errors.append(str(error))
            self.finish("budget")

    def _close(self, agent: Agent, reason: str) -> None:
        """The agent draws no more of its own accord: what is missing is a format error."""
        for action in agent.parser.close():
            if isinstance(action, FormatError):
                self._fail(agent, action, reason)
        if not agent.done:
            self._end(agent, reason)

    def _fail(self, agent: Agent, error: FormatError, reason: str = "error") -> None:
        who = f"worker {agent.trace.fork_index}" if agent.trace.role == "worker" else agent.trace.role
        self.episode.format_errors.append(f"{who}: {error}")
        self._event("error", agent, agent.trace.fork_index, text=str(error))
        self._end(agent, reason)
        if agent.trace.role == "organizer" or self.options.mode == "sequential":
            self.finish(reason)
        elif self.options.mode == "parallel":
            self._settle()

    def _end(self, agent: Agent, reason: str) -> None:
        """This agent draws no more. A waiting organizer gets the return (nothing, if there is none)."""
        if agent.done:
            return
        agent.done = True
        agent.trace.finish = reason
        if piece := agent.flush():
            self._tell(TokenEvent(agent.trace.agent, piece, True, self.step))
        agent.trace.text = agent.text.text[agent.prompt_chars :]
        if agent.trace.role != "worker" or self.done:
            return
        self._event("return", agent, agent.trace.fork_index, agent.trace.parent, agent.trace.returned or "")
        organizer = self.agents[agent.trace.parent or 0]
        if organizer.waiting_for is agent:
            self._join(organizer)

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _add(self, trace: Trace, branch: Branch | None, context: list[int] | None = None) -> Agent:
        agent = Agent(trace, self._codec, branch, context or ())
        self.agents.append(agent)
        self.episode.traces.append(trace)
        return agent

    def _let_go(self, agent: Agent) -> None:
        if agent.branch is not None:
            self._cache.release(agent.branch)
            agent.branch = None

    def _release(self) -> None:
        for agent in self.agents:
            self._let_go(agent)
            agent.queue.clear()

    def _now(self) -> float:
        return time.perf_counter() - self._admitted

    def _event(
        self, kind: str, agent: Agent, index: int | None = None, peer: int | None = None, text: str = ""
    ) -> None:
        event = Event(kind, agent.trace.agent, self.step, self._now(), index, peer, text)
        self.episode.events.append(event)
        self._tell(event)

    def _tell(self, event: Event | TokenEvent) -> None:
        if self._listener is not None:
            self._listener(event)
