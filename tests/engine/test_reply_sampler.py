"""answer="text" on models: prompts and greedy continuations are transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.model.decoder import Decoder
from scripted import END, ScriptedDecoder
from tool_templates import NO_TOOLS, chatting
from toy_tokenizers import real_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Name three countries in Europe and the capital of each."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "user", "content": "Which planet is closest to the sun?"},
        {"role": "assistant", "content": "Mercury."},
        {"role": "user", "content": "And the second one?"},
    ],
]


def scripted(reply: str, **options: Any) -> ForkJoinSampler:
    tok = chatting(NO_TOOLS)
    scripts = [f"[user]q{END}[assistant]{reply}", f"[user]q{END}[assistant]a{END}[user]r{END}[assistant]later"]
    return ForkJoinSampler(ScriptedDecoder(tok, scripts), tok, answer="text", **options)


def test_a_conversation_is_continued_as_its_users_write_it() -> None:
    sampler = scripted("<ANSWER>it</ANSWER> is text", mode="sequential")
    chat = [("user", "q"), ("assistant", "a"), ("user", "r")]
    later = [{"role": role, "content": content} for role, content in chat]
    first, second = sampler.generate(["q", later], GREEDY)
    assert (first.answer, second.answer) == ("<ANSWER>it</ANSWER> is t", "later")
    assert (first.finish, second.finish) == ("budget", "end")
    assert not first.format_errors
    sampler.prefixes.clear()
    assert sampler.cache.free_pages == sampler.cache.num_pages


def test_parallel_replies() -> None:
    (episode,) = scripted("four", mode="parallel", pool=3).generate(["q"], GREEDY)
    assert [trace.returned for trace in episode.traces] == ["four"] * 3
    assert episode.answer == "four"


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="expected 'tags' with mode='asyncthink'"):
        scripted("x")
    with pytest.raises(ValueError, match=r"questions\[0\]: expected the last message to be the user's"):
        scripted("x", mode="sequential").generate([[{"role": "assistant", "content": "x"}]])


@pytest.mark.skipif(real_model() is None, reason="SmolLM2-135M-Instruct is not there")
@pytest.mark.slow
def test_greedy_replies_of_a_real_model_are_those_of_generate() -> None:
    path = real_model()
    tok, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    expected = []
    for chat in CHATS:
        ids = tok.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        whole = model.generate(**ids, do_sample=False, max_new_tokens=GREEDY.max_tokens)[0].tolist()
        expected.append((ids["input_ids"][0].tolist(), whole[ids["input_ids"].shape[1] :]))
    sampler = ForkJoinSampler(Decoder(model, num_pages=64), tok, mode="sequential", answer="text")
    for episode, (prompt, reply) in zip(sampler.generate(CHATS, GREEDY), expected, strict=True):
        (trace,) = episode.traces
        assert trace.tokens == [*prompt, *reply]
        assert trace.sampled == [False] * len(prompt) + [True] * len(reply)
        assert episode.answer == tok.decode(reply, skip_special_tokens=False).removesuffix(tok.eos_token)
