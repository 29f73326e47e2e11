"""The loop of a synthesis: ask for each trace, check the reply by rules, keep it or ask again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from openai.types.chat import ChatCompletion

from asyncthink.train.synthesize.asking import Asked, Asking
from asyncthink.train.synthesize.journal import Journal, Totals, journal
from asyncthink.train.synthesize.pace import Pace
from asyncthink.train.synthesize.questions import Question
from asyncthink.train.synthesize.rules import RejectedError, Reply, check

#: Statuses that concern one request, such as a question that is too long. Others end the synthesis.
REFUSALS = frozenset((400, 413, 422))
#: So many refusals in a row, without a reply between them, end it too.
MOST_REFUSALS = 5
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The options of a synthesis. Raises ValueError for numbers outside their range.

    Args:
        server: base URL of an OpenAI-compatible API; ``/v1`` is added where it has no path.
        samples: traces of each question.
        attempts: replies that are asked for until one of them is kept, each with actions of its own.
        least_score: traces whose answer is graded lower are rejected. Answers that nothing grades are kept.
        max_tokens: of a reply; None leaves it to the server. ``temperature`` likewise.
        concurrency, retries: requests at once, and how often one is sent again (:class:`.pace.Pace`).
        timeout: seconds that a request may take.
        price_in, price_out, max_cost: price of a million tokens read and written; no request is begun once they have
            cost ``max_cost``.
        extra: further fields of the request's body.
    """

    server: str
    model: str
    out: Path
    asking: Asking
    samples: int = 1
    attempts: int = 3
    least_score: float = 1.0
    seed: int = 0
    temperature: float | None = None
    max_tokens: int | None = None
    concurrency: int = 8
    retries: int = 8
    timeout: float = 600.0
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("samples", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        Pace(self.concurrency, self.retries)  # raises
        if not 0 <= self.least_score <= 1:
            raise ValueError(f"least_score: expected a share in [0, 1], got {self.least_score}")
        if self.price_in < 0 or self.price_out < 0:
            raise ValueError(f"price: expected at least 0, got {min(self.price_in, self.price_out)}")
        if self.max_cost is not None and not self.price_in + self.price_out:
            raise ValueError("max_cost: expected a price beside it, got none")

    @property
    def base_url(self) -> str:
        return self.server if urlsplit(self.server).path.strip("/") else f"{self.server.rstrip('/')}/v1"

    def cost(self, totals: Totals) -> float:
        """What was spent, in the currency of the prices."""
        return totals.cost(self.price_in, self.price_out)


def synthesize(
    options: Synthesis,
    questions: Sequence[Question],
    api_key: str,
    progress: Callable[[Totals], None] = lambda totals: None,
    pace: Pace | None = None,
) -> Totals:
    """Write the traces that ``options.out`` lacks; ``progress`` is called after every reply.

    Killed at any moment, the same call goes on: a trace that was on the disk is there once, and at most the line that
    was being written is asked for again, beside the replies that had not come yet. With ``retries`` errors in a row, a
    refused key or another model it ends with RuntimeError. Raises ValueError as :func:`.journal.journal` does.
    """
    with journal(options.out) as entries:
        progress(entries.totals)
        asyncio.run(_Loop(options, entries, progress).run(questions, api_key, pace))
        return entries.totals


@dataclass(slots=True)
class _Loop:
    options: Synthesis
    entries: Journal
    progress: Callable[[Totals], None]
    refusals: int = 0

    async def run(self, questions: Sequence[Question], api_key: str, pace: Pace | None) -> None:
        """``concurrency`` tasks take one job after another; the first error ends them all."""
        options = self.options
        pace = pace or Pace(options.concurrency, options.retries)
        jobs = self._jobs(questions)
        async with AsyncOpenAI(
            base_url=options.base_url, api_key=api_key, max_retries=0, timeout=options.timeout
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(options.concurrency):
                        group.create_task(self._work(jobs, client, pace))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    def _jobs(self, questions: Sequence[Question]) -> Iterator[tuple[Question, str]]:
        different = {question.id: question for question in questions}
        for sample in range(self.options.samples):
            for question in different.values():
                trace_id = f"{question.id}-{sample}"
                if trace_id not in self.entries.done:
                    yield question, trace_id

    async def _work(self, jobs: Iterator[tuple[Question, str]], client: AsyncOpenAI, pace: Pace) -> None:
        for question, trace_id in jobs:
            while trace_id not in self.entries.done and self.entries.attempts[trace_id] < self.options.attempts:
                if self._spent():
                    return
                await self._attempt(question, trace_id, client, pace)
                self.progress(self.entries.totals)

    def _spent(self) -> bool:
        most = self.options.max_cost
        return most is not None and self.options.cost(self.entries.totals) >= most

    async def _attempt(self, question: Question, trace_id: str, client: AsyncOpenAI, pace: Pace) -> None:
        """Ask once, and write what came of it."""
        options, attempt = self.options, self.entries.attempts[trace_id]
        rng = random.Random(f"{options.seed} {trace_id} {attempt}")
        asked = options.asking.ask(question.text, rng)
        source: dict[str, Any] = {"model": options.model, "attempt": attempt, "seed": rng.getrandbits(31)}
        if asked.actions is not None:
            source["actions"] = list(asked.actions)
        try:
            reply = _reply(await pace.call(lambda: self._request(client, asked, source["seed"])))
        except APIStatusError as error:
            self._count_refusal(error)
            nothing = {"prompt_tokens": 0, "completion_tokens": 0}
            self.entries.reject(trace_id, REFUSED, detail=error.message, usage=nothing, source=source)
            return
        except APIConnectionError as error:
            reason = error.__cause__ or error
            raise RuntimeError(f"server: no answer from {options.base_url}: {reason!r}") from None
        self.refusals = 0
        source["usage"] = reply.usage
        fields = {"id": trace_id, "source": source, **options.asking.fields}
        try:
            trace = check(reply, asked, options.asking, question, options.least_score, **fields)
        except RejectedError as rejected:
            more = {"detail": rejected.detail, "reply": reply.text, "usage": reply.usage, "source": source}
            self.entries.reject(trace_id, rejected.reason, **more)
        else:
            self.entries.keep(trace)

    async def _request(self, client: AsyncOpenAI, asked: Asked, seed: int) -> ChatCompletion:
        options = self.options
        fields: dict[str, Any] = {"temperature": options.temperature, "max_completion_tokens": options.max_tokens}
        completion: ChatCompletion = await client.chat.completions.create(
            model=options.model,
            messages=cast(Any, asked.messages),  # plain dictionaries, as the API takes them
            seed=seed,
            extra_body=asked.body | options.extra,
            **{name: value for name, value in fields.items() if value is not None},
        )
        return completion

    def _count_refusal(self, error: APIStatusError) -> None:
        """Raises RuntimeError for a status that would come again for every question."""
        self.refusals += 1
        if error.status_code not in REFUSALS or self.refusals >= MOST_REFUSALS:
            url = self.options.base_url
            raise RuntimeError(f"server: {url} answered {error.status_code}: {error.message}") from None


def _reply(completion: ChatCompletion) -> Reply:
    told, usage = completion.usage, None
    if told is not None:
        usage = {"prompt_tokens": told.prompt_tokens, "completion_tokens": told.completion_tokens}
    if not completion.choices:
        return Reply("", usage=usage)
    choice = completion.choices[0]
    return Reply(choice.message.content or "", choice.finish_reason, completion.model_extra, usage)
