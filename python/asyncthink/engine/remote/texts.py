"""Text to tokens and back for an episode, from a codec and templates alone."""

from __future__ import annotations

import functools

from asyncthink.engine.detokenize import ModelTexts
from asyncthink.engine.prompting import encode_template
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat


def texts_for(codec: Codec, prompts: PromptFormat) -> ModelTexts:
    """What an :class:`asyncthink.episode.core.EpisodeCore` needs of a tokenizer.

    >>> from asyncthink.protocol.prompts import DEFAULT_PROMPTS
    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> codec = Codec(build_tokenizer())
    >>> codec.decode(texts_for(codec, DEFAULT_PROMPTS).prompt("worker_isolated", "3 + 4"))[-15:]
    '\\n\\nTask: 3 + 4\\n'
    """
    return ModelTexts(codec, functools.partial(encode_template, codec, prompts))
