"""How each kind of server is asked for tokens, and how it tells them: JSON in and out, nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

from asyncthink.engine.remote.errors import BrokenError, RefusedError
from asyncthink.engine.remote.transport import Ask, Chunk


class Reader(Protocol):
    """Reads the events of one answer."""

    over: bool  # the server has told why it ended

    def read(self, event: dict[str, Any]) -> Chunk | None:
        """The tokens of one event; None if it has none. Raises RefusedError, BrokenError."""
        ...


class Dialect(Protocol):
    """One kind of server."""

    path: str
    guides: bool  # whether it draws under a rule

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        """The request's JSON."""
        ...

    def reader(self) -> Reader:
        """For one answer."""
        ...


def derived_seed(ask: Ask) -> int:
    """A seed for servers that count draws from the beginning of each request, in [0, 2**31).

    It depends on the episode's seed, the agent, and where the request begins; so no two requests of an episode draw
    alike.

    >>> from asyncthink.episode.params import SamplingParams
    >>> derived_seed(Ask([1], 9, SamplingParams(seed=3), position=4))
    930316143
    """
    key = f"{ask.params.seed} {ask.agent} {ask.position}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >> 1


class Completions:
    """``/v1/completions`` of OpenAI's API with token ids, as vLLM has it.

    It takes four stop strings. Where a request has more, what is drawn behind the others is thrown away, and the
    request is closed as soon as they are read.
    """

    path = "/v1/completions"
    guides = False
    most_stops: int | None = 4

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        params = ask.params
        asked: dict[str, Any] = {"model": model, "prompt": list(ask.prompt), "max_tokens": ask.max_tokens}
        asked |= {"temperature": params.temperature, "top_p": params.top_p, "min_p": params.min_p}
        asked |= {"top_k": params.top_k or -1, "stop": list(ask.stop[: self.most_stops])}
        asked |= {"logprobs": 0, "return_token_ids": True}
        return asked | {"stream": True} | self._own(ask)

    def _own(self, ask: Ask) -> dict[str, Any]:
        """What this kind of server has beside the others.

        A model's generation config may bring penalties; tags may be special tokens, which stops must see; text that may
        begin a stop string need not be held back.
        """
        own: dict[str, Any] = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        own |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        own |= {"include_stop_str_in_output": True}
        return own if ask.params.temperature == 0 else own | {"seed": derived_seed(ask)}

    def reader(self) -> CompletionReader:
        return CompletionReader()


class Ours(Completions):
    """``asyncthink serve``: draws by agent and position, as the local engine does, and under rules."""

    guides = True
    most_stops = None

    def _own(self, ask: Ask) -> dict[str, Any]:
        own: dict[str, Any] = {"agent": ask.agent, "position": ask.position}
        if ask.rule is not None:
            own |= {"rule": dataclasses.asdict(ask.rule), "tail": ask.tail}
        return {"seed": ask.params.seed, "asyncthink": own}


class CompletionReader:
    """Events of a streamed completion."""

    def __init__(self) -> None:
        self.over = False

    def read(self, event: dict[str, Any]) -> Chunk | None:
        check(event)
        if not event.get("choices"):
            return None
        (choice,) = event["choices"]
        self.over = self.over or choice.get("finish_reason") is not None
        ids = choice.get("token_ids")
        if ids is None and (choice.get("text") or choice.get("finish_reason") is None):
            raise RefusedError("expected token ids in the answer (return_token_ids), got none: the server is too old")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(logprobs) != len(ids or ()):
            raise RefusedError(f"expected a log-probability for each of {len(ids)} tokens, got {len(logprobs)}")
        return Chunk(ids, logprobs) if ids else None


class SGLang:
    """``/generate`` with ``input_ids``."""

    path = "/generate"
    guides = False

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        params = ask.params
        drawn: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p, "min_p": params.min_p}
        drawn |= {"top_k": params.top_k or -1, "max_new_tokens": ask.max_tokens, "stop": list(ask.stop)}
        drawn |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        drawn |= {"skip_special_tokens": False, "spaces_between_special_tokens": False, "no_stop_trim": True}
        if params.temperature != 0:
            drawn["sampling_seed"] = derived_seed(ask)
        return {"input_ids": list(ask.prompt), "sampling_params": drawn, "stream": True, "return_logprob": True}

    def reader(self) -> SGLangReader:
        return SGLangReader()


class SGLangReader:
    """Events of ``/generate``. Each has all that was drawn so far, or (a server's switch) what is new in it."""

    def __init__(self) -> None:
        self.over = False
        self._seen = 0

    def read(self, event: dict[str, Any]) -> Chunk | None:
        check(event)
        told = event["meta_info"]
        reason = told.get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise BrokenError(f"the server gave the request up: {reason.get('message')}")
        self.over = self.over or reason is not None
        new, self._seen = told["completion_tokens"] - self._seen, told["completion_tokens"]
        rows = told.get("output_token_logprobs") or []
        if new > len(rows):
            raise RefusedError(f"expected a log-probability for each of {new} tokens, got {len(rows)}")
        drawn = rows[len(rows) - new :]
        return Chunk([row[1] for row in drawn], [row[0] for row in drawn]) if drawn else None


def check(event: dict[str, Any]) -> None:
    """Raises RefusedError or BrokenError for an error within a stream, by whose fault it is."""
    error = event.get("error")
    if error is None and event.get("object") != "error":
        return
    told = error if isinstance(error, dict) else event
    code, message = told.get("code"), str(told.get("message", error))
    kind = RefusedError if isinstance(code, int) and 400 <= code < 500 and code != 429 else BrokenError
    raise kind(message)


#: By what ``/v1/models`` calls the owner of a model.
DIALECTS: dict[str, Dialect] = {"asyncthink": Ours(), "vllm": Completions(), "sglang": SGLang()}
