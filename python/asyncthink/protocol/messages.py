"""Questions: plain text or chat messages, checked before anything runs. No torch, no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
#: Text, or a conversation whose last message is the user's.
Question: TypeAlias = str | Sequence[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_text(name: str, text: object) -> None:
    """Raises ValueError if ``text`` is not a string or contains a lone surrogate, which has no UTF-8 encoding.

    >>> check_text("stop[0]", "\\ud83d")
    Traceback (most recent call last):
    ValueError: stop[0]: expected text that UTF-8 can encode, got the lone surrogate U+D83D at character 0
    """
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
        raise ValueError(f"{name}: expected text that UTF-8 can encode, got {got}") from None


def turns(question: Question, name: str = "question") -> list[tuple[str, str]]:
    """(role, content) of every message; plain text is one user message.

    The content of a message is a string, or a list of ``{"type": "text", "text": ...}`` whose texts are joined. Raises
    ValueError, with ``name`` in front, for anything else, for a conversation that does not end with a user message, and
    for text that :func:`check_text` refuses.

    >>> turns([{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2"}]}])
    [('user', '2 + 2')]
    """
    if isinstance(question, str):
        check_text(name, question)
        return [("user", question)]
    if not isinstance(question, Sequence) or not question:
        got = "an empty list" if isinstance(question, Sequence) else type(question).__name__
        raise ValueError(f"{name}: expected a string or a list of chat messages, got {got}")
    conversation = [_turn(message, f"{name}[{number}]") for number, message in enumerate(question)]
    if conversation[-1][0] != "user":
        raise ValueError(f"{name}: expected the last message to be the user's, got {conversation[-1][0]!r}")
    return conversation


def _turn(message: object, name: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        got = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
        raise ValueError(f'{name}: expected {{"role": ..., "content": ...}}, got {got}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"{name}.role: expected one of {', '.join(ROLES)}, got {role!r}")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part, f"{name}.content[{number}]") for number, part in enumerate(content))
    check_text(f"{name}.content", content)
    return role, content


def _part(part: object, name: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        got = repr(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
        raise ValueError(f'{name}: expected a part of type "text", got {got}')
    check_text(f"{name}.text", part.get("text"))
    return str(part["text"])
