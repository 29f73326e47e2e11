"""Episodes as OpenAI's API answers: what of an episode stands in which field."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

from asyncthink.episode.options import AnswerForm, Mode, Options
from asyncthink.episode.records import Episode, Event, TokenEvent, Trace
from asyncthink.protocol.codec import Codec
from asyncthink.serve.errors import ApiError
from asyncthink.serve.stops import cut

_REASONS = {"budget": "length", "length": "length", "timeout": "length", "out_of_pages": "length"}


def envelope(kind: str, model: str) -> dict[str, Any]:
    """The fields that all answers and chunks of one request share; ``kind`` is "chat.completion" or another object."""
    head = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{head}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def finish_reason(episode: Episode) -> str:
    """ "stop", or "length" where a budget, the model's positions, the cache or the clock ended it.

    Raises ApiError where the model or the program failed, or the server is closing.
    """
    if episode.finish == "failed":
        raise ApiError(500, f"the episode failed: {'; '.join(episode.failures) or 'no reason given'}")
    if episode.finish == "cancelled":
        raise ApiError(503, "the request was cancelled by the server")
    return _REASONS.get(episode.finish, "stop")


def is_plain(options: Options) -> bool:
    """Whether what agent 0 writes is the answer itself, and nothing else is written."""
    return options.mode == Mode.SEQUENTIAL and options.answer == AnswerForm.TEXT


def content(episode: Episode, options: Options, stops: Sequence[str]) -> str:
    """The answer. Without one: nothing, or where all text is the answer, what there is of it."""
    if is_plain(options):
        return cut(episode.traces[0].text, stops) if episode.traces else ""
    return episode.answer or ""


def reasoning(episode: Episode, options: Options) -> str | None:
    """What all agents wrote, one after another under their names; None where the answer is all there is."""
    if is_plain(options):
        return None
    if len(episode.traces) == 1:
        return episode.traces[0].text
    return "\n".join(f"[{_title(trace)}]\n{trace.text}" for trace in episode.traces)


def _title(trace: Trace) -> str:
    return f"{trace.role} {trace.agent if trace.fork_index is None else trace.fork_index}"


def summary(episode: Episode) -> dict[str, Any]:
    """The ``asyncthink`` object of an answer: how the episode was organized, and what it took."""
    return {
        "mode": str(episode.mode),
        "context": str(episode.context),
        "join": str(episode.join_mode),
        "pool": episode.pool,
        "seed": episode.seed,
        "finish": episode.finish,
        "agents": len(episode.traces),
        "forks": episode.forks,
        "joins": episode.joins,
        "total_tokens": episode.total_tokens,
        "critical_path_tokens": episode.critical_path_tokens,
        "critical_path_seconds": episode.critical_path_seconds,
        "wall_seconds": episode.wall_seconds,
        "concurrency": episode.concurrency,
        "prefix_tokens": episode.prefix_tokens,
        "kv_bytes_shared": episode.kv_bytes_shared,
        "kv_bytes_copied": episode.kv_bytes_copied,
        "state_bytes_copied": episode.state_bytes_copied,
        "format_errors": list(episode.format_errors),
        "failures": list(episode.failures),
    }


def usage(prompts: Sequence[int], episodes: Sequence[Episode]) -> dict[str, Any]:
    """Tokens of the prompts (their lengths are given; choices of one prompt count it once) and drawn ones."""
    drawn = sum(episode.total_tokens for episode in episodes)
    cached = sum(episode.prefix_tokens for episode in episodes)
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": drawn,
        "total_tokens": sum(prompts) + drawn,
        "prompt_tokens_details": {"cached_tokens": min(cached, sum(prompts))},
    }


def delta(event: Event | TokenEvent, plain: bool) -> dict[str, Any] | None:
    """The delta of one event in a stream; None if it says nothing."""
    said: dict[str, Any] = {"agent": event.agent, "step": event.step}
    if isinstance(event, TokenEvent):
        if not event.text:
            return None
        field = "content" if plain and event.sampled else "reasoning_content"
        return {field: event.text, "asyncthink": said | {"sampled": event.sampled}}
    told: dict[str, Any] = {"asyncthink": said | {"sampled": False, "event": dataclasses.asdict(event)}}
    return {"content": event.text, **told} if event.kind == "answer" and not plain and event.text else told


def drawn(trace: Trace) -> tuple[list[int], list[float], list[str]]:
    """Ids, log-probabilities and texts of the tokens that an agent drew."""
    rows = [k for k, sampled in enumerate(trace.sampled) if sampled]
    return [trace.tokens[k] for k in rows], [trace.logprobs[k] for k in rows], [trace.pieces[k] for k in rows]


def chat_logprobs(trace: Trace, codec: Codec) -> dict[str, Any]:
    """The ``logprobs`` of a chat's choice. A token that ends the text is among them, as it was drawn."""
    ids, logprobs, pieces = drawn(trace)
    entries = []
    for token, logprob, piece in zip(ids, logprobs, pieces, strict=True):
        text = piece or codec.alone(token)
        told = {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": list[Any]()}
        entries.append(told)
    return {"content": entries, "refusal": None}
