"""Supervised fine-tuning on cold-start traces, from random weights or any transformers decoder.

The data of step k is a pure function of (seed, k) and nothing in the loop is random, so a resumed run repeats the
uninterrupted one exactly (same thread count, same machine).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from asyncthink.chat import prompts_for
from asyncthink.protocol import PromptFormat
from asyncthink.tasks import task
from asyncthink.train.checkpoint import Progress, checkpoints, load_state, save_checkpoint, save_model
from asyncthink.train.curve import plot_curve
from asyncthink.train.evaluate import evaluate, held_out_episodes
from asyncthink.train.packing import IGNORED, Batch, logits_of, use_packed_attention
from asyncthink.train.progress import Reporter
from asyncthink.train.tokenizer import build_tokenizer
from asyncthink.train.traces import Cutter, Mixture

#: Prompts of a model trained from random weights: one token names the role.
TINY_PROMPTS = PromptFormat("<organizer>{question}\n", "<worker>\n", "<worker>{subquery}\n", "<solo>{question}\n")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 decoder from random weights."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 384


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """``steps`` batches of about ``length`` tokens. The learning rate warms up, stays flat, then falls to zero as
    1 - sqrt(progress) over the last ``decay`` of the steps. ``model`` is a folder or hub id, None for random weights
    of ``shape``. ``bfloat16``: matrices are multiplied in bfloat16, all else stays float32. ``export``: a folder that
    always holds the newest weights.
    """

    out: Path
    task: str = "countdown"
    model: str | None = None
    shape: Shape = field(default_factory=Shape)
    mixture: Mixture = field(default_factory=Mixture)
    pool: int = 4
    seed: int = 0
    steps: int = 13500
    length: int = 1200
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.3
    weight_decay: float = 0.05
    clip: float = 1.0
    evaluate_every: int = 500
    evaluate_episodes: int = 60
    save_every: int = 250
    log_every: int = 25
    threads: int = 1
    bfloat16: bool = True
    resume: bool = False
    export: Path | None = None
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 700})

    def __post_init__(self) -> None:
        for name in ("steps", "length", "evaluate_every", "evaluate_episodes", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay: expected a share in [0, 1], got {self.decay}")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        start = self.steps * (1 - self.decay)
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        done = max(0.0, (step - start) / max(1.0, self.steps - start))
        return self.learning_rate * warm * (1 - math.sqrt(done))


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 decoder with tied embeddings and seeded random weights, float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


def batch_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the tokens the agents wrote themselves."""
    return functional.cross_entropy(logits_of(model, batch)[0].float(), batch.labels[0], ignore_index=IGNORED)


def train_sft(config: SFTConfig) -> Path:
    """Run (or resume) the training; returns the folder of the last checkpoint.

    Writes ``out/config.json``, ``out/metrics.jsonl``, ``out/curve.png`` and ``out/step-N``. Raises ValueError for a
    bad configuration, for an ``out`` that already holds a run without ``resume``, and for ``resume`` without one.
    """
    found = checkpoints(config.out)
    if found and not config.resume:
        raise ValueError(f"out: {config.out} already holds a run; resume it or name another folder")
    if config.resume and not found:
        raise ValueError(f"resume: {config.out} holds no checkpoint")
    torch.set_num_threads(config.threads)
    model, tokenizer, prompts = _load(config, str(found[-1]) if found else config.model)
    use_packed_attention(model, moves=config.mixture.append > 0)
    cutter = Cutter(task(config.task), tokenizer, prompts, config.mixture, config.pool)
    optimizer = _optimizer(model, config)
    progress = load_state(found[-1], model, optimizer) if found else Progress()
    if progress.step >= config.steps:
        raise ValueError(f"steps: expected more than the {progress.step} that are done, got {config.steps}")
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n")
    return _loop(config, model, cutter, optimizer, progress)


def _load(config: SFTConfig, path: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PromptFormat]:
    if path is None:
        small = build_tokenizer()
        return random_model(config.shape, small, config.seed), small, TINY_PROMPTS
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {path!r}: {str(error).splitlines()[0]}") from None
    return model, tokenizer, prompts_for(path, tokenizer)


def _optimizer(model: PreTrainedModel, config: SFTConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _loop(
    config: SFTConfig, model: PreTrainedModel, cutter: Cutter, optimizer: torch.optim.AdamW, progress: Progress
) -> Path:
    tokenizer, prompts = cutter.tokenizer, cutter.prompts
    settings = {"task": config.task, "sampling": config.sampling}
    episodes = held_out_episodes(cutter, config.seed, config.evaluate_episodes)
    before, start = progress.seconds, time.perf_counter()
    model.train()
    folder = config.out
    with Reporter(config.out / "metrics.jsonl", config.steps, progress.step) as reporter:
        for step in range(progress.step, config.steps):
            batch = cutter.batch(config.seed, step, config.length)
            loss, norm = _update(config, model, optimizer, batch, config.rate(step))
            tokens = progress.tokens + batch.tokens.numel()
            progress = Progress(step + 1, tokens, before + time.perf_counter() - start)
            last = progress.step == config.steps
            if last or progress.step % config.log_every == 0:
                reporter.step(progress, loss.item(), norm.item(), config.rate(step))
            if last or progress.step % config.evaluate_every == 0:
                reporter.evaluation(progress, evaluate(model, episodes, tokenizer))
            if last or progress.step % config.save_every == 0:
                folder = save_checkpoint(config.out, model, tokenizer, prompts, settings, optimizer, progress)
                plot_curve(config.out / "metrics.jsonl", config.out / "curve.png")
                if config.export:
                    save_model(config.export, model, tokenizer, prompts, settings)
    return folder


def _update(
    config: SFTConfig, model: PreTrainedModel, optimizer: torch.optim.AdamW, batch: Batch, rate: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step; returns the loss before it and the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        loss = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm
