"""A decoder whose next token is a function of the text that each row sees: tests of the sampler without a model.

The text of a row is read through the step's plan (items, pages, entries) and a table of the token in each slot. So a
wrong page, a wrong prefix or a lost join changes the text, and the script does not continue it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from asyncthink import ForkJoinSampler
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat
from asyncthink_kernels.cache import TreeCache

PROMPTS = PromptFormat(
    organizer="O:{question}\n",
    worker_shared="W:",
    worker_isolated="I:{subquery}\n",
    solo="S:{question}\n",
    forking_worker_shared="F:",
    forking_worker_isolated="J:{subquery}\n",
)
END = "\x03"
_CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", END, "é"]


def tokenizer(*glued: str) -> PreTrainedTokenizerFast:
    """One token for each character, and one for each string of ``glued`` (longest first)."""
    words = sorted(glued, key=len, reverse=True)
    vocabulary = {word: number for number, word in enumerate([*_CHARACTERS, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    pattern = "|".join([*(_escape(word) for word in words), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def _escape(word: str) -> str:
    return "".join("\\" + c if not c.isalnum() else c for c in word)


class ScriptedDecoder(Decoder):
    """Continues each row's visible text along the first script that begins with it; else draws END.

    ``failing`` raises on that call of :meth:`forward`.
    """

    model = property(lambda self: self._model)  # type: ignore[assignment]

    def __init__(
        self, tok: PreTrainedTokenizerFast, scripts: Sequence[str], num_pages: int = 256, page_size: int = 4
    ) -> None:
        self.tok, self.scripts = tok, list(scripts)
        self._model, self.join_modes, self.unavailable = nn.Module(), ("exact", "append", "link"), {}
        self.cache = TreeCache(num_pages, page_size, chunk=4 * page_size)
        self.storage = types.SimpleNamespace(bytes_per_token=1)
        self.slots = torch.full((num_pages * page_size,), -1)
        self.rows: list[int] = []
        self.failing: int | None = None
        self.on_forward: Callable[[int], None] | None = None

    def forward(self, tokens, plan, logits_rows):  # type: ignore[no-untyped-def, override]
        if self.failing == len(self.rows):
            raise RuntimeError("the model broke")
        if self.on_forward:
            self.on_forward(len(self.rows))
        self.rows.append(len(tokens))
        self.slots[plan.slots] = tokens
        logits = torch.zeros(len(logits_rows), len(self.tok))
        for number, row in enumerate(logits_rows):
            logits[number, self._next(self.seen(plan, row))] = 60.0
        return logits

    def join(self, dst, src, start, stop, mode):  # type: ignore[no-untyped-def, override]
        scatter = self.cache.join(dst, src, start, stop, mode)
        if scatter is not None:
            self.slots[scatter.dst_slots] = self.slots[scatter.src_slots]

    def copy(self, dst, src, start, stop):  # type: ignore[no-untyped-def, override]
        self.cache.check_copy(dst, src, start, stop)
        scatter = self.cache.join(dst, src, start, stop, "append")
        self.slots[scatter.dst_slots] = self.slots[scatter.src_slots]

    def seen(self, plan, row: int) -> str:  # type: ignore[no-untyped-def]
        tokens = [int(self.slots[slot]) for slot in self.slots_seen(plan, row)]
        return self.tok.backend_tokenizer.decode(tokens, skip_special_tokens=False)

    def slots_seen(self, plan, row: int) -> list[int]:  # type: ignore[no-untyped-def]
        """The slot that a row reads for each position, 0 to its own."""
        slots: dict[int, int] = {}  # by position
        for page, offset, _, position, first, last in plan.items.tolist():
            for r, begin, end, shift, _ in plan.entries[first:last].tolist():
                for k in range(begin, end) if r == row else ():
                    skipped, within = divmod(offset + k, self.cache.page_size)
                    slot = int(plan.pages[page + skipped]) * self.cache.page_size + within
                    seen_at = position + k + int(plan.shifts[shift])
                    assert seen_at not in slots, "two tokens at one position"
                    slots[seen_at] = slot
        assert sorted(slots) == list(range(int(plan.positions[row]) + 1)), "positions seen are not 0..position"
        return [slots[k] for k in sorted(slots)]

    def _next(self, text: str) -> int:
        for script in self.scripts:
            if script.startswith(text) and script != text:
                return int(self.tok.backend_tokenizer.encode(script[len(text) :], add_special_tokens=False).ids[0])
        return int(self.tok.eos_token_id)


def sampler(scripts: Sequence[str], *glued: str, num_pages: int = 256, **options: object) -> ForkJoinSampler:
    tok = tokenizer(*glued)
    max_rows = options.pop("max_rows", 64)
    decoder = ScriptedDecoder(tok, scripts, num_pages)
    return ForkJoinSampler(decoder, tok, prompts=PROMPTS, max_rows=max_rows, **options)  # type: ignore[arg-type]
