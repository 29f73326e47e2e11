"""One fork-join episode end to end, and what of a step is neither linear layer nor attention.

`pytest bench/bench_fork_join.py --benchmark` runs a model of random weights (bfloat16) in the shape of Qwen3-0.6B, on a
GPU in that of Qwen3-4B, whose decode steps are CUDA graphs: a prompt of 512 tokens, an organizer and 4 workers of 64
forced tokens each, 4 joins. Without the flag a tiny model of the same kind runs the same episode and only its records
are checked. On a GPU an episode before the timed one captures the graphs.

llama.cpp (the extra `[peers]`) runs the same episode beside ours: same weights and tokens, an agent a sequence, a fork
a sequence copy, exact joins. Its K and V are float16. Without the flag its logits must be ours.

Outside of the model's forward pass lie scheduling, planning, drawing, parsing and records. The goal is 5% of a step.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from asyncthink import ForkJoinSampler, PromptFormat, SamplingParams
from asyncthink.engine.agent import Agent
from asyncthink.engine.prompting import texts_for
from asyncthink.engine.run import EpisodeRun
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.records import Episode
from contest import CLOCK, DEVICE

WORKERS, TOKENS = 4, 64
PROMPTS = PromptFormat(
    organizer="{question}", worker_shared="work:", worker_isolated="work:{subquery}", solo="{question}"
)
TAGS = [f"<{close}{name}-{i}>" for name in ("FORK", "JOIN") for close in ("", "/") for i in range(1, WORKERS + 1)]
TAGS += ["<ANSWER>", "</ANSWER>", "<RETURN>", "</RETURN>"]
THINK = "think so " * 16
ORGANIZER = "".join(f"<FORK-{i}>part {i}</FORK-{i}>" for i in range(1, WORKERS + 1)) + THINK
ORGANIZER += "".join(f"<JOIN-{i}>" for i in range(1, WORKERS + 1)) + "<ANSWER>done</ANSWER>"
WORKER = f"<RETURN>{'result! ' * (TOKENS // 2 - 2)}</RETURN>"


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a tag, a word or a character, filled up to a real vocabulary's size."""
    words = [*TAGS, *["think", "so", "part", "done", "result!", "work:", "word"], " ", *map(str, range(10))]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    vocabulary |= {f"unused{k}": k for k in range(len(vocabulary), size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="word"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?[A-Z]+(-\d)?>|\d| |[a-z:!]+"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class ForcedSampler(ForkJoinSampler):
    """Draws as always, then takes the script's token instead; keeps the time of each part of a step.

    Where it is not timed it keeps the logits, too.
    """

    def script(self, timed: bool) -> None:
        self.timed = timed
        texts = {"organizer": ORGANIZER, "worker": WORKER}
        self.forced = {role: self.codec.encode([(text, True)]) for role, text in texts.items()}
        self.kept: dict[tuple[int, int], Tensor] = {}  # by agent and position
        self.count()
        self._forward = self.decoder.forward
        self.decoder.forward = self._timed  # type: ignore[method-assign]
        self._step = self.engine.step
        self.engine.step = self._timed_step  # type: ignore[method-assign]

    def count(self) -> None:
        """From nothing."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0

    def _timed(self, *args: object) -> Tensor:
        start = time.perf_counter()
        logits = self._forward(*args)  # type: ignore[arg-type]
        CLOCK.synchronize()
        self.seconds["forward"] += time.perf_counter() - start
        return logits

    def _timed_step(self) -> int:
        start = time.perf_counter()
        rows = self._step()
        self.seconds["step"] += time.perf_counter() - start
        self.steps += 1
        return rows

    def _draw(self, logits: Tensor, runs: Sequence[EpisodeRun], agents: Sequence[Agent]) -> list[tuple[int, float]]:
        if not self.timed:
            for agent, row in zip(agents, logits, strict=True):
                self.kept[agent.trace.agent, agent.trace.decoded] = row
        start = time.perf_counter()
        drawn = super()._draw(logits, runs, agents)
        self.seconds["draw"] += time.perf_counter() - start
        return [
            (self.forced[agent.trace.role][agent.trace.decoded], logprob)
            for agent, (_, logprob) in zip(agents, drawn, strict=True)
        ]


SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "Qwen3-0.6B": {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    "Qwen3-4B": {"vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}  # fmt: skip


@pytest.fixture(scope="module")
def shape(request: pytest.FixtureRequest) -> str:
    if not request.config.getoption("--benchmark"):
        return "tiny"
    return "Qwen3-4B" if DEVICE.type == "cuda" else "Qwen3-0.6B"


@pytest.fixture(scope="module")
def model(shape: str) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.set_default_dtype(torch.float32 if shape == "tiny" else torch.bfloat16)
    try:
        with DEVICE:
            return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


QUESTION = "word " * 256


def made(model: Qwen3ForCausalLM, join: str, timed: bool) -> ForcedSampler:
    tokenizer = word_tokenizer(model.config.vocab_size)
    sampler = ForcedSampler(model, tokenizer, prompts=PROMPTS, pool=WORKERS + 1, join=join, num_pages=512)
    sampler.script(timed)
    return sampler


def median_step(episode: Episode) -> float:
    """Milliseconds; prompt and joins, whose steps are long, do not weigh."""
    return 1e3 * statistics.median(after - before for before, after in itertools.pairwise(episode.step_times))


def checked(episode: Episode) -> Episode:
    assert episode.answer == "done"
    assert episode.format_errors == []
    assert (episode.forks, episode.joins) == (WORKERS, WORKERS)
    return episode


@pytest.mark.quick(join=["append"])
@pytest.mark.parametrize("join", ["exact", "append", "link"])
def test_episode(benchmark, table, model, shape, join):
    sampler = made(model, join, benchmark.enabled)

    def run() -> None:
        sampler.count()
        (episode,) = sampler.generate([QUESTION], SamplingParams(temperature=1.0))
        sampler.episode = checked(episode)

    benchmark.pedantic(run, rounds=1, iterations=1, warmup_rounds=int(DEVICE.type == "cuda"))
    seconds, episode = sampler.seconds, sampler.episode
    outside = seconds["step"] - seconds["forward"]
    figures = {
        "model": shape,
        "join": join,
        "CUDA graphs": "yes" if DEVICE.type == "cuda" and sampler.decoder.graphs is not None else "no",
        "episode s": seconds["step"],
        "steps": sampler.steps,
        "tokens": episode.total_tokens,
        "critical path": episode.critical_path_tokens,
        "step ms": 1e3 * seconds["step"] / sampler.steps,
        "median step ms": median_step(episode),
        "outside the model ms": 1e3 * outside / sampler.steps,
        "outside the model %": 100 * outside / seconds["step"],
        "of which drawing %": 100 * seconds["draw"] / seconds["step"],
        "K/V bytes shared": episode.kv_bytes_shared,
        "K/V bytes copied": episode.kv_bytes_copied,
    }
    benchmark.extra_info |= figures
    if benchmark.enabled:
        table.add(figures)


def test_episode_in_llama_cpp(benchmark, table, model, engines, tmp_path: Path):
    if "llama.cpp" not in engines:
        pytest.skip('llama.cpp: not asked for, or not installed (pip install -e ".[peers]")')
    from engines.llama_cpp_episode import LlamaCppEpisode, forced
    from engines.llama_cpp_wheel import LlamaCppWheel
    from gguf_files import write_gguf

    sampler, kept = made(model, "exact", timed=False), dict[tuple[int, int], Tensor]()
    request = sampler.request(QUESTION, SamplingParams(temperature=1.0))
    path, wide = tmp_path / "model.gguf", not benchmark.enabled
    write_gguf(model, path, "F32" if wide else "BF16")
    engine = LlamaCppWheel(path, 2048, model.config.vocab_size, wide=wide)
    path.unlink()  # it stays mapped
    peer, draw = LlamaCppEpisode(engine), forced(sampler.forced, None if benchmark.enabled else kept)

    def core() -> EpisodeCore:
        texts = texts_for(sampler.codec, PROMPTS)
        return EpisodeCore(QUESTION, request.prompt, request.params, request.options, texts, max_length=2048)

    def run() -> float:
        begun = time.perf_counter()
        peer.episode = checked(peer.run(core(), draw))
        return time.perf_counter() - begun

    try:
        seconds = benchmark.pedantic(run, rounds=1, iterations=1, warmup_rounds=0)
    finally:
        engine.close()
    if not benchmark.enabled:
        (ours,) = sampler.generate([QUESTION], request.params)
        assert [trace.tokens for trace in checked(ours).traces] == [trace.tokens for trace in peer.episode.traces]
        assert kept.keys() == sampler.kept.keys()
        for place, logits in kept.items():
            torch.testing.assert_close(logits, sampler.kept[place], rtol=1e-4, atol=1e-4)
        return
    table.add({
        "join": "llama.cpp, exact", "steps": peer.steps, "tokens": peer.episode.total_tokens,
        "critical path": peer.episode.critical_path_tokens, "episode s": seconds, "step ms": 1e3 * seconds / peer.steps,
        "median step ms": median_step(peer.episode),
    })  # fmt: skip
    table.note(engine.note)
