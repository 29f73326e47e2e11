"""Prompts of workers that may fork, in a model's chat format."""

from __future__ import annotations

from functools import partial

import pytest

from asyncthink.protocol.chat import chat_prompts, prompts_for
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import DEFAULT_INSTRUCTIONS, DEFAULT_PROMPTS, PromptFormat
from toy_tokenizers import CHATML, TRIMS, byte_level, sentencepiece

KINDS = {"byte-level": byte_level, **{kind: partial(sentencepiece, kind) for kind in ("legacy", "first", "always")}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_workers_worker_reads_the_conversation_as_the_template_writes_it(kind: str) -> None:
    """What the organizer, its worker and that one's worker were told and drew: the ids of the whole conversation."""
    tok = KINDS[kind](CHATML)
    prompts, codec = chat_prompts(tok, DEFAULT_PROMPTS), Codec(tok)
    names, drawn = ("organizer", "forking_worker_shared", "worker_shared"), ("<FORK-1>42</FORK-1>", "hm<FORK-1>4 2")
    slots = {"question": "q", "subquery": "42"}
    ids, messages = list[int](), []
    for name, text in zip(names, (*drawn, ""), strict=True):
        ids += codec.encode(prompts.parts(name, **slots), continues=name != "organizer")
        ids += codec.encode([(text, True)], continues=True)
        messages.append({"role": "user", "content": DEFAULT_PROMPTS.fill(name, **slots)})
        messages += [{"role": "assistant", "content": text}] if text else []
    assert ids == tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("template", [CHATML, TRIMS, None])
def test_an_isolated_worker_that_may_fork_gets_a_prompt_of_its_own(template: str | None) -> None:
    tok = sentencepiece("first", template)
    prompts, codec = prompts_for(tok), Codec(tok)
    for task in ("a task", " a task \n"):
        plain = DEFAULT_PROMPTS.fill("forking_worker_isolated", subquery=task)
        ids = codec.encode(prompts.parts("forking_worker_isolated", subquery=task))
        system = DEFAULT_INSTRUCTIONS["forking_worker_isolated"]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": task}]
        said = tok.apply_chat_template(messages, tokenize=True, add_generation_prompt=True) if template else tok(plain)
        assert ids == said["input_ids"]


def test_a_format_without_these_templates_has_none_in_a_chat_either() -> None:
    plain = PromptFormat("{question}", "{subquery}", "{subquery}", "{question}")
    prompts = chat_prompts(byte_level(CHATML), plain)
    assert prompts.forking_worker_shared is None and prompts.forking_worker_isolated is None
