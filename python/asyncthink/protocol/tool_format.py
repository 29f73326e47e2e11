"""How a model writes calls of tools, and how it is told their results: found in its own chat template."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncthink.protocol.calls import ToolCall
from asyncthink.protocol.prompts import Part
from asyncthink.protocol.rendering import render

#: The marks of the rendered conversations. The id has the nine characters that Mistral's templates demand.
_NAME, _ARGUMENT, _VALUE, _ID = "asyncthink_tool", "asyncthink_argument", "asyncthink_value", "aTcall0id"
_SAID, _RESULT = "(the user's words)", 'the "tool\'s" words'
_QUOTED = json.dumps(_RESULT)
_SCHEMA = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A function.",
        "parameters": {"type": "object", "properties": {_ARGUMENT: {"type": "string", "description": "A text."}}},
    },
}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls are JSON objects between ``begin`` and ``close``, or the agent's whole turn where ``begin`` is "".

    Where ``close`` is "", the end of the turn closes a call. ``keys`` are those of the name and of the arguments,
    ``wrapper`` the key of the object that holds them, if there is one; ``listed``: the call is in a list of one.
    ``end`` is the text that ends an agent's turn. ``told`` is what follows the call: (text, slot), where a slot
    ("result", "name", "id") stands for its value, and its text is "".
    """

    begin: str
    close: str
    keys: tuple[str, str]
    wrapper: str
    listed: bool
    end: str
    told: tuple[tuple[str, str], ...]
    quoted: bool

    def read(self, turn: str, piece: str, ended: bool) -> ToolCall | None:
        """The call that the last ``piece`` of a turn completes, or that stands in a turn that has ``ended``.

        >>> hermes = ToolFormat("<call>", "</call>", ("name", "arguments"), "", False, "<end>", (), False)
        >>> hermes.read('Hm. <call>{"name": "add", "arguments": {"a": 1}}</call>', ">", False)
        ToolCall(name='add', arguments='{"a": 1}', id='', error='', ended=False)
        >>> hermes.read('Hm. <call>{"name": "add"}</call>', ">", False).error
        'malformed call: expected {"name": ..., "arguments": {...}}, got {"name": "add"}'
        """
        if not ended and (not self.close or self.close[-1] not in piece):
            return None
        body = turn.strip()
        if self.begin:
            _, begun, body = turn.rpartition(self.begin)
            if not begun:
                return None
            body, closed, _ = body.partition(self.close) if self.close else (body, ended, "")
            if not closed and not ended:
                return None
        elif not body.startswith("[" if self.listed else "{"):
            return None  # an ordinary turn
        call = self._parsed(body.strip())
        return call and dataclasses.replace(call, ended=ended)

    def result(self, call: ToolCall, text: str) -> list[Part]:
        """(text, trusted) of what follows a call, with the tool's ``text`` as its result.

        The end of a turn that the agent has ended itself is not repeated.
        """
        values = {
            "result": json.dumps(text, ensure_ascii=False) if self.quoted else text,
            "name": call.name,
            "id": call.id,
        }
        parts = [(values[slot], False) if slot else (fixed, True) for fixed, slot in self.told]
        if call.ended:
            parts[0] = (parts[0][0].removeprefix(self.end), True)
        return [part for part in parts if part[0]]

    def _parsed(self, body: str) -> ToolCall | None:
        name, held = map(json.dumps, self.keys)
        shape = f"{{{name}: ..., {held}: {{...}}}}"
        shape = f"{{{json.dumps(self.wrapper)}: {shape}}}" if self.wrapper else shape
        malformed = ToolCall("", "{}", error=f"malformed call: expected {shape}, got {body}")
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return malformed
        if self.listed and isinstance(call, list) and call:
            if len(call) > 1:
                return ToolCall("", "{}", error=f"malformed call: expected one call in a turn, got {len(call)}")
            call = call[0]
        id_ = str(call.get("id", "")) if isinstance(call, dict) else ""
        if self.wrapper and isinstance(call, dict):
            call = call.get(self.wrapper)
        if not self.begin and not (isinstance(call, dict) and self.keys[0] in call):
            return None  # JSON that is no call
        if not isinstance(call, dict) or not set(self.keys) <= call.keys() or not isinstance(call[self.keys[0]], str):
            return malformed
        arguments = call[self.keys[1]]
        if isinstance(arguments, str):  # some models write the object as a string
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return malformed
        if not isinstance(arguments, dict):
            return malformed
        return ToolCall(call[self.keys[0]], json.dumps(arguments, ensure_ascii=False), id_)


def tool_format(tokenizer: Any, **switches: bool) -> ToolFormat:
    """The format of calls and results in a tokenizer's chat template, read off conversations that it renders.

    ``switches`` are variables of the template, such as ``enable_thinking``. Raises ValueError, one line, if the chat
    template has no place for tools, or writes calls in another way than as JSON objects.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("tools: expected a model with a chat template, got a tokenizer without one")
    user = {"role": "user", "content": _SAID}
    function = {"name": _NAME, "arguments": {_ARGUMENT: _VALUE}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": _ID, "type": "function", "function": function}]}
    told = {"role": "tool", "name": _NAME, "tool_call_id": _ID, "content": _RESULT}
    try:
        opening = render(tokenizer, [user], [_SCHEMA])
        whole = render(tokenizer, [user, call, told], [_SCHEMA], **switches)
        end = _end(tokenizer, user)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"tools: this model's chat template refuses a call: {error}") from None
    begun = _turn(whole, opening, render(tokenizer, [user], [_SCHEMA], generate=False))
    quoted = _QUOTED in whole
    result = whole.find(_QUOTED if quoted else _RESULT)
    if _NAME not in opening or begun is None or result < begun:
        raise ValueError("tools: this model's chat template has no place for tools")
    first, last, written = _object(whole, begun, result)
    keys = _keys(written)
    stop = whole.find(end, last) if end else -1
    if keys is None or not last <= stop < result:
        raise ValueError("tools: this model's chat template writes calls in another way than as JSON objects")
    rest, slots = whole[stop:], {_QUOTED if quoted else _RESULT: "result", _NAME: "name", _ID: "id"}
    pieces = re.split(f"({'|'.join(map(re.escape, slots))})", rest)
    return ToolFormat(
        begin=whole[begun:first].strip(),
        close=whole[last:stop].strip(),
        keys=keys[1:],
        wrapper=keys[0],
        listed=isinstance(written, list),
        end=end,
        told=tuple(("", slots[piece]) if piece in slots else (piece, "") for piece in pieces),
        quoted=quoted,
    )


def _end(tokenizer: Any, user: dict[str, str]) -> str:
    """The text that ends an assistant's turn."""
    said = render(tokenizer, [user, {"role": "assistant", "content": _VALUE}], generate=False)
    return said.rpartition(_VALUE)[2].strip()


def _turn(whole: str, opening: str, asked: str) -> int | None:
    """Where the assistant's turn begins in ``whole``; None if it cannot be seen.

    ``opening`` is the text up to it, unless the template adds more to the beginning of a turn that is still to come
    (an empty stretch of thinking); then the turn begins where the two differ, after the header.
    """
    if whole.startswith(opening):
        return len(opening)
    header = opening.removeprefix(asked)
    place = whole.find(header, whole.find(_SAID)) if header != opening else -1
    return place + len(header) if place >= 0 else None


def _object(text: str, begin: int, end: int) -> tuple[int, int, Any]:
    """(start, stop, value) of the first JSON object or list in ``text[begin:end]`` that names the tool."""
    for match in re.finditer(r"[\[{]", text[begin:end]):
        try:
            value, stop = json.JSONDecoder().raw_decode(text, begin + match.start())
        except ValueError:
            continue
        if _keys(value) is not None:
            return begin + match.start(), stop, value
    return begin, begin, None


def _keys(value: Any) -> tuple[str, str, str] | None:
    """(wrapper, key of the name, key of the arguments) of a call; None if it is none."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if not isinstance(value, dict):
        return None
    name = next((key for key, held in value.items() if held == _NAME), None)
    forms: Sequence[Any] = ({_ARGUMENT: _VALUE}, json.dumps({_ARGUMENT: _VALUE}))
    arguments = next((key for key, held in value.items() if held in forms), None)
    if name is not None and arguments is not None:
        return "", name, arguments
    inner = [(key, _keys(held)) for key, held in value.items() if isinstance(held, dict)]
    return next(((key, *keys[1:]) for key, keys in inner if keys is not None and not keys[0]), None)
