"""Small tokenizers of every kind that models come with, and chat templates for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from asyncthink.train.tokenizer import build_tokenizer
from scripted import tokenizer as word_level

SPECIAL = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
TAGS = [f"<{slash}{name}>" for name in ("FORK-1", "JOIN-1", "RETURN", "ANSWER") for slash in ("", "/")]
CORPUS = ["Which planet is closest to the sun? Problem: 42 is the answer, the worker says; go on\n" * 3]

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
TRIMS = CHATML.replace("m['content']", "m['content'] | trim")
BEGINS = "{{ bos_token }}" + TRIMS
FORGETS_THINKING = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
ALTERNATES = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no system prompt') }}{% endif %}" + CHATML


def _fast(backend: Tokenizer, template: str | None = None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def byte_level(
    template: str | None = None, tags: bool = False, prefix: bool = False, merged: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ``tags``: each protocol tag is one added token; ``prefix``: a space is put in front of a text.

    ``merged``: parts of tags, and what stands between two of them, are tokens (``><``, ``FORK``).
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400 if merged else 330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*CORPUS, *(["".join(TAGS)] * 9 if merged else [])], trainer)
    if tags:
        backend.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return _fast(backend, template)


def sentencepiece(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """BPE with byte fallback whose texts begin with a dummy space: ``kind`` is legacy, first or always.

    Legacy: a Prepend normalizer, in front of every stretch between control tokens (Llama 2); first: Metaspace, in front
    of the whole text alone; always: Metaspace, in front of every stretch. Puts ``<s>`` in front of a text by itself.
    """
    words = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *map(chr, range(33, 127)),
        "▁",
        "\ufffd",
        "▁4",
        "▁42",
    ]
    model = models.BPE(
        {word: k for k, word in enumerate(words)}, [("▁", "4"), ("▁4", "2")], unk_token="<unk>", byte_fallback=True
    )
    backend = Tokenizer(model)
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=kind, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(backend, template)


def word_piece() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *"abc<>/", *(f"##{c}" for c in "abc<>/")]
    backend = Tokenizer(models.WordPiece({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(SPECIAL)
    return _fast(backend)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, tags": lambda: byte_level(tags=True),
    "byte-level, merged": lambda: byte_level(merged=True),
    "byte-level, prefix": lambda: byte_level(prefix=True),
    "legacy": lambda: sentencepiece("legacy"),
    "metaspace first": lambda: sentencepiece("first"),
    "metaspace always": lambda: sentencepiece("always"),
    "glued": lambda: word_level(*TAGS, ">\n", "d<"),
    "shipped": build_tokenizer,
}


def real_model() -> Path | None:
    """The folder of SmolLM2-135M-Instruct where somebody has put it; tests that want it are skipped elsewhere."""
    folder = Path.home() / ".cache/asyncthink-models/SmolLM2-135M-Instruct"
    return folder if (folder / "ready").exists() else None
