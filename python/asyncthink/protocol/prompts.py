"""Prompt templates of the agents, and their file in a checkpoint. No torch, no tokenizer."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from asyncthink.files import write_whole
from asyncthink.protocol.messages import Question, turns

#: (text, trusted): only trusted text, that of a template, may become control tokens.
Part: TypeAlias = tuple[str, bool]
#: The file next to a checkpoint's config.json, with the templates in its "prompts" entry.
FILE_NAME = "asyncthink.json"
_SLOT = re.compile(r"\{(question|subquery)\}")
_REQUIRED = {"organizer": "{question}", "worker_isolated": "{subquery}", "solo": "{question}"}


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Four templates. ``{question}`` and ``{subquery}`` are replaced literally; all other text is kept.

    ``organizer`` and ``solo`` (the sequential and parallel baselines) open an episode. A worker with shared context
    sees the organizer's text up to and including its ``</FORK-i>``, then ``worker_shared``; an isolated worker sees
    ``worker_isolated`` alone. Raises ValueError when a template lacks the slot it needs.
    """

    organizer: str
    worker_shared: str
    worker_isolated: str
    solo: str

    def __post_init__(self) -> None:
        for name, slot in _REQUIRED.items():
            template = getattr(self, name)
            if slot not in template:
                raise ValueError(f"prompt {name!r}: expected {slot} in it, got {template!r}")

    def parts(self, name: str, *, question: Question = "", subquery: str = "") -> list[Part]:
        """Template ``name`` with its slots filled: (text, trusted) in order; only the template's text is trusted.

        Braces in the question or sub-query are ordinary characters. Raises ValueError unless the question is text or a
        single user message: these templates hold no conversation.

        >>> PromptFormat("Q {question}.", "", "S {subquery}", "{question}").parts("organizer", question="{subquery}")
        [('Q ', True), ('{subquery}', False), ('.', True)]
        """
        conversation = turns(question)
        if len(conversation) > 1:
            raise ValueError(
                "question: expected text or one message of the user's (these templates hold no conversation), "
                f"got {len(conversation)} messages"
            )
        values = {"question": conversation[0][1], "subquery": subquery}
        pieces = _SLOT.split(getattr(self, name))  # text, slot, text, slot, ... text
        parts = [(values[piece], False) if k % 2 else (piece, True) for k, piece in enumerate(pieces)]
        return [part for part in parts if part[0]]

    def fill(self, name: str, *, question: Question = "", subquery: str = "") -> str:
        """The text of :meth:`parts`.

        >>> PromptFormat("Q {question}", "", "S {subquery}", "{question}").fill("organizer", question="{a} {subquery}")
        'Q {a} {subquery}'
        """
        return "".join(text for text, _ in self.parts(name, question=question, subquery=subquery))

    def prefix(self, name: str) -> str:
        """The constant text of template ``name`` before its first slot."""
        return _SLOT.split(getattr(self, name), maxsplit=1)[0]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PromptFormat:
        names = set(_NAMES)
        if set(data) != names or not all(isinstance(value, str) for value in data.values()):
            raise ValueError(f"prompts: expected strings named {', '.join(sorted(names))}, got {sorted(data)}")
        return PromptFormat(**data)

    @classmethod
    def load(cls, checkpoint: str | Path) -> PromptFormat:
        """The "prompts" of ``checkpoint/asyncthink.json``. Raises ValueError if there is no such entry."""
        path = Path(checkpoint) / FILE_NAME
        settings = _read(path)
        if "prompts" not in settings:
            raise ValueError(f'{path}: expected a "prompts" entry, got {sorted(settings)}')
        return cls.from_dict(settings["prompts"])

    @classmethod
    def find(cls, checkpoint: str | Path) -> PromptFormat | None:
        """As :meth:`load`; None if ``checkpoint`` is not a folder with such a file."""
        return cls.load(checkpoint) if (Path(checkpoint) / FILE_NAME).is_file() else None

    def save(self, checkpoint: str | Path) -> None:
        """Write the "prompts" of ``checkpoint/asyncthink.json``; its other entries are kept."""
        path = Path(checkpoint) / FILE_NAME
        settings = _read(path) if path.exists() else {}
        settings["prompts"] = {name: getattr(self, name) for name in _NAMES}
        write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


_NAMES = tuple(field.name for field in dataclasses.fields(PromptFormat))


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file with prompt templates, got none") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(settings).__name__}")
    return settings


_ORGANIZER = """\
You are the organizer of a small team. You can hand parts of a problem to workers, who think at the same time as you do.

<FORK-1>a task for worker 1</FORK-1>  starts worker 1. Write the task out in full. Then go on thinking; do not wait.
<JOIN-1>  waits for worker 1; its result then appears right behind the tag.
<ANSWER>the final answer</ANSWER>  ends your work.

Number the workers 1, 2, 3 in the order you start them, and join each at most once. Fork what can be done \
independently, fork early, join late, and do part of the work yourself. Never put one tag inside another."""

_WORKER_SHARED = """

You are now the worker who was given this task: {subquery}
Do this task and nothing else. Do not fork and do not join. Finish with the result, short and complete:
<RETURN>the result</RETURN>
"""

_WORKER_ISOLATED = """\
You are a worker in a team. Do the task below and nothing else. Do not fork and do not join. \
Finish with the result, short and complete:
<RETURN>the result</RETURN>"""

_SOLO = """\
Think step by step, then finish with the final answer:
<ANSWER>the final answer</ANSWER>"""

#: What the default prompts say beside the question or the sub-query. In a chat it is the system turn's text, so that
#: the turns of a conversation are the same tokens whatever follows them.
DEFAULT_INSTRUCTIONS = {"organizer": _ORGANIZER, "worker_isolated": _WORKER_ISOLATED, "solo": _SOLO}

#: Instructions in plain English, for instruct models that were not trained on the protocol.
DEFAULT_PROMPTS = PromptFormat(
    organizer=f"{_ORGANIZER}\n\nProblem: {{question}}\n",
    worker_shared=_WORKER_SHARED,
    worker_isolated=f"{_WORKER_ISOLATED}\n\nTask: {{subquery}}\n",
    solo=f"{_SOLO}\n\nProblem: {{question}}\n",
)
