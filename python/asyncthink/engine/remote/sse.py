"""Server-sent events from bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable


async def payloads(pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The ``data`` of each event, as bytes. Lines end at a newline alone.

    (Text in JSON may hold U+2028 and others at which ``str.splitlines``, and so httpx's own lines, would cut.)

    >>> import asyncio
    >>> async def read(*pieces):
    ...     async def come():
    ...         for piece in pieces:
    ...             yield piece
    ...     return [payload async for payload in payloads(come())]
    >>> asyncio.run(read(b'data: {"a"', b': 1}\\r\\n\\r\\n: ping\\n', b'data:2\\n\\n'))
    [b'{"a": 1}', b'2']
    """
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
