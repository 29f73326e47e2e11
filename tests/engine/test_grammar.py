"""Grammars over the tokens of every kind of tokenizer, and drawing under a mask."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.engine.grammar import Grammars, allowed, token_bytes, width
from asyncthink.engine.sampling import SamplingParams, draw, forbid
from asyncthink.protocol.codec import Codec
from toy_tokenizers import KINDS

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def write(grammars: Grammars, matcher, seed: int, limit: int = 400) -> list[int]:
    """Random allowed tokens until nothing but the end is allowed, or ``limit``; end-of-text is not among them."""
    rng, ids = np.random.default_rng(seed), []
    row = np.zeros(width(grammars.vocabulary), np.int32)
    while not matcher.stopped and len(ids) < limit:
        matcher.mask(row)
        choices = [token for token in allowed(row) if token not in grammars.stops]
        if not choices:
            break
        ids.append(int(rng.choice(choices)))
        matcher.consume(ids[-1])
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_spell_a_text_of_the_grammar(kind):
    tokenizer = KINDS[kind]()
    codec = Codec(tokenizer)
    grammars = Grammars(tokenizer, vocabulary=1000)
    for seed in range(5):
        matcher = grammars.matcher(regex="[ab]{2,5}(<ANSWER>|</ANSWER>)")
        text = codec.decode(write(grammars, matcher, seed))
        assert re.fullmatch("[ab]{2,5}(<ANSWER>|</ANSWER>)", text.strip()), text
        assert matcher.may_stop


@pytest.mark.parametrize("kind", ["byte-level", "metaspace first", "glued"])
def test_a_json_schema_is_kept(kind):
    grammars = Grammars(KINDS[kind]())
    for seed in range(3):
        matcher = grammars.matcher(json_schema=SCHEMA)
        ids = write(grammars, matcher, seed)
        if matcher.may_stop:
            value = json.loads(b"".join(token_bytes(Codec(KINDS[kind]()))[token] for token in ids))
            assert set(value) == {"name", "age"}
            assert 0 <= value["age"] <= 99


def test_tokens_have_the_bytes_of_their_text():
    for kind in ("byte-level", "legacy", "metaspace always"):
        codec = Codec(KINDS[kind]())
        words, text = token_bytes(codec), "Which planet 42 é 漢?"
        ids = codec.encode([(text, False)], continues=True)
        assert b"".join(words[token] for token in ids).decode() == text


def test_end_of_text_ends_a_complete_text_alone():
    grammars = Grammars(KINDS["glued"]())
    matcher, row = grammars.matcher(regex="ab?"), np.zeros(width(grammars.vocabulary), np.int32)
    matcher.mask(row)
    assert not set(allowed(row)) & set(grammars.stops)
    matcher.consume(allowed(row)[0])
    matcher.mask(row)
    assert set(grammars.stops) < set(allowed(row))


def test_copies_move_alone_and_rollback_goes_back():
    grammars = Grammars(KINDS["glued"]())
    matcher = grammars.matcher(regex="a[bc]d")
    a, b = (grammars.words.index(c) for c in (b"a", b"b"))
    other = matcher.copy()
    matcher.consume(a)
    matcher.consume(b)
    assert grammars.texts(other) == ["a"]
    assert grammars.texts(matcher) == ["d"]
    matcher.rollback(1)
    assert grammars.texts(matcher) == ["b", "c"]
    with pytest.raises(ValueError, match="count: expected at most the number of consumed tokens, got 9"):
        matcher.rollback(9)
    assert grammars.texts(matcher) == ["b", "c"]
    with pytest.raises(ValueError, match="token: expected one that the grammar allows, got"):
        matcher.consume(a)
    assert grammars.texts(matcher) == ["b", "c"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "grammar: expected one of lark, regex, json_schema, got none"),
        ({"lark": "start: x", "regex": "x"}, "got lark, regex"),
        ({"lark": "start: ("}, "^lark: "),
        ({"regex": "("}, "^regex: .*invalid regex"),
        ({"json_schema": "{"}, "^json_schema: "),
        ({"json_schema": {"type": "zork"}}, "json_schema: Invalid type: zork"),
    ],
)
def test_refused_grammars_are_one_line(wanted, message):
    grammars = Grammars(KINDS["glued"]())
    with pytest.raises(ValueError, match=message) as caught:
        grammars.matcher(**wanted)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(ValueError, match="vocabulary: expected at least the tokenizer's 108 tokens, got 5"):
        Grammars(KINDS["glued"](), 5)


def bitmask(rows: list[set[int]], vocabulary: int) -> torch.Tensor:
    bits = np.zeros((len(rows), width(vocabulary) * 32), np.uint8)
    for number, row in enumerate(rows):
        bits[number, sorted(row)] = 1
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 31, 32, 33, 100]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_masked_draws_are_those_of_the_allowed_tokens(seed, vocabulary, dtype):
    rng = np.random.default_rng(seed)
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rows = [set(rng.choice(vocabulary, rng.integers(1, vocabulary + 1), replace=False).tolist()) for _ in range(4)]
    params = [SamplingParams(seed=seed, temperature=t, top_p=p) for t, p in ((1, 1), (0.5, 0.9), (0, 1), (2, 0.4))]
    tokens, logprobs = draw(logits, params, [0] * 4, range(4), bitmask(rows, vocabulary))
    for row in range(4):
        ids = sorted(rows[row])
        assert tokens[row] in rows[row]
        expected = torch.log_softmax(logits[row, ids].float() / (params[row].temperature or 1), 0)
        assert logprobs[row] == pytest.approx(float(expected[ids.index(tokens[row])]), abs=1e-5)


def test_rows_without_a_mask_stay_as_they_are():
    logits = torch.randn(3, 40)
    got = forbid(logits, bitmask([{3, 39}], 40), [1])
    assert torch.equal(got[[0, 2]], logits[[0, 2]])
    assert torch.isfinite(got[1]).nonzero()[:, 0].tolist() == [3, 39]


def test_a_mask_without_a_token_and_a_wrong_shape_are_refused():
    logits = torch.zeros(2, 33)
    with pytest.raises(ValueError, match="masks: expected an allowed token in each row, got none in row 1"):
        forbid(logits, bitmask([{1}, set()], 33))
    with pytest.raises(ValueError, match=r"masks: expected int32 \[2, 2\], got torch.int32 \[2, 1\]"):
        forbid(logits, bitmask([{1}, {1}], 32))
