"""What a client of a server needs: neither torch nor transformers, and tokenizers from files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import toy_tokenizers
from asyncthink import checkpoint_path
from asyncthink.engine.remote.tokenizer import FolderTokenizer, model_folder
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat

BLOCKED = """
import sys

class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "triton", "asyncthink_kernels"):
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Blocks())
"""

EPISODE = """
import asyncio
from asyncthink import Options, checkpoint_path
from asyncthink.engine.prompting import Prompter
from asyncthink.engine.remote import sampler
from asyncthink.engine.remote.driver import Driver
from asyncthink.engine.remote.tokenizer import FolderTokenizer
from asyncthink.engine.remote.transport import Chunk
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat

folder = checkpoint_path("countdown")
tokenizer = FolderTokenizer(folder)
codec, options = Codec(tokenizer, tokenizer.stop_ids), Options(context="isolated")
prompter = Prompter(tokenizer, codec, PromptFormat.load(folder), own=True, guide="off")

class Says:
    streams = True
    async def draw(self, ask):
        said = "<RETURN>3</RETURN>" if ask.agent else "<FORK-1>9</FORK-1><JOIN-1>"
        said = "<ANSWER>12</ANSWER>" if ask.position > 3 else said
        for token in codec.encode([(said, True)]):
            yield Chunk([token], [-1.0])

tokens = prompter.tokens("12 from 3 4", "question", options)
core = EpisodeCore("12 from 3 4", tokens, SamplingParams(), options, prompter.texts(options))
episode = asyncio.run(Driver(core, Says()).run())
assert (episode.answer, episode.joins, episode.format_errors) == ("12", 1, []), episode
"""


def test_an_episode_without_torch_and_transformers() -> None:
    """In a process where nothing can import them."""
    python = Path(__file__).parents[3] / "python"
    ran = subprocess.run([sys.executable, "-c", BLOCKED + EPISODE], cwd=python, check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()


CHAT = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "  {%- if loop.index > 9 %}{% break %}{% endif %}\n"
    "{% generation %}<|{{ m['role'] }}|>{{ m['content'] }}{% endgeneration %}\n{% endfor %}"
    "{{ bos_token }}{% if add_generation_prompt %}<|assistant|>{% endif %}{{ enable_thinking }}"
    "{{ {'k': ['é<', 1]} | tojson }}"
)


@pytest.fixture(params=["chat_template.jinja", "tokenizer_config.json"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A saved tokenizer, its chat template in either of its places."""
    tokenizer = toy_tokenizers.KINDS["byte-level"]()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path, save_jinja_files=request.param.endswith("jinja"))
    return tmp_path


def test_a_folder_is_read_as_transformers_reads_it(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), FolderTokenizer(folder)
    messages = [{"role": "system", "content": "Be <b>&</b> \u2028é"}, {"role": "user", "content": " hi"}]
    for generate in (True, False):
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, enable_thinking=False
        )
        assert ours.apply_chat_template(messages, add_generation_prompt=generate, enable_thinking=False) == expected
    assert (ours.eos_token, ours.eos_token_id) == (theirs.eos_token, theirs.eos_token_id)
    assert (ours.unk_token, ours.unk_token_id) == (theirs.unk_token, theirs.unk_token_id)
    text = "<FORK-1>3 + 4 é</FORK-1>" + (theirs.eos_token or "")
    assert Codec(ours).encode([(text, False)]) == Codec(theirs).encode([(text, False)])
    mine, his = prompts_for(ours), prompts_for(theirs)
    for name in ("organizer", "worker_shared", "worker_isolated", "solo"):
        assert getattr(mine, name) == getattr(his, name)
    with pytest.raises(TemplateError, match="no tools"):
        ours.apply_chat_template([{"role": "tool", "content": ""}])


def test_the_shipped_model() -> None:
    path = checkpoint_path("countdown")
    ours, theirs = FolderTokenizer(model_folder(path)), AutoTokenizer.from_pretrained(path)
    parts = PromptFormat.load(path).parts("organizer", question="24 from 3 8 2")
    assert Codec(ours, ours.stop_ids).encode(parts) == Codec(theirs, ours.stop_ids).encode(parts)
    assert len(ours) == len(theirs) and ours.stop_ids == [2, 36, 38]


def test_templates_by_name(tmp_path: Path) -> None:
    toy_tokenizers.KINDS["byte-level"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert FolderTokenizer(tmp_path).apply_chat_template([]) == "d"


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "expected a folder with tokenizer.json"), ({"tokenizer.json": "{"}, "tokenizer.json"),
     ({"tokenizer_config.json": "[]"}, "expected a JSON object, got list")],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, files: dict[str, str], says: str) -> None:
    if "tokenizer_config.json" in files:
        toy_tokenizers.KINDS["byte-level"]().save_pretrained(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        FolderTokenizer(tmp_path)


def test_a_tokenizer_without_a_template_says_so(tmp_path: Path) -> None:
    tokenizer = toy_tokenizers.KINDS["byte-level"]()
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a chat template"):
        FolderTokenizer(tmp_path).apply_chat_template([])
