"""A model's tokenizer and chat template from its files alone, without transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

#: The files that are read; all but the first may be missing.
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("generation_config.json", "asyncthink.json"),
)


class FolderTokenizer:
    """What the protocol needs of a transformers fast tokenizer, read from a model's folder.

    It has a :attr:`backend_tokenizer`, the special tokens, the chat template and :meth:`apply_chat_template`, under the
    names that they have there, and :attr:`stop_ids`, where the model's ``generation_config.json`` ends a text.

    Args:
        folder: with a ``tokenizer.json``.

    Raises:
        ValueError: no such file, or one that cannot be read.

    >>> from asyncthink import checkpoint_path
    >>> tokenizer = FolderTokenizer(checkpoint_path("countdown"))
    >>> tokenizer.eos_token, tokenizer.chat_template is None, tokenizer.stop_ids
    ('<eos>', True, [2, 36, 38])
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"tokenizer: expected a folder with tokenizer.json, got {str(folder)!r}")
        try:
            self.backend_tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
        config = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
        self.special_tokens = {name: _content(config[name]) for name in sorted(config) if _is_token(name, config[name])}
        self.eos_token, self.eos_token_id = self._special("eos_token")
        self.unk_token, self.unk_token_id = self._special("unk_token")
        self.chat_template = _template(folder, config)
        ends = _read(folder / "generation_config.json").get("eos_token_id")
        self.stop_ids: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation. Raises ValueError without a template, TemplateError where it refuses."""
        if self.chat_template is None or tokenize:
            raise ValueError("apply_chat_template: expected a chat template, and tokenize=False")
        given: dict[str, Any] = {"messages": list(messages), "tools": tools, "documents": None}
        given |= {"add_generation_prompt": add_generation_prompt} | self.special_tokens | variables
        return self._compiled.render(**given)

    @functools.cached_property
    def _compiled(self) -> Template:
        return _environment().from_string(self.chat_template or "")

    def _special(self, name: str) -> tuple[str | None, int | None]:
        token = self.special_tokens.get(name)
        return (None, None) if token is None else (token, self.backend_tokenizer.token_to_id(token))


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder with a model's :data:`FILES`: itself, or what the hub's client has or fetches of a hub id.

    Raises ValueError, one line, if there is none.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(FILES)))
    except Exception as error:
        raise ValueError(f"cannot load the tokenizer of {model}: {' '.join(str(error).split())}") from error


class _Generation(Extension):
    """``{% generation %}``: marks what the assistant says, for training; here it is its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """As model authors test their templates: blocks leave no lines of their own."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """jinja's own escapes what HTML would read as markup."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):  # several, by name
        given = {entry["name"]: entry["template"] for entry in given}.get("default")
    return given


def _is_token(name: str, value: Any) -> bool:
    return name.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(read).__name__}")
    return read
