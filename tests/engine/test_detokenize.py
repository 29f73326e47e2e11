"""Ids to text, token by token: equal to decoding all at once, for any bytes; and the tokens of a part of the text."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from asyncthink.engine.detokenize import TextStream, join_tokens
from asyncthink.protocol.codec import Codec
from toy_tokenizers import KINDS, byte_level, real_model, sentencepiece, word_piece

ALL = {**KINDS, "word-piece": word_piece}
FALLBACK = ("legacy", "metaspace first", "metaspace always")
LOST = "\ufffd"


@cache
def toy(kind: str) -> PreTrainedTokenizerFast:
    return ALL[kind]()


@cache
def codec(kind: str) -> Codec:
    return Codec(toy(kind))


def streamed(c: Codec, ids: list[int], context: list[int] | None = None) -> str:
    stream = TextStream(c, context or [])
    text = "".join([stream.push(token) for token in ids]) + stream.flush()
    assert stream.text == text
    assert len(stream.ends) == len(ids) and stream.ends == sorted(stream.ends)
    assert stream.ends[-1:] in ([], [len(text)])
    return text


def as_given_out(tok: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """``ids`` with U+FFFD for each byte token of an invalid run, except for the complete characters before it."""
    made, run = [], b""
    for token in [*ids, None]:
        byte = re.fullmatch("<0x(..)>", tok.convert_ids_to_tokens(token) or "") if token is not None else None
        if byte:
            run += bytes.fromhex(byte[1])
            continue
        try:
            good = len(run.decode().encode())
        except UnicodeDecodeError as error:
            good = error.start
        made += [tok.convert_tokens_to_ids(f"<0x{b:02X}>") for b in run[:good]]
        made += [tok.convert_tokens_to_ids(LOST)] * (len(run) - good)
        made += [] if token is None else [token]
        run = b""
    return made


def flat(lists: list[list[int]]) -> list[int]:
    return [token for tokens in lists for token in tokens]


def tokens(kind: str) -> st.SearchStrategy[list[int]]:
    """Any ids; with byte fallback half of them are bytes, mostly of a few characters."""
    anything = st.integers(0, len(toy(kind)) - 1)
    if kind not in FALLBACK:
        return st.lists(anything, max_size=24)
    characters = st.sampled_from([*"섬é\n ", "\U0001f600"]).map(lambda c: list(c.encode()))
    runs = st.one_of(characters, st.integers(0, 255).map(lambda byte: [byte]))
    ids = runs.map(lambda run: toy(kind).convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in run]))
    return st.lists(st.one_of(ids, anything.map(lambda token: [token])), max_size=16).map(flat)


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_are_the_text_decoded_at_once(kind: str, data: st.DataObject) -> None:
    ids = data.draw(tokens(kind))
    expected = ids if kind not in FALLBACK else as_given_out(toy(kind), ids)
    assert streamed(codec(kind), ids) == toy(kind).decode(expected)
    if kind in FALLBACK and toy(kind).decode(ids).count(LOST) == toy(kind).decode(expected).count(LOST):
        assert toy(kind).decode(ids) == toy(kind).decode(expected), "only complete characters may differ"


@pytest.mark.parametrize("kind", ["byte-level", "shipped", "glued"])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_stream_goes_on_from_its_context(kind: str, data: st.DataObject) -> None:
    context, ids = toy(kind).encode("Problem: 42 is ") * 2, data.draw(tokens(kind))
    assert toy(kind).decode(context) + streamed(codec(kind), ids, context) == toy(kind).decode(context + ids)


@pytest.mark.parametrize("kind", FALLBACK)
def test_a_first_space_is_kept_behind_a_context(kind: str) -> None:
    tok = toy(kind)
    context, ids = tok.convert_tokens_to_ids(["a"]), tok.convert_tokens_to_ids(["▁42", "▁", "<0x20>", "<0x0A>"])
    assert streamed(codec(kind), ids, context) == " 42  \n"
    assert streamed(codec(kind), ids) == "42  \n" == tok.decode(ids)


def test_a_byte_that_ends_no_character_loses_nothing_and_raises_nothing() -> None:
    tok, c = toy("legacy"), codec("legacy")
    ids = tok.convert_tokens_to_ids(
        [*(f"<0x{byte:02X}>" for byte in "섬".encode()), "<0xE1>", "a", "<0xE1>", "<0x0A>", "b"]
    )
    stream = TextStream(c)
    assert [stream.push(token) for token in ids] == ["", "", "섬", "", LOST + "a", "", LOST * 2, "b"]
    assert stream.flush() == ""


def test_a_newline_in_bytes_is_given_out_at_once() -> None:
    stream = TextStream(codec("metaspace first"))
    assert stream.push(toy("metaspace first").convert_tokens_to_ids("<0x0A>")) == "\n"


@pytest.mark.parametrize("kind", ["byte-level", "legacy"])
def test_what_is_unfinished_comes_out_in_the_end(kind: str) -> None:
    tok = toy(kind)
    half = tok.encode("섬")[:1] if kind == "byte-level" else tok.convert_tokens_to_ids(["<0xEC>"])
    ids = [tok.convert_tokens_to_ids("a"), *half]
    stream = TextStream(codec(kind))
    assert "".join(map(stream.push, ids)) == "a"
    assert (stream.flush(), stream.flush(), stream.text) == (LOST, "", "a" + LOST)
    assert TextStream(codec(kind)).flush() == ""


def test_endless_garbage_is_given_out_as_it_comes() -> None:
    tok = toy("byte-level")
    bad = tok.convert_tokens_to_ids("ÿ")
    stream = TextStream(codec("byte-level"))
    assert len("".join(stream.push(bad) for _ in range(500))) == 499
    assert len(stream._tokens) <= 8, "a token is decoded with a bounded number of others"


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_span_and_its_sides_are_the_text(kind: str, data: st.DataObject) -> None:
    ids = data.draw(tokens(kind))
    stream = TextStream(codec(kind))
    for token in ids:
        stream.push(token)
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(stream.text))] * 2)))
    first, last = stream.span(begin, end)
    starts = [0, *stream.ends]
    assert 0 <= first <= last <= len(ids)
    if first < last:
        assert begin <= starts[first] <= stream.ends[last - 1] <= end
        if kind == "byte-level":
            assert toy(kind).decode(ids[first:last]) == stream.text[starts[first] : stream.ends[last - 1]]


RETURNS = ["42", " 42 ", "", "x<|end|>y", "a섬", "é", "d", "two\nlines", "<FORK-1>no", "</s>", "end of a <"]


@pytest.mark.parametrize("text", RETURNS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "shipped"])
def test_a_join_inserts_the_return_and_its_closing_tag(kind: str, text: str) -> None:
    """For any tokens of the worker: the tokenizer's own, or one for each character."""
    c = codec(kind)
    if kind == "glued" and not text.isascii():
        return
    written = f"so<RETURN>{text}</RETURN>"
    for worker in (
        c.encode([(written, True)], continues=True),
        [token for character in written for token in c.encode([(character, True)], continues=True)],
    ):
        stream = TextStream(c)
        for token in worker:
            stream.push(token)
        begin, end = stream.text.index("<RETURN>") + len("<RETURN>"), stream.text.rindex("</RETURN>")
        returned = stream.text[begin:end]
        assert returned == text or worker == c.encode([(written, True)], continues=True)
        insert = join_tokens(c, 1, stream, worker, (begin, end))
        ids = [*insert.lead, *worker[slice(*insert.span)], *insert.rest]
        before = c.encode([("go <JOIN-1>", True)])
        assert c.decode(before + ids + insert.closing) == c.decode(before) + returned + "</JOIN-1>"
        assert insert.length == len(ids)
        assert not c.control(ids)
        assert insert.closing == c.encode([("</JOIN-1>", True)], continues=True)


def test_a_join_takes_the_workers_own_tokens() -> None:
    c, tok = codec("byte-level, tags"), toy("byte-level, tags")
    worker = tok.encode("so<RETURN>the answer</RETURN>")
    stream = TextStream(c)
    for token in worker:
        stream.push(token)
    insert = join_tokens(c, 1, stream, worker, (10, 20))
    assert worker[slice(*insert.span)] == tok.encode("the answer")
    assert insert.lead == insert.rest == []
    assert insert.closing == [tok.convert_tokens_to_ids("</JOIN-1>")]


def test_half_a_character_at_the_border_of_a_return_is_spelled_anew() -> None:
    tok, c = sentencepiece("legacy"), codec("legacy")
    worker = tok.convert_tokens_to_ids([*"<RETURN>", "a", "<0xEC>", *"</RETURN>"])
    stream = TextStream(c)
    for token in worker:
        stream.push(token)
    insert = join_tokens(c, 1, stream, worker, (8, 10))
    assert c.decode([*insert.lead, *worker[slice(*insert.span)], *insert.rest]) == "a" + LOST
    assert worker[slice(*insert.span)] == tok.convert_tokens_to_ids(["a"])


def test_every_byte_sequence_of_a_byte_level_tokenizer() -> None:
    tok = byte_level()
    c = Codec(tok)
    letters = [tok.convert_tokens_to_ids(tok.tokenize(chr(k))[-1]) for k in range(128)]
    for text in ("é섬\U0001f600", "\ufffd", "a\ufffd", "\ufffd\ufffdb"):
        ids = tok.encode(text)
        assert streamed(c, ids) == text
        for cut in range(len(ids)):
            for broken in (ids[cut:], ids[:cut] + letters[97:98] + ids[cut:], ids[:cut] + ids[cut + 1 :]):
                assert streamed(c, broken) == tok.decode(broken)


@pytest.mark.skipif(real_model() is None, reason="SmolLM2-135M-Instruct is not there")
@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 49151), max_size=24))
def test_a_real_tokenizer(ids: list[int]) -> None:
    tok = smol()
    assert streamed(Codec(tok), ids) == tok.decode(ids)


@cache
def smol() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(real_model())
