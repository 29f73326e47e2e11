"""A tiny transformer for threads, and its own continuations."""

from contextlib import contextmanager

import torch

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from scripted import PROMPTS, tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
PROMPT = "the quick brown fox: "


def logits_behind(model, tokens):
    return tm.eager(model, torch.tensor(tokens))


def greedy(model, tokens, count):
    """Transformers' own continuation, without end-of-text."""
    ids = torch.tensor([tokens])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, len(tokens) :].tolist()


def thread_model():
    return tm.tiny("qwen3", vocab_size=len(tokenizer()), eos_token_id=None, pad_token_id=None, bos_token_id=None)


@contextmanager
def engine_of(model):
    """A sampler whose threads must leave no pages."""
    made = ForkJoinSampler(model, tokenizer(), prompts=PROMPTS, num_pages=400, page_size=8)
    yield made
    made.cache.check()
    assert made.cache.used_pages == 0, "pages are left"
