"""Joins of threads on a tiny transformer: what follows is what the model gives on the joined context."""

import pytest
import torch
from thread_models import GREEDY, PROMPT, engine_of, greedy, thread_model

import tiny_models as tm


@pytest.fixture(scope="module")
def model():
    return thread_model()


@pytest.fixture
def engine(model):
    with engine_of(model) as engine:
        yield engine


@pytest.mark.parametrize("what", ["text", "thought"])
def test_an_exact_join_is_the_model_on_the_joined_context(engine, model, what):
    with engine.thread(PROMPT) as root:
        worker, other = root.fork(2)
        worker.write("own:").think(GREEDY)
        root.write(" root ").join([worker, worker], what=what).write("so")
        joined = worker.tokens[worker.begin if what == "text" else worker.thought.start :]
        tail = engine.codec.encode([("so", False)])
        assert root.tokens == [*other.tokens, *engine.codec.encode([(" root ", False)]), *joined, *joined, *tail]
        before = root.tokens
        root.think(GREEDY)
        assert root.tokens == before + greedy(model, before, 12)
        worker.close(), other.close()


def spliced_greedy(model, joins, tokens, count):
    """Greedy continuation where ``joins`` = (at, source tokens, first, stop) bring K/V of another context, rotated."""
    cache, done = tm.DynamicCache(), 0
    for at, source, first, stop in joins:
        cache = extend(model, cache, tokens[done:at], done)
        moved = tm.eager_cache(model, torch.tensor(source))
        shifted = shift(model, moved, first, stop, at - first)
        cache = tm.spliced([(cache, 0, at), (shifted, 0, stop - first)])
        done = at + stop - first
    tokens = list(tokens)
    for _ in range(count):
        logits = tm.eager(model, torch.tensor(tokens[done:]), start=done, past=cache)
        done = len(tokens)
        tokens.append(int(logits[-1].argmax()))
    return tokens[-count:]


def extend(model, cache, tokens, start):
    if len(tokens):
        tm.eager(model, torch.tensor(tokens), start=start, past=cache)
    return cache


def shift(model, cache, first, stop, by):
    """K of tokens [first, stop) rotated by ``by`` positions, and their V."""
    moved = tm.DynamicCache()
    for layer, kept in enumerate(cache.layers):
        k, v = kept.keys[:, :, first:stop], kept.values[:, :, first:stop]
        half = k.shape[-1] // 2
        inverse = model.model.rotary_emb.inv_freq
        cos, sin = (by * inverse).cos(), (by * inverse).sin()
        a, b = k[..., :half], k[..., half:]
        moved.update(torch.cat([a * cos - b * sin, b * cos + a * sin], -1), v, layer)
    return moved


@pytest.mark.parametrize("mode", ["append", "link"])
def test_a_join_by_cache_is_the_model_on_the_joined_keys(engine, model, mode):
    with engine.thread(PROMPT) as root:
        (worker,) = root.fork()
        worker.think(GREEDY)
        root.write(" and then ")
        at, first = len(root), worker.begin
        root.join(worker, mode=mode)
        stop = len(worker) - 1  # the last token is computed
        source, before = worker.tokens, root.tokens
        expected = spliced_greedy(model, [(at, source, first, stop)], before, 12)
        worker.close()
        assert root.think(GREEDY).tokens == before + expected
        root.truncate(len(before))
        engine.threads.pool.clear()  # all of it is computed again, the closed thread's part too
        assert root.think(GREEDY).tokens == before + expected
        (late,) = root.fork(at=at + 5)
        late.think(GREEDY)
        root.close()
        late.think(GREEDY)
        late.close()


def test_links_are_not_appended(engine):
    with engine.thread(PROMPT) as root:
        a, b = root.fork(2)
        engine.think([a, b], GREEDY)
        a.join(b, mode="link").think(GREEDY)
        with pytest.raises(
            ValueError, match="mode: expected 'exact' or 'link' for text of thread 1 that contains links"
        ):
            root.join(a, mode="append")
        root.join(a, mode="link").join(a, mode="append", what="thought").think(GREEDY)
        a.close(), b.close()
