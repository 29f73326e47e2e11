"""verl's server manager without servers: texts that a script continues, answered as vLLM's replica answers in verl."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat

END = "\x03"
PROMPTS = PromptFormat("O:{question}\n", "W:", "I:{subquery}\n", "S:{question}\n", forking_worker_shared="F:")
_CHARACTERS = [*(chr(code) for code in range(32, 127)), "\n", END]


class CharacterTokenizer:
    """One token for each character; what :class:`Codec` reads of a transformers tokenizer, and no more."""

    eos_token_id = _CHARACTERS.index(END)

    def __init__(self) -> None:
        self.backend_tokenizer = Tokenizer(models.WordLevel({c: k for k, c in enumerate(_CHARACTERS)}, unk_token="?"))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        self.backend_tokenizer.decoder = decoders.Fuse()


@dataclass
class TokenOutput:
    """verl's answer, field by field."""

    token_ids: Sequence[int]
    log_probs: list[float] | None = None
    stop_reason: str | None = "completed"
    num_preempted: int | None = None
    extra_fields: dict[str, Any] = field(default_factory=dict)


class ScriptedServers:
    """Continues the first script that begins with the prompt's text, up to the first stop string; else ends the text.

    ``version`` is the weights' version that answers tell; ``requests`` are what was asked.
    """

    def __init__(self, codec: Codec, scripts: Sequence[str], *, version: int = 3) -> None:
        self.codec, self.scripts, self.version = codec, scripts, version
        self.requests: list[dict[str, Any]] = []
        self.aborts = False

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any):  # type: ignore[no-untyped-def]
        self.requests.append({"id": request_id, "prompt": prompt_ids, **sampling_params, **kwargs})
        before = self.codec.decode(prompt_ids)
        text = next((s[len(before) :] for s in self.scripts if s.startswith(before) and s != before), END)
        ends = [text.find(stop) + len(stop) for stop in sampling_params["stop"] if stop in text]
        tokens = self.codec.encode([(text[: min(ends, default=len(text))], True)])[: sampling_params["max_tokens"]]
        asked = sampling_params.pop("logprobs", False)  # as verl's replica does with the dictionary that it is given
        return TokenOutput(
            tokens,
            [-0.5] * len(tokens) if asked else None,
            "aborted" if self.aborts else "completed",
            2,
            {
                "min_global_steps": self.version,
                "max_global_steps": self.version,
                "num_cached_tokens": len(prompt_ids) // 2,
            },
        )


SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
SCRIPTS = [
    "O:q\na<FORK-1>x</FORK-1>b<FORK-2>y</FORK-2>c<JOIN-1>one</JOIN-1>d<JOIN-2>two</JOIN-2>e<ANSWER>z</ANSWER>never",
    "O:q\na<FORK-1>x</FORK-1>W:p<RETURN>one</RETURN>never",
    "O:q\na<FORK-1>x</FORK-1>b<FORK-2>y</FORK-2>W:<RETURN>two</RETURN>",
    "I:x\np<RETURN>one</RETURN>",
    "I:y\n<RETURN>two</RETURN>",
    "S:q\nalone <ANSWER>z</ANSWER>",
]


class HttpServers:
    """A server of completions in the place of verl's replicas."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any):  # type: ignore[no-untyped-def]
        import httpx

        known = ("temperature", "top_p", "top_k", "max_tokens", "stop")
        body = {name: sampling_params[name] for name in known}
        body |= {"prompt": prompt_ids, "logprobs": 0, "return_token_ids": True}
        async with httpx.AsyncClient(timeout=300, verify=False) as client:
            answer = (await client.post(f"{self.url}/v1/completions", json=body)).raise_for_status().json()
        (choice,) = answer["choices"]
        return TokenOutput(
            choice["token_ids"],
            choice["logprobs"]["token_logprobs"],
            extra_fields={"min_global_steps": 0, "max_global_steps": 0},
        )


@contextlib.contextmanager
def served(python: str) -> Iterator[str]:
    """The address of ``asyncthink serve`` with the shipped model, run by another Python."""
    command = [python, "-m", "asyncthink", "serve", "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        try:
            said = ""
            for line in server.stdout:
                said += line
                if address := re.search(r"http://[\d.]+:\d+", line):
                    yield address[0]
                    break
            else:
                raise RuntimeError(f"the server has ended: {said}")
        finally:
            server.terminate()
