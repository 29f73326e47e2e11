"""Tools that agents may call: Python functions, run on threads of their own, beside the steps of the model.

>>> def double(x: int) -> int:
...     '''Twice a number.
...
...     Args:
...         x: The number.
...     '''
...     return 2 * x
>>> tool = Tool(double, timeout=5.0)
>>> tool.name, tool.refused('{"x": "7"}'), tool.run('{"x": 7}')
('double', "error: argument x: '7' is not of type 'integer'", '14')
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jsonschema import Draft202012Validator
from transformers.utils.chat_template_utils import get_json_schema

from asyncthink.episode.core import EpisodeCore
from asyncthink.protocol.calls import ToolCall
from asyncthink.protocol.chat import ChatPrompts
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.protocol.rendering import Schemas
from asyncthink.protocol.tool_format import ToolFormat, tool_format


class Calling(Protocol):
    """An episode whose agents may wait for tools."""

    core: EpisodeCore
    calls: dict[int, Pending]  # by the agent that waits


@dataclass(frozen=True)
class Tool:
    """A function that agents may call.

    Its name, the types of its parameters and its docstring (a sentence, then ``Args:`` with a line for each parameter)
    become the JSON schema that the model reads. It may be called from several threads at once, and must not wait for
    the sampler that calls it. What it returns is told as text (as JSON if it is no string); what it raises is told as
    an error.

    Args:
        function: the function.
        timeout: seconds after which the agent is told that there is no result. The thread cannot be stopped; what it
            returns later is ignored.

    Raises:
        ValueError: a function without annotations or a docstring that describe it; a timeout that is not positive.
    """

    function: Callable[..., Any]
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"tools: expected functions, got {type(self.function).__name__}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: expected > 0 seconds, got {self.timeout!r}")
        try:
            _ = self.schema
        except Exception as error:  # transformers' own exceptions, and what the inspection of a signature raises
            reason = " ".join(str(error).split())
            raise ValueError(f"tools: expected functions with annotations and a docstring: {reason}") from None

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the function, as ``apply_chat_template(tools=...)`` takes it."""
        return get_json_schema(self.function)

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    @functools.cached_property
    def _validator(self) -> Draft202012Validator:
        parameters = self.schema["function"]["parameters"]
        return Draft202012Validator(parameters | {"additionalProperties": False})

    def refused(self, arguments: str) -> str:
        """Why a JSON object of arguments does not fit the schema; "" if it does."""
        for problem in self._validator.iter_errors(json.loads(arguments)):
            name = "".join(f"argument {part}: " for part in list(problem.path)[:1])
            return f"error: {name}{problem.message}"
        return ""

    def run(self, arguments: str) -> str:
        """The function's result as text; an exception is text, too."""
        try:
            result = self.function(**json.loads(arguments))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except BaseException as error:  # in a thread of its own, nobody else would hear of it
            text = f"error: {type(error).__name__}: {error}"
        return text.encode("utf-8", "replace").decode()


class Pending:
    """A call that was started: its result, once it is there. The clock is :func:`time.monotonic`."""

    def __init__(self, replied: threading.Condition, timeout: float = 0.0, result: str | None = None) -> None:
        self.deadline = time.monotonic() + timeout
        self._replied, self._timeout, self._result = replied, timeout, result

    def result(self) -> str | None:
        """The text for the agent; None while the tool runs and its time is not over."""
        if self._result is None and time.monotonic() >= self.deadline:
            return f"error: no result within {self._timeout:g} seconds"
        return self._result

    def put(self, text: str) -> None:
        with self._replied:
            self._result = text
            self._replied.notify_all()


class ModelTools:
    """Calls and results in a model's own format (:class:`asyncthink.episode.tools.ToolTexts`)."""

    def __init__(self, form: ToolFormat, codec: Codec) -> None:
        self._codec, self.read = codec, form.read
        self._form = form

    def result(self, call: ToolCall, text: str) -> list[int]:
        return self._codec.encode(self._form.result(call, text), continues=True)


@dataclass(frozen=True)
class Toolbox:
    """The tools of a sampler, and their format. Nothing runs that is not in it."""

    tools: dict[str, Tool]
    texts: ModelTools

    @classmethod
    def of(
        cls, tools: Sequence[Callable[..., Any] | Tool], tokenizer: Any, codec: Codec, *, thinks: bool
    ) -> Toolbox | None:
        """None without tools. ``thinks``: templates with a switch for the model's own thinking keep it on.

        Raises ValueError for what is no tool, two of one name, or a chat template that has no place for tools.
        """
        if not tools:
            return None
        named: dict[str, Tool] = {}
        for given in tools:
            tool = given if isinstance(given, Tool) else Tool(given)
            if tool.name in named:
                raise ValueError(f"tools: expected different names, got {tool.name!r} twice")
            named[tool.name] = tool
        form = tool_format(tokenizer) if thinks else tool_format(tokenizer, enable_thinking=False)
        return cls(named, ModelTools(form, codec))

    @property
    def schemas(self) -> Schemas:
        return [tool.schema for tool in self.tools.values()]

    def start(self, name: str, arguments: str) -> Pending:
        """Start a call; a name or arguments that do not fit are its result."""
        tool = self.tools.get(name)
        if tool is None:
            names = ", ".join(self.tools)
            return Pending(_REPLIED, result=f"error: there is no tool {name!r}; the tools are {names}")
        if reason := tool.refused(arguments):
            return Pending(_REPLIED, result=reason)
        pending = Pending(_REPLIED, tool.timeout)
        # A daemon thread for each call, not an executor's: the end of the program must not wait for a tool that hangs.
        run = lambda: pending.put(tool.run(arguments))  # noqa: E731
        threading.Thread(target=run, name=f"tool {name}", daemon=True).start()
        return pending


_REPLIED = threading.Condition()  # notified by every result, of any sampler


def declared(prompts: PromptFormat, schemas: Schemas) -> ChatPrompts:
    """``prompts`` that declare tools. Raises ValueError if they are not in a chat format, which could."""
    if not isinstance(prompts, ChatPrompts):
        raise ValueError(
            "tools: expected prompts in the model's chat template, which can declare tools, got templates of plain text"
        )
    return prompts.with_tools(schemas)


def results(run: Calling) -> Iterator[tuple[int, str]]:
    """(agent, text) of the calls of an episode that are over, in the order of the agents. Each is given once."""
    for number, pending in sorted(run.calls.items()):
        text = pending.result()
        if text is not None:
            del run.calls[number]
            yield number, text


def wait_for_result(runs: Sequence[Calling]) -> bool:
    """Block until a tool has replied, or its time or an episode's is over. False if no agent waits for a tool."""
    waiting = [
        (run, pending)
        for run in runs
        for number, pending in run.calls.items()
        if run.core.speakers[number].waits_for_tool
    ]
    if not waiting:
        return False
    left = [pending.deadline - time.monotonic() for _, pending in waiting]
    left += [run.core.params.timeout - run.core.record.now() for run, _ in waiting if run.core.params.timeout]
    with _REPLIED:
        _REPLIED.wait_for(
            lambda: any(pending.result() is not None for _, pending in waiting), timeout=max(min(left), 0.0)
        )
    return True
