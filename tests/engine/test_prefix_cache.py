"""Prompts and cached prefixes: a fork shares the common tokens only, and user text never becomes control tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.prompting import encode_template
from asyncthink.protocol.prompts import PromptFormat
from scripted import ScriptedDecoder, tokenizer
from toy_tokenizers import byte_level, sentencepiece

GREEDY = SamplingParams(temperature=0.0, max_tokens=80)
BARE = PromptFormat("O:{question}", "W:", "I:{subquery}", "S:{question}")


class Forced(ScriptedDecoder):
    """Draws the tokens it is given, for one agent at a time, then end of text."""

    forced: tuple[int, ...] = ()

    def forward(self, tokens, plan, logits_rows):  # type: ignore[no-untyped-def, override]
        logits = super().forward(tokens, plan, logits_rows)
        if len(logits_rows) and self.forced:
            logits = torch.zeros_like(logits)
            logits[0, self.forced[0]] = 60.0
            self.forced = self.forced[1:]
        return logits


def served(scripts: list[str], prompts: PromptFormat = BARE, tok: Any = None, **options: Any) -> ForkJoinSampler:
    tok = tok or tokenizer()
    return ForkJoinSampler(ScriptedDecoder(tok, scripts), tok, prompts=prompts, **options)


def encoded(s: ForkJoinSampler, name: str, **filled: str) -> list[int]:
    return encode_template(s.codec, s.prompts, name, **filled)


def test_a_question_that_is_wholly_cached() -> None:
    s = served(["O:<ANSWER>0</ANSWER>", "O:q<ANSWER>1</ANSWER>"])
    assert [e.answer for e in s.generate(["q", "", "q"], GREEDY)] == ["1", "0", "1"]
    assert [e.answer for e in s.generate(["", "q"], GREEDY)] == ["0", "1"]
    s.cache.check()


def test_an_empty_subquery_with_a_cached_prefix() -> None:
    whole = "O:q<FORK-1></FORK-1><JOIN-1></JOIN-1><ANSWER>1</ANSWER>"
    s = served([whole, "I:<RETURN></RETURN>", "O:z<ANSWER>2</ANSWER>"], context="isolated")
    assert [e.answer for e in s.generate(["q", "z"], GREEDY)] == ["1", "2"]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_prompt_of_one_token(mode: str) -> None:
    prompts = PromptFormat("O:{question}", "W:", "I:{subquery}", "S{question}")
    s = served(["S<ANSWER>7</ANSWER>"], prompts, mode=mode, pool=3)
    assert [e.answer for e in s.generate(["", ""], GREEDY)] == ["7", "7"]


def test_a_prompt_without_any_token_is_refused() -> None:
    s = served([], PromptFormat("{question}", "", "{subquery}", "{question}"))
    with pytest.raises(ValueError, match=r"questions\[1\]: prompt 'organizer': expected at least one token, got none"):
        s.generate(["q", ""], GREEDY)
    with pytest.raises(ValueError, match="prompt 'worker_isolated': expected at least one token, got none"):
        encoded(s, "worker_isolated", subquery="")
    assert encoded(s, "worker_shared", subquery="") == []


def test_a_fork_ends_where_prefix_and_prompt_differ() -> None:
    """The space before the question is part of its first word, so the prefix's last token is not the prompt's."""
    tok = byte_level()
    s = served([], PromptFormat("Problem: {question}\n", "", "{subquery}", "Problem: {question}"), tok)
    s.prefixes.prepare(["organizer"])
    head = tok.encode("Problem: ")
    for question in ("planet is", "", "?", " 42", "<|end|>"):
        tokens = encoded(s, "organizer", question=question)
        branch = s.prefixes.branch("organizer", tokens)
        agreed = next((k for k, (a, b) in enumerate(zip(head, tokens, strict=False)) if a != b), len(head))
        assert branch.length == min(agreed, len(tokens) - 1)
        assert branch.length == len(head) - 1 or question in ("", "?", " 42", "<|end|>")
        if question != "<|end|>":
            assert tokens == tok.encode(f"Problem: {question}\n")
        s.cache.release(branch)


def test_prompts_with_another_beginning_share_nothing() -> None:
    from asyncthink.protocol.chat import chat_prompts
    from toy_tokenizers import CHATML

    tok = byte_level(CHATML)
    s = served([], chat_prompts(tok, BARE), tok)
    s.prefixes.prepare(["organizer"])
    conversation = [{"role": "system", "content": "x"}, {"role": "user", "content": "q"}]
    plain = s.prefixes.branch("organizer", encoded(s, "organizer", question="q"))
    tokens = encoded(s, "organizer", question=conversation)
    system = s.prefixes.branch("organizer", tokens)
    assert plain.length == len(tok.encode("<|start|>user\nO:"))
    assert system.length == 1
    assert tok.decode(tokens) == "<|start|>system\nx<|end|>\n<|start|>user\nO:q<|end|>\n<|start|>assistant\n"


def test_conversations_are_answered() -> None:
    from asyncthink.protocol.chat import chat_prompts
    from toy_tokenizers import CHATML

    tok = byte_level(CHATML)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q<|end|>"}]
    prompts = chat_prompts(tok, BARE)
    s = served([prompts.fill("organizer", question=messages) + "<ANSWER>7</ANSWER>"], prompts, tok)
    assert [e.answer for e in s.generate([messages], GREEDY)] == ["7"]
    with pytest.raises(ValueError, match=r"questions\[1\]: expected the last message to be the user's"):
        s.generate(["q", messages[:1]], GREEDY)
    with pytest.raises(ValueError, match=r"questions\[0\]: question: expected text or one message of the user's"):
        served([]).generate([messages], GREEDY)


def test_a_prompt_is_encoded_once_a_request() -> None:
    s = served(["O:q<ANSWER>1</ANSWER>"])
    s.prefixes.prepare(["organizer"])
    calls = []
    encode = s.codec.encode
    s.codec.encode = lambda *args, **named: calls.append(args) or encode(*args, **named)  # type: ignore[method-assign]
    s.generate(["q"], GREEDY)
    assert len(calls) == 1
    first = encoded(s, "organizer", question="q")
    first.append(0)
    assert encoded(s, "organizer", question="q") == first[:-1], "the caller's list is its own"


@pytest.mark.parametrize("kind", ["legacy", "first"])
def test_a_shared_worker_and_a_join_hold_no_dummy_prefix(kind: str) -> None:
    tok = sentencepiece(kind)
    prompts = PromptFormat("Problem: {question}.", "Task: {subquery}.", "{subquery}.", "{question}.")
    start = "Problem: 2+2."
    whole = "<FORK-1>go</FORK-1><JOIN-1>42</JOIN-1><ANSWER>1</ANSWER>"
    decoder = ScriptedDecoder(tok, [])

    def following(text: str) -> int:
        """ScriptedDecoder's own choice, but the next character's token: the script is written without prefixes."""
        for script in (start + whole, start + "<FORK-1>go</FORK-1>Task: go.<RETURN>42</RETURN>"):
            text_, script_ = text.lstrip(), script
            if script_.startswith(text_) and script_ != text_:
                return int(tok.convert_tokens_to_ids(script_[len(text_)].replace(" ", "▁")))
        return int(tok.eos_token_id)

    decoder._next = following  # type: ignore[method-assign]
    s = ForkJoinSampler(decoder, tok, prompts=prompts)
    (episode,) = s.generate(["2+2"], GREEDY)
    assert episode.answer == "1"
    organizer, worker = episode.traces
    assert tok.decode(organizer.tokens) == start + whole
    assert tok.decode(worker.tokens) == "Task: go.<RETURN>42</RETURN>"


def test_a_lone_byte_ends_nothing_but_itself() -> None:
    tok = sentencepiece("legacy")
    decoder = Forced(tok, [])
    bytes_ = [tok.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "섬".encode() + b"\xe1"]
    decoder.forced = (*bytes_, *tok.convert_tokens_to_ids([*"a<ANSWER>7</ANSWER>"]))
    s = ForkJoinSampler(decoder, tok, prompts=BARE, mode="sequential")
    (episode,) = s.generate(["x"], GREEDY)
    assert (episode.answer, episode.traces[0].text) == ("7", "섬\ufffda<ANSWER>7</ANSWER>")
    decoder.forced = tuple(bytes_)
    texts: list[str] = []
    (episode,) = s.generate(
        ["x"], GREEDY, on_event=lambda _, event: texts.append(event.text) if hasattr(event, "sampled") else None
    )
    assert episode.traces[0].text == "".join(texts) == "".join(episode.traces[0].pieces)[len("S:x") :] == "섬\ufffd"
