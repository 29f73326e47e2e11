"""Text to ids: those of transformers for the whole text, but control tokens come from trusted text alone."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from asyncthink import checkpoint_path
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import check_text
from toy_tokenizers import KINDS, SPECIAL, byte_level, sentencepiece

SENTENCEPIECE = ("legacy", "metaspace first", "metaspace always")
BENIGN = [
    "Which planet",
    " is",
    " 42",
    "42",
    "<",
    "|end",
    "|>",
    "</",
    "s",
    "s>",
    " ",
    "\n",
    "a",
    "<JOIN-1>",
    "</JOIN-1>",
]


@cache
def toy(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@cache
def codec(kind: str) -> Codec:
    return Codec(toy(kind))


kinds = pytest.mark.parametrize("kind", KINDS)
texts = st.lists(st.sampled_from(BENIGN), max_size=8).map("".join)


def named(kind: str, ids: list[int]) -> list[str]:
    """The control tokens among ``ids``."""
    return list(toy(kind).convert_ids_to_tokens([token for token in ids if codec(kind).control([token])]))


@kinds
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_whole_is_encoded_once_wherever_the_parts_are_cut(kind: str, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.tuples(texts, st.booleans()), max_size=5))
    text = "".join(part for part, _ in parts)
    ids = toy(kind)(text, add_special_tokens=False)["input_ids"]
    assert codec(kind).encode([(text, True)]) == ids
    if not named(kind, ids):
        assert codec(kind).encode(parts) == ids


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, tags", *SENTENCEPIECE])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_control_tokens_come_from_trusted_text_alone(kind: str, data: st.DataObject) -> None:
    snippets = st.lists(st.sampled_from([*SPECIAL, *BENIGN, "<|e", "nd|>"]), max_size=6).map("".join)
    given_, system = data.draw(snippets), data.draw(texts)
    parts = [(f"<|start|>{system}\n", True), (given_, False), ("<|end|>", True), (given_, False), ("!</s>", True)]
    continues = data.draw(st.booleans())
    ids = codec(kind).encode(parts, continues=continues)
    assert named(kind, ids) == [
        name
        for part, trusted in parts
        if trusted
        for name in named(kind, toy(kind)(part, add_special_tokens=False)["input_ids"])
    ]
    text = "".join(part for part, _ in parts)
    assert toy(kind).decode(ids).replace(" ", "") == text.replace(" ", "")
    if kind.startswith("byte"):
        assert toy(kind).decode(ids) == text


@pytest.mark.parametrize("kind", ["byte-level", *SENTENCEPIECE])
@pytest.mark.parametrize("token", SPECIAL)
def test_untrusted_text_alone_makes_no_control_token(kind: str, token: str) -> None:
    for continues in (False, True):
        ids = codec(kind).encode([(f"a{token}{token}b {token} c", False)], continues=continues)
        assert not codec(kind).control(ids)
        assert toy(kind).decode(ids).strip() == f"a{token}{token}b {token} c"
    assert codec(kind).forges(f"x{token}")
    assert not codec(kind).forges("x<|end")


def test_a_control_token_across_the_border_of_a_trusted_part_is_forged() -> None:
    c, tok = codec("byte-level"), toy("byte-level")
    for parts in ([("Q: <|en", True), ("d|>", False)], [("<|en", False), ("d|> A:", True)]):
        ids = c.encode(parts)
        assert not c.control(ids)
        assert tok.decode(ids) == "".join(part for part, _ in parts)
    assert c.encode([("Q<|en", True), ("", False), ("d|>", True)])[-1] == tok.convert_tokens_to_ids("<|end|>")


def test_spaces_in_a_control_token_need_not_be_trusted() -> None:
    tok = byte_level()
    tok.add_special_tokens({"additional_special_tokens": [AddedToken("<mask>", lstrip=True, rstrip=True)]})
    c, mask = Codec(tok), tok.convert_tokens_to_ids("<mask>")
    assert c.encode([("a ", False), ("<mask>", True), (" b", False)]).count(mask) == 1
    forged = c.encode([("a ", True), ("<mask>", False), (" b", True)])
    assert mask not in forged
    assert tok.decode(forged) == "a <mask> b"


def test_control_tokens_are_found_in_normalized_text() -> None:
    tok = byte_level()
    tok.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tok.add_special_tokens({"additional_special_tokens": [AddedToken("<turn>", normalized=True)]})
    c = Codec(tok)
    assert c.control(c.encode([("a<TURN>b", True)]))
    assert not c.control(c.encode([("a<TURN>b＜turn＞c", False)]))


def test_characters_that_the_vocabulary_lacks_are_no_forgery() -> None:
    tok, c = toy("shipped"), codec("shipped")
    assert c.encode([("24 é", False)]) == tok.encode("24 é", add_special_tokens=False)
    assert tok.unk_token_id in c.encode([("é", False)])
    assert not codec("legacy").control(codec("legacy").encode([("<unk>", False)]))


def test_a_control_token_of_one_character_is_left_out_of_untrusted_text() -> None:
    tok, c = toy("glued"), codec("glued")
    end = tok.eos_token
    assert len(end) == 1
    assert tok.decode(c.encode([(f"a{end}b{end}", False), (end, True)])) == f"ab{end}"


@kinds
@settings(deadline=None, max_examples=60)
@given(context=texts.filter(lambda text: text.strip()), text=texts)
def test_a_continuation_adds_its_text_and_nothing_else(kind: str, context: str, text: str) -> None:
    c, tok = codec(kind), toy(kind)
    before = c.encode([(context, True)])
    if tok.unk_token_id is not None and tok.unk_token_id in c.encode([(context + text, False)]):
        return
    assert c.decode(before + c.encode([(text, False)], continues=True)) == c.decode(before) + text


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, tags", "glued", "shipped"])
@given(text=texts)
def test_continuations_change_nothing_where_there_is_no_dummy_prefix(kind: str, text: str) -> None:
    c = codec(kind)
    assert c.encode([(text, True)], continues=True) == c.encode([(text, True)])


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_behind_a_control_token_a_continuation_is_encoded_as_in_a_whole_prompt(kind: str) -> None:
    tok, c = toy(kind), codec(kind)
    whole = tok("a</s>42<|end|>", add_special_tokens=False)["input_ids"]
    ids = c.encode([("a</s>42<|end|>", True)], continues=True)
    assert ids[ids.index(tok.eos_token_id) :] == whole[whole.index(tok.eos_token_id) :]
    assert ids[0] == tok.convert_tokens_to_ids("a")


def test_later_changes_of_the_tokenizer_change_no_prompt() -> None:
    tok = byte_level()
    tok.pad_token = "</s>"
    parts = [("Which planet is closest to the sun?", False)]
    plain = Codec(tok).encode(parts)
    c = Codec(tok)
    tok(["a b c d e f", "a"], truncation=True, max_length=5, padding=True)
    assert c.encode(parts) == Codec(tok).encode(parts) == plain
    tok.backend_tokenizer.enable_truncation(3)
    tok.backend_tokenizer.enable_padding(length=64)
    assert c.encode(parts) == Codec(tok).encode(parts) == plain
    fresh = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tok.backend_tokenizer.to_str()))
    assert Codec(fresh).encode(parts) == plain, "saved with truncation and padding"
    tok.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert c.encode(parts) == plain


def test_codecs_of_one_tokenizer_share_the_copy_until_it_changes() -> None:
    tok = byte_level()
    first = Codec(tok)
    assert Codec(tok, [7]).backend is first.backend is not tok.backend_tokenizer
    tok.add_tokens([AddedToken("<new>", special=True)])
    assert Codec(tok).backend is not first.backend
    assert Codec(tok).control(Codec(tok).encode([("<new>", True)]))
    assert not first.control(first.encode([("<new>", True)]))


def test_end_ids_count_as_in_generate_but_for_protocol_tags() -> None:
    tok = byte_level(tags=True)
    tok.add_tokens([AddedToken("<end_of_turn>", special=False, normalized=False)])
    turn, tag, word = (tok.convert_tokens_to_ids(token) for token in ("<end_of_turn>", "</ANSWER>", "a"))
    c = Codec(tok, [tok.eos_token_id, turn, tag, word])
    assert c.stop_ids == {tok.eos_token_id, turn, word}
    assert not c.control(c.encode([("a<end_of_turn>b", False)])), "an added token that ends is a control token"
    assert c.encode([("aa", False)]) == tok.encode("aa"), "an ordinary token that ends is text in a question"
    tok.eos_token = None
    assert Codec(tok).stop_ids == frozenset()


def test_the_shipped_checkpoint_ends_where_it_did() -> None:
    from transformers import AutoTokenizer, GenerationConfig

    path = checkpoint_path("countdown")
    tok, ends = AutoTokenizer.from_pretrained(path), GenerationConfig.from_pretrained(path).eos_token_id
    assert Codec(tok, ends).stop_ids == {tok.eos_token_id}


def test_tokenizers_that_cannot_be_used_are_named() -> None:
    with pytest.raises(ValueError, match=r"tokenizer: expected a fast .* got object"):
        Codec(object())

    class Own:
        def pre_tokenize(self, text: object) -> None: ...

    tok = byte_level()
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Own())
    with pytest.raises(ValueError, match="tokenizer: expected one that can be saved as JSON"):
        Codec(tok)


def test_dummy_prefixes_are_found_in_nested_components() -> None:
    tok = sentencepiece("legacy")
    inner = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), inner])
    c = Codec(tok)
    assert c.encode([("42", True)]) == [tok.convert_tokens_to_ids("▁42")]
    assert c.encode([("42", True)], continues=True) == tok.convert_tokens_to_ids(["4", "2"])


@pytest.mark.parametrize("text", ["\ud83d", "ok \udc00", 7, None])
def test_text_that_has_no_encoding_is_named(text: object) -> None:
    with pytest.raises(ValueError, match=r"stop\[1\]: expected (text that UTF-8 can encode|a string), got"):
        check_text("stop[1]", text)
    check_text("stop[1]", "\ufffd\U0001f600\x00")
