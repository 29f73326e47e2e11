"""What a caller asks of the sampler, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asyncthink.episode.modes import opening
from asyncthink.episode.options import AnswerForm, Context, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.messages import Question, check_text
from asyncthink.protocol.prompts import PromptFormat, worker_template

if TYPE_CHECKING:
    from asyncthink.model.contract import BranchCache


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a continuation belongs: it goes on with the text of an agent of an episode that is driven elsewhere.

    Its draws are those of ``agent`` after ``position`` earlier ones. ``rule`` is what that agent's guide lets it write,
    behind the characters ``tail`` of a tag that has begun; None: anything.
    """

    agent: int = 0
    position: int = 0
    rule: Rule | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What one episode begins with. ``prompt`` are the tokens of the filled template that opens it."""

    question: Question
    prompt: Sequence[int]
    params: SamplingParams
    options: Options
    origin: Origin = Origin()


def params_for(
    questions: Sequence[Question], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Parameters for each question. Raises ValueError for no list of questions, or another number of parameters."""
    if isinstance(questions, str) or not isinstance(questions, Sequence):
        got = "one string" if isinstance(questions, str) else type(questions).__name__
        raise ValueError(f"questions: expected a list of strings, got {got}")
    params = params if params is not None else SamplingParams()
    sets = [params] * len(questions) if isinstance(params, SamplingParams) else list(params)
    if len(sets) != len(questions):
        raise ValueError(f"params: expected one or {len(questions)} (one a question), got {len(sets)}")
    for number, given in enumerate(sets):
        check_params(given, f"params[{number}]")
    return sets


def check_params(params: object, name: str) -> None:
    """Raises ValueError unless ``params`` are SamplingParams."""
    if not isinstance(params, SamplingParams):
        raise ValueError(f"{name}: expected SamplingParams, got {type(params).__name__}")


def worker_templates(options: Options) -> list[str]:
    """The names of the templates that an episode's workers may get: those that may not fork first.

    >>> worker_templates(Options(depth=2, context="isolated")), worker_templates(Options("sequential"))
    (['worker_isolated', 'forking_worker_isolated'], [])
    """
    if options.mode != Mode.ASYNCTHINK:
        return []
    return [worker_template(str(options.context), may_fork) for may_fork in (False, True)[: options.depth]]


def check_templates(prompts: PromptFormat, options: Options) -> None:
    """Raises ValueError if the prompts lack a template that an episode's workers may get."""
    for name in worker_templates(options):
        if getattr(prompts, name) is None:
            raise ValueError(
                f"depth: expected 1, as the prompts have no template {name!r} for workers that may fork, "
                f"got {options.depth}"
            )


def check_length(prompt: Sequence[int], name: str, cache: BranchCache, max_length: int | None) -> None:
    """Raises ValueError if the cache, or the model's positions, cannot hold the prompt and another token."""
    capacity = cache.num_pages * cache.page_size
    if len(prompt) >= capacity:
        raise ValueError(
            f"{name}: expected fewer than {capacity} tokens (the K/V cache's "
            f"{cache.num_pages} pages of {cache.page_size}), got {len(prompt)}"
        )
    check_positions(prompt, name, max_length)


def check_positions(prompt: Sequence[int], name: str, max_length: int | None) -> None:
    """Raises ValueError if the model's positions cannot hold the prompt and another token."""
    if max_length is not None and len(prompt) >= max_length:
        raise ValueError(
            f"{name}: expected fewer than {max_length} tokens (the positions of this model), got {len(prompt)}"
        )


def continued(codec: Codec, prompt: str | Sequence[int]) -> list[int]:
    """The tokens of a prompt that is to be continued as it is, a text or ids.

    Raises ValueError for one without tokens, text that UTF-8 cannot encode, and ids that are not the tokenizer's.
    """
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        tokens = list(codec.backend.encode(prompt, add_special_tokens=True).ids)
    else:
        tokens, size = list(prompt), codec.backend.get_vocab_size()
        wrong = next((token for token in tokens if isinstance(token, bool) or not 0 <= token < size), None)
        if wrong is not None:
            raise ValueError(f"prompt: expected token ids in [0, {size}), got {wrong}")
    if not tokens:
        raise ValueError("prompt: expected at least one token, got none")
    return tokens


def templates(options: Options) -> list[str]:
    """Templates whose prefixes are cached for agents; the one that opens an episode comes first."""
    if options.answer == AnswerForm.TEXT:
        return []  # a conversation as its users write it
    isolated = options.context == Context.ISOLATED
    return [opening(options), *(worker_templates(options) if isolated else [])]
