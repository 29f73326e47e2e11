"""A model that is a function of the text before: on the local engine, and as a transport whose chunks come anyhow."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncGenerator

import tiny_models as tm
from asyncthink import ForkJoinSampler
from asyncthink.engine.remote.transport import Ask, Chunk
from asyncthink.protocol.codec import Codec
from scripted import END, PROMPTS, ScriptedDecoder, tokenizer

TOKENS = tokenizer(*tm.TAGS)
CODEC = Codec(TOKENS)
_WORDS = [*tm.TAGS, "a", "b", "\n", END]


def says(text: str, salt: int) -> str:
    """The word that follows ``text``: often what a sensible agent writes, sometimes any."""
    luck = random.Random(zlib.crc32(f"{salt} {text}".encode()))
    last = next((tag for tag in tm.TAGS if text.endswith(tag)), text[-1:])
    return tm.FOLLOWS.get(last, "a") if luck.random() < 0.8 else luck.choice(_WORDS)


def follows(tokens: list[int], salt: int) -> int:
    return CODEC.encode([(says(CODEC.decode(tokens), salt), True)])[0]


class OracleDecoder(ScriptedDecoder):
    """On the local engine."""

    def __init__(self, salt: int) -> None:
        super().__init__(TOKENS, [])
        self.salt = salt

    def _next(self, text: str) -> int:
        return follows(CODEC.encode([(text, True)]), self.salt)


def local(salt: int, **options: object) -> ForkJoinSampler:
    """Without kept heads, so that nobody waits for another's prompt."""
    return ForkJoinSampler(OracleDecoder(salt), TOKENS, prompts=PROMPTS, prefix_pages=0, **options)  # type: ignore[arg-type]


class OracleTransport:
    """``luck`` decides how long each chunk takes, how large it is, and whether a request ends before it must."""

    def __init__(self, salt: int, luck: int, *, streams: bool = True) -> None:
        self.salt, self.streams, self.luck = salt, streams, random.Random(luck)
        self.asks: list[Ask] = []
        self.open = 0

    async def draw(self, ask: Ask) -> AsyncGenerator[Chunk, None]:
        self.asks.append(ask)
        self.open += 1
        try:
            tokens, left = list(ask.prompt), min(ask.max_tokens, self.luck.choice([1, 3, 1000]))
            while left:
                size = self.luck.randint(1, 4) if self.streams else left
                drawn, over = self._chunk(tokens, ask, min(size, left))
                for _ in range(self.luck.randint(0, 6)):
                    await asyncio.sleep(0)
                yield Chunk(drawn, [-1.0] * len(drawn))
                left = 0 if over else left - len(drawn)
        finally:
            self.open -= 1

    def _chunk(self, tokens: list[int], ask: Ask, size: int) -> tuple[list[int], bool]:
        drawn: list[int] = []
        while len(drawn) < size:
            drawn.append(follows(tokens, self.salt))
            tokens.append(drawn[-1])
            text = CODEC.decode(tokens[len(ask.prompt) - 1 :])
            if drawn[-1] in CODEC.stop_ids or any(text.endswith(stop) for stop in ask.stop):
                return drawn, True
        return drawn, False
