"""Prompt templates of the agents, and their file in a checkpoint. No torch, no tokenizer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from asyncthink.files import write_whole
from asyncthink.protocol.messages import Question, turns

#: (text, trusted): only trusted text, that of a template, may become control tokens.
Part: TypeAlias = tuple[str, bool]
#: The file next to a checkpoint's config.json, with the templates in its "prompts" entry.
FILE_NAME = "asyncthink.json"
_SLOT = re.compile(r"\{(question|subquery)\}")
_REQUIRED = {
    "organizer": "{question}",
    "worker_isolated": "{subquery}",
    "solo": "{question}",
    "forking_worker_isolated": "{subquery}",
}
_OPTIONAL = ("forking_worker_shared", "forking_worker_isolated")


def worker_template(context: str, may_fork: bool) -> str:
    """The name of a worker's template, by what it sees ("shared" or "isolated") and whether it may fork.

    >>> worker_template("shared", False), worker_template("isolated", True)
    ('worker_shared', 'forking_worker_isolated')
    """
    return f"{'forking_' if may_fork else ''}worker_{context}"


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """Four templates and two optional ones. ``{question}``, ``{subquery}`` are replaced literally; all else is kept.

    ``organizer`` and ``solo`` (the sequential and parallel baselines) open an episode. A worker with shared context
    sees the organizer's text up to and including its ``</FORK-i>``, then ``worker_shared``; an isolated worker sees
    ``worker_isolated`` alone. A worker that may fork (``Options.depth`` above 1) sees ``forking_worker_shared`` or
    ``forking_worker_isolated`` instead; None: the format has no nested forks. Raises ValueError when a template lacks
    the slot it needs.
    """

    organizer: str
    worker_shared: str
    worker_isolated: str
    solo: str
    forking_worker_shared: str | None = field(default=None, kw_only=True)
    forking_worker_isolated: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, slot in _REQUIRED.items():
            template = getattr(self, name)
            if template is not None and slot not in template:
                raise ValueError(f"prompt {name!r}: expected {slot} in it, got {template!r}")

    def parts(self, name: str, *, question: Question = "", subquery: str = "") -> list[Part]:
        """Template ``name`` with its slots filled: (text, trusted) in order; only the template's text is trusted.

        Braces in the question or sub-query are ordinary characters. Raises ValueError for a template that the format
        lacks, and unless the question is text or a single user message: these templates hold no conversation.

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
        pieces = _SLOT.split(self._template(name))  # text, slot, text, slot, ... text
        parts = [(values[piece], False) if k % 2 else (piece, True) for k, piece in enumerate(pieces)]
        return [part for part in parts if part[0]]

    def for_depth(self, depth: int) -> PromptFormat:
        """These templates without those that a model trained with at most ``depth`` levels of workers never sees."""
        if depth > 1:
            return self
        return dataclasses.replace(self, forking_worker_shared=None, forking_worker_isolated=None)

    def fill(self, name: str, *, question: Question = "", subquery: str = "") -> str:
        """The text of :meth:`parts`.

        >>> PromptFormat("Q {question}", "", "S {subquery}", "{question}").fill("organizer", question="{a} {subquery}")
        'Q {a} {subquery}'
        """
        return "".join(text for text, _ in self.parts(name, question=question, subquery=subquery))

    def prefix(self, name: str) -> str:
        """The constant text of template ``name`` before its first slot."""
        return _SLOT.split(self._template(name), maxsplit=1)[0]

    def _template(self, name: str) -> str:
        template: str | None = getattr(self, name)
        if template is None:
            raise ValueError(f"prompts: expected a template {name!r} for workers that may fork, got none")
        return template

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PromptFormat:
        names = set(_NAMES) - set(_OPTIONAL)
        if set(data) - set(_OPTIONAL) != names or not all(isinstance(value, str) for value in data.values()):
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
        templates = {name: getattr(self, name) for name in _NAMES}
        settings["prompts"] = {name: template for name, template in templates.items() if template is not None}
        write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


_NAMES = tuple(template.name for template in dataclasses.fields(PromptFormat))


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

_FORKING = """\
If the task has parts that can be done independently, you can hand them to workers of your own, who think at the same \
time as you do:

<FORK-1>a task for worker 1</FORK-1>  starts your worker 1. Write the task out in full. Then go on; do not wait.
<JOIN-1>  waits for your worker 1; its result then appears right behind the tag.
<RETURN>the result</RETURN>  ends your work. The result is short and complete.

Your workers are numbered 1, 2, 3 in the order you start them, whatever numbers others have used. Join each at most \
once. Never put one tag inside another."""

_FORKING_SHARED = f"""

You are now the worker who was given this task: {{subquery}}
Do this task and nothing else. {_FORKING}
"""

_FORKING_ISOLATED = f"""\
You are a worker in a team. Do the task below and nothing else. {_FORKING}"""

_SOLO = """\
Think step by step, then finish with the final answer:
<ANSWER>the final answer</ANSWER>"""

#: What the default prompts say beside the question or the sub-query. In a chat it is the system turn's text, so that
#: the turns of a conversation are the same tokens whatever follows them.
DEFAULT_INSTRUCTIONS = {
    "organizer": _ORGANIZER,
    "worker_isolated": _WORKER_ISOLATED,
    "forking_worker_isolated": _FORKING_ISOLATED,
    "solo": _SOLO,
}

_PLANNER = "Break this question into smaller questions, one per line. Then use their answers to answer it."

#: For the guide "plan", which writes the tags itself: nothing here speaks of them. The question comes first, so that
#: turns of a chat that begin alike have a common head.
PLAN_PROMPTS = PromptFormat(
    organizer=f"{{question}}\n\n{_PLANNER}",
    worker_shared="\n\nAnswer briefly: {subquery}\n",
    worker_isolated="Answer briefly: {subquery}",
    solo="{question}",
)

#: Instructions in plain English, for instruct models that were not trained on the protocol.
DEFAULT_PROMPTS = PromptFormat(
    organizer=f"{_ORGANIZER}\n\nProblem: {{question}}\n",
    worker_shared=_WORKER_SHARED,
    worker_isolated=f"{_WORKER_ISOLATED}\n\nTask: {{subquery}}\n",
    solo=f"{_SOLO}\n\nProblem: {{question}}\n",
    forking_worker_shared=_FORKING_SHARED,
    forking_worker_isolated=f"{_FORKING_ISOLATED}\n\nTask: {{subquery}}\n",
)


class DefaultPrompts(NamedTuple):
    """Templates of plain text, and what a chat's system turn says in their place, by their name; None: nothing."""

    plain: PromptFormat
    instructions: Mapping[str, str] | None


ORGANIZE = DefaultPrompts(DEFAULT_PROMPTS, DEFAULT_INSTRUCTIONS)
PLAN = DefaultPrompts(PLAN_PROMPTS, None)
