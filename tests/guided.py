"""Episodes of uniformly random tokens through the real engine: a decoder whose logits are the same for all tokens."""

from __future__ import annotations

import itertools
import types
from typing import Any

import torch
from torch import nn

from asyncthink import ForkJoinSampler
from asyncthink.episode.records import Episode
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.codec import Codec
from asyncthink_kernels.cache import TreeCache
from scripted import PROMPTS

#: Tags that random episodes spell, the illegal ones among them, and how likely: answers and returns end an agent.
_TAGS = {"<FORK-1>": 9.5, "</FORK-1>": 9.5, "<JOIN-1>": 9.5, "</JOIN-1>": 7.5, "<FORK-2>": 8.5, "</FORK-2>": 8.5,
         "<JOIN-2>": 8.5, "<ANSWER>": 7.0, "</ANSWER>": 8.0, "<RETURN>": 7.5, "</RETURN>": 8.0}  # fmt: skip


class RandomDecoder(Decoder):
    """Logits that depend on the last token alone: behind a part of a tag, the next part is likelier than the rest."""

    model = property(lambda self: self._model)  # type: ignore[assignment]

    def __init__(self, tok: Any, max_length: int | None = None, num_pages: int = 4096, extra: int = 5) -> None:
        self._model, self.join_modes, self.unavailable = nn.Module(), ("exact", "append", "link"), {}
        self.cache = TreeCache(num_pages, 4, chunk=16)
        self.storage = types.SimpleNamespace(bytes_per_token=1)
        codec = Codec(tok)
        size = max(tok.get_vocab().values()) + 1
        self.table = torch.zeros(size + extra, size + extra)  # the model's V exceeds the tokenizer's
        spelled = {tag: codec.encode([(tag, False)], continues=True) for tag in _TAGS}
        for tag, ids in spelled.items():
            self.table[:, ids[0]] += _TAGS[tag] / 18
            self.table[[other[-1] for other in spelled.values()], ids[0]] = _TAGS[tag] - 1  # tag behind tag
            for before, after in itertools.pairwise(ids):
                self.table[before, after] = max(_TAGS[tag], float(self.table[before, after]))
        self._limit = max_length

    max_length = property(lambda self: self._limit)  # type: ignore[assignment]

    def forward(self, tokens, plan, logits_rows):  # type: ignore[no-untyped-def, override]
        return self.table[tokens[torch.as_tensor(logits_rows, dtype=torch.int64)]]

    def join(self, dst, src, start, stop, mode):  # type: ignore[no-untyped-def, override]
        self.cache.join(dst, src, start, stop, mode)

    def copy(self, dst, src, start, stop):  # type: ignore[no-untyped-def, override]
        self.cache.check_copy(dst, src, start, stop)
        self.cache.join(dst, src, start, stop, "append")


def random_sampler(
    tok: Any, max_length: int | None = None, num_pages: int = 4096, **options: object
) -> ForkJoinSampler:
    return ForkJoinSampler(RandomDecoder(tok, max_length, num_pages), tok, prompts=PROMPTS, **options)  # type: ignore[arg-type]


def broken(episode: Episode) -> str:
    """What contradicts the promises of a guide in an episode; "" for nothing."""
    if episode.format_errors or episode.failures:
        return f"{episode.format_errors} {episode.failures}"
    if episode.finish != "answer" or episode.answer is None:
        return f"finish {episode.finish!r}"
    for trace in episode.traces:
        if any(trace.sampled[k] or trace.logprobs[k] for k in trace.forced):
            return f"agent {trace.agent}: a forced token counts as drawn"
    return ""
