"""Threads on a tiny transformer: what they draw and score is what the model itself gives."""

import json
import re

import pytest
import torch
from thread_models import GREEDY, PROMPT, engine_of, greedy, logits_behind, thread_model

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.thread import Thread
from scripted import PROMPTS, tokenizer
from toy_tokenizers import real_model


@pytest.fixture(scope="module")
def model():
    return thread_model()


@pytest.fixture
def engine(model):
    with engine_of(model) as engine:
        yield engine


def test_a_thought_is_what_generate_gives(engine, model):
    with engine.thread(PROMPT) as thread:
        before = thread.tokens
        assert thread.think(GREEDY) is thread
        assert thread.tokens == before + greedy(model, before, 12)
        assert thread.text == engine.codec.decode(thread.tokens[thread.begin :]) == thread.thought.text
        assert (thread.finish, thread.thought.start, thread.thought.stop) == ("budget", len(before), len(before) + 12)
        logp = torch.log_softmax(logits_behind(model, thread.tokens), -1)
        expected = [float(logp[k - 1, token]) for k, token in enumerate(thread.tokens)][len(before) :]
        assert thread.logprobs[: len(before)] == [None] * len(before)
        assert thread.logprobs[len(before) :] == pytest.approx(expected, abs=1e-4)
        assert thread.thought.logprobs == tuple(thread.logprobs[len(before) :])
        thread.write(" and ").think(GREEDY)
        assert thread.tokens[-12:] == greedy(model, thread.tokens[:-12], 12)


def test_forks_read_their_prefix_once(engine, monkeypatch):
    rows = []
    forward = engine.decoder.forward
    monkeypatch.setattr(engine.decoder, "forward", lambda t, *a: rows.append(len(t)) or forward(t, *a))
    with engine.thread(PROMPT) as root:
        drafts = root.fork(5)
        engine.think(drafts, GREEDY)
    assert rows == [len(PROMPT) - 1] + [5] * 12
    assert len({draft.text for draft in drafts}) == 1
    for draft in drafts:
        draft.close()


@pytest.mark.parametrize("at", [1, 3, 20, 21, 25, 33])
def test_a_fork_at_any_token_is_a_fresh_thread_with_these_tokens(engine, at):
    with engine.thread(PROMPT) as root, engine.thread("-") as fresh:
        root.think(GREEDY)
        root.write("!?")
        (fork,) = root.fork(at=at)
        assert fork.tokens == root.tokens[:at] and fork.begin == at and fork.text == ""
        fresh.truncate(0)
        fresh._state.stretch.add(root.tokens[:at])
        engine.think([fork, fresh], GREEDY)
        assert fork.tokens == fresh.tokens
        assert fork.thought.logprobs == pytest.approx(fresh.thought.logprobs, abs=1e-5)
        fork.close()


def test_siblings_change_a_fork_by_no_more_than_rounding(engine):
    params = SamplingParams(seed=5, max_tokens=10)
    thoughts = []
    for count in (1, 4):
        with engine.thread(PROMPT) as root:
            root.score(["a"])  # the prefix is computed, in a step of its own
            forks = root.fork(4)
            engine.think([forks[1], *forks[2:][: count - 1]], params)
            thoughts.append(forks[1].thought)
            for fork in forks:
                fork.close()
    assert thoughts[0].text == thoughts[1].text
    # Some processors sum a product of one row and of four in another order (AVX2: one unit in the last place).
    assert thoughts[0].logprobs == pytest.approx(thoughts[1].logprobs, abs=1e-5)


def test_a_seed_gives_the_same_text_whatever_is_in_the_batch(engine):
    params = SamplingParams(seed=3, max_tokens=15)

    def drafts(beside):
        with engine.thread(PROMPT) as root:
            mine = root.fork(3)
            others = [engine.thread("other " * k) for k in range(1, beside + 1)]
            streams = [engine.stream("q", SamplingParams(max_tokens=6, seed=k)) for k in range(beside)]
            engine.think([*others, *mine], params)
            for closed in (*streams, *others):
                closed.close()
            texts = [draft.text for draft in mine]
            for draft in mine:
                draft.close()
            return texts

    alone = drafts(0)
    assert drafts(3) == alone and len(set(alone)) == 3
    engine.prefixes.clear()


@pytest.mark.parametrize("max_rows", [3, 1024])
def test_scores_are_the_models_own(model, max_rows):
    engine = ForkJoinSampler(model, tokenizer(), prompts=PROMPTS, num_pages=100, max_rows=max_rows)
    with engine.thread(PROMPT) as root:
        root.think(GREEDY)
        before = root.tokens
        ids = tm.tokens(7, 3).tolist()
        scores = root.score(["fox", "y", ids])
        assert root.tokens == before
        assert [score.tokens for score in scores] == [
            *(tuple(engine.codec.encode([(text, False)])) for text in ("fox", "y")), tuple(ids),
        ]  # fmt: skip
        for score in scores:
            logp = torch.log_softmax(logits_behind(model, [*before, *score.tokens]), -1)
            rows = range(len(before) - 1, len(before) - 1 + len(score.tokens))
            expected = [float(logp[row, token]) for row, token in zip(rows, score.tokens, strict=True)]
            assert score.logprobs == pytest.approx(expected, abs=1e-4)
            assert score.total == pytest.approx(sum(expected), abs=1e-3)
        text = root.think(GREEDY).thought.text
        root.truncate(len(before)).think(GREEDY)
        assert root.thought.text == text
    assert engine.cache.used_pages == 0


@pytest.mark.parametrize("keep", [False, True])
def test_stop_strings_are_cut_or_kept(engine, keep):
    with engine.thread(PROMPT) as root:
        whole = root.think(GREEDY).thought.text
        root.truncate(root.thought.start)
        stop = whole[5:7]
        end = whole.index(stop)
        root.think(SamplingParams(temperature=0.0, max_tokens=12, stop=("never", stop)), keep_stop=keep)
        assert root.finish == "stop"
        assert root.text == root.thought.text == whole[: end + 2 * keep]
        rest = root.think(GREEDY).text
        assert rest.startswith(whole[: end + 2 * keep])


def test_a_token_that_crosses_a_stop_string_is_encoded_again():
    model, tok = tm.organizer()  # its tags are single tokens
    engine = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=100)
    with engine.thread(":") as root:
        root.think(SamplingParams(temperature=0.0, max_tokens=4, stop=("TURN",)))
        assert (root.text, root.finish) == ("<RE", "stop")
        assert root.tokens[root.begin :] == [tok.convert_tokens_to_ids(c) for c in "<RE"]
        assert root.logprobs == [None] * len(root) and root.thought.logprobs == ()


GUIDES = {
    "regex": ("[0-9]{2,4}x", re.compile("[0-9]{2,4}x").fullmatch),
    "choices": (["yes", "no", "yesterday"], ["yes", "no", "yesterday"].__contains__),
    "json_schema": (
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
        lambda text: isinstance(json.loads(text)["a"], bool),
    ),
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guided_thought_is_what_the_guide_allows(engine, model, name):
    guide, fits = GUIDES[name]
    with engine.thread(PROMPT) as root:
        drafts = root.fork(6)
        engine.think(drafts, SamplingParams(seed=1, max_tokens=60), **{name: guide})
        for draft in drafts:
            assert draft.finish == ("end" if fits(draft.text) else None), draft.text
        first = drafts[0]
        if name == "choices":  # the distribution that was drawn from: over what the guide allows
            heads = engine.codec.encode([("yn", False)])
            logp = torch.log_softmax(logits_behind(model, root.tokens)[-1, heads], -1)
            assert first.thought.logprobs[0] == pytest.approx(float(logp["yn".index(first.text[0])]), abs=1e-4)
        for draft in drafts:
            draft.close()


def test_end_of_text_stays_out(model):
    bent = tm.tiny("qwen3", vocab_size=len(tokenizer()), eos_token_id=tokenizer().eos_token_id)
    with torch.no_grad():
        bent.lm_head.weight.zero_()
        bent.lm_head.weight[tokenizer().eos_token_id] = 1e-3
    engine = ForkJoinSampler(bent, tokenizer(), prompts=PROMPTS, num_pages=50)
    with engine.thread("x") as root:
        thoughts = [root.think(SamplingParams(seed=k, max_tokens=500)).thought for k in range(3)]
        assert {thought.finish for thought in thoughts} == {"end"}
        assert tokenizer().eos_token_id not in root.tokens
        assert root.text == "".join(thought.text for thought in thoughts)


def test_other_weights_compute_all_again(engine, model):
    with engine.thread(PROMPT) as root:
        before = root.think(GREEDY).tokens
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1.5)
        try:
            assert root.write("!").think(GREEDY).tokens[-12:] == greedy(model, root.tokens[:-12], 12)
        finally:
            with torch.no_grad():
                model.model.embed_tokens.weight.div_(1.5)
        assert root.tokens[: len(before)] == before


def test_messages_are_rendered_as_the_chat_template_does():
    from toy_tokenizers import CHATML, byte_level

    tok = byte_level(CHATML)
    model = tm.tiny("qwen3", vocab_size=len(tok), eos_token_id=None)
    engine = ForkJoinSampler(model, tok, num_pages=100)
    user = {"role": "user", "content": "hello <|end|>"}
    with engine.thread([user]) as root:
        assert engine.codec.decode(root.tokens) == "<|start|>user\nhello <|end|><|end|>\n<|start|>assistant\n"
        assert root.tokens.count(tok.convert_tokens_to_ids("<|end|>")) == 1, "user text is no control token"
        root.write([{"role": "user", "content": "go on"}])
        assert root.text == "<|end|>\n<|start|>user\ngo on<|end|>\n<|start|>assistant\n"
        whole = tok.apply_chat_template(
            [user, {"role": "assistant", "content": ""}, {"role": "user", "content": "go on"}],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        assert engine.codec.decode(root.tokens) == whole
        assert isinstance(root, Thread)


@pytest.mark.slow
@pytest.mark.skipif(real_model() is None, reason="the model's folder is not there")
def test_a_real_model_writes_what_generate_gives():
    engine = ForkJoinSampler(real_model(), device="cpu", dtype="float32", num_pages=200)
    user = {"role": "user", "content": "Name a river in Europe, and the sea that it flows into."}
    with engine.thread([user]) as root:
        ids = engine.tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
        assert root.tokens == ids
        one, two = root.fork(2)
        two.write("The Danube")
        engine.think([one, two], SamplingParams(temperature=0.0, max_tokens=24))
        for thread in (one, two):
            before = thread.tokens[: thread.thought.start]
            expected = greedy(engine.decoder.model, before, 24)
            assert thread.tokens[len(before) :] == expected[: len(thread.thought.logprobs)]
            assert len(thread.thought.logprobs) == 24 or expected[len(thread.thought.logprobs)] in engine.codec.stop_ids
        one.close(), two.close()
        root.think(SamplingParams(seed=1), choices=["Danube", "Rhine"])
        assert root.text in ("Danube", "Rhine")
