"""Training with recurrent layers: one row a trace; trainer and sampler agree; a cold start and GRPO steps run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context
from asyncthink.model.decoder import Decoder
from asyncthink.model.rotary import NotRotaryError
from asyncthink.tasks import TASKS
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.demonstrations import Mixture
from asyncthink.train.grpo import train_grpo
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import TINY_PROMPTS, ModelOptions
from asyncthink.train.logprobs import logits_of, token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, Row, pack
from asyncthink.train.rows import rows
from asyncthink.train.sft import SFTConfig, train_sft
from asyncthink.train.tokenizer import build_tokenizer
from asyncthink.train.trace_rows import STATES
from scripted import PROMPTS
from tiny_hybrids import alone, taught_hybrid, tiny_hybrid
from toy_task import Counting

LINEAR = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    TASKS["counting"] = Counting()
    yield
    del TASKS["counting"]


TREE = [
    Row("organizer", "shared", (5, 6, 7, 8, 9), (False, False, True, True, True)),
    Row("worker", "shared", (3, 9, 4), (False, True, True), parent=0, fork_at=2),
    Row("worker", "shared", (11, 12), (False, True), parent=1, fork_at=3),
]
CONTEXTS = [[5, 6, 7, 8, 9], [5, 6, 3, 9, 4], [5, 6, 3, 9, 4, 11, 12]]


@pytest.mark.parametrize("family", ["qwen3_5", "mamba2"])
def test_a_tree_gets_the_logits_and_gradients_of_its_traces(family: str) -> None:
    model = tiny_hybrid(family)
    assert STATES in (use_packed_attention(model) or "")
    batch = pack([TREE, TREE[:1]], 100)
    logits = logits_of(model, batch)[0]
    expected = [alone(model, torch.tensor(context)) for context in CONTEXTS]
    expected = [logits[-len(row.tokens) :] for logits, row in zip(expected, TREE, strict=True)]
    torch.testing.assert_close(logits, torch.cat([*expected, expected[0]]), atol=2e-4, rtol=2e-4)

    token_logprobs(model, batch).sum().backward()
    made = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for context, row in zip([*CONTEXTS, CONTEXTS[0]], [*TREE, TREE[0]], strict=True):
        logp = torch.log_softmax(model(input_ids=torch.tensor([context])).logits[0], -1)
        first = len(context) - len(row.tokens)
        sum(logp[first + k - 1, context[first + k]] for k, own in enumerate(row.learned) if own).backward()
    assert made
    for name, parameter in model.named_parameters():
        if name in made:
            torch.testing.assert_close(made[name], parameter.grad, atol=2e-4, rtol=2e-3)


def test_append_joins_are_refused() -> None:
    with pytest.raises(NotRotaryError, match="expected exact joins alone"):
        use_packed_attention(tiny_hybrid("qwen3_5"), moves=True)


@pytest.mark.parametrize(("family", "context"), [("qwen3_5", Context.SHARED), ("jamba", Context.ISOLATED)])
def test_sampler_and_trainer_agree(family: str, context: str) -> None:
    model, tok = taught_hybrid(family)
    sampler = ForkJoinSampler(Decoder(model, num_pages=2000), tok, prompts=PROMPTS, context=context)
    params = SamplingParams(temperature=0.8, max_tokens=40)
    episodes = sampler.generate(["q"] * 8, [params.with_seed(k) for k in range(8)])
    assert any(episode.forks for episode in episodes)
    use_packed_attention(model)
    batch = pack([rows(episode) for episode in episodes], 10**9)
    with torch.no_grad():
        scores = token_logprobs(model, batch, 0.8)
    traces = [trace for episode in episodes for trace in episode.traces]
    drawn = [p for trace in traces for p, own in zip(trace.logprobs, trace.sampled, strict=True) if own]
    torch.testing.assert_close(scores[batch.labels[0] != IGNORED], torch.tensor(drawn), atol=1e-4, rtol=0)


def random_hybrid(folder: Path) -> Path:
    tokenizer = build_tokenizer()
    config = AutoConfig.for_model(
        "qwen3_5_text", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, **LINEAR,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TINY_PROMPTS.save(folder)
    return folder


def train(tmp_path: Path, cold: int, steps: int) -> list[dict[str, float]]:
    """A cold start from random weights, then GRPO -> its metrics."""
    plain = ModelOptions(model=str(random_hybrid(tmp_path / "random")), bfloat16=False)
    start = train_sft(
        SFTConfig(
            out=tmp_path / "sft",
            task="counting",
            model=plain,
            mixture=Mixture(solo=0.2, shared=0.5, isolated=0.3),
            steps=cold,
            batch_tokens=400,
            learning_rate=4e-3,
            warmup=5,
            evaluate_every=1000,
            evaluate_episodes=2,
        )
    )
    train_grpo(
        GRPOConfig(
            out=tmp_path / "grpo",
            model=ModelOptions(model=str(start), bfloat16=False),
            task="counting",
            max_tokens=60,
            questions=3,
            group_size=4,
            steps=steps,
            learning_rate=5e-4,
            save_every=steps,
            rule=RewardRule(weight=1.0, threshold=0.6),
        )
    )
    lines = (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_of_both_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(train(tmp_path, cold=4, steps=1)) == 1
    assert capsys.readouterr().out.count(STATES) == 2


@pytest.mark.slow
def test_a_hybrid_learns_the_format(tmp_path: Path) -> None:
    metrics = train(tmp_path, cold=300, steps=4)
    assert len(metrics) == 4
    assert all(line["off_policy"] < 1e-4 for line in metrics)
    losses = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    falling = [line["loss"] for line in losses if "loss" in line]
    assert falling[-1] < 0.5 * falling[0]
