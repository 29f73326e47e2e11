"""What trainers call: pause, new weights, resume; and the limits of it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny_models as tm
from asyncthink import ForkJoinSampler
from asyncthink.serve.settings import Settings
from scripted import PROMPTS
from served import served

TELL = Settings("tiny", weight_updates=True)
PROMPT = {"prompt": "O:q\n", "max_tokens": 6, "temperature": 0}


def test_new_weights_count_from_the_next_step_on(tmp_path: Path) -> None:
    model, tok = tm.organizer()
    other, _ = tm.organizer()
    with torch.no_grad():
        other.lm_head.weight.copy_(-other.lm_head.weight)
    save_file({"lm_head.weight": other.lm_head.weight.detach().clone()}, tmp_path / "new.safetensors")
    with served(ForkJoinSampler(other, tok, prompts=PROMPTS, num_pages=64)) as fresh:
        expected = fresh.post("/v1/completions", **PROMPT).json()["choices"][0]["text"]
    with served(ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=64), TELL) as server:
        assert server.client.get("/get_world_size").json() == {"world_size": 1}
        info = server.client.get("/server_info").json()
        assert info["weight_updates"] and info["explain"]["device"]
        before = server.post("/v1/completions", **PROMPT).json()["choices"][0]["text"]
        assert before != expected
        assert server.client.post("/pause?mode=keep").json()["status"] == "paused"
        answers: list[str] = []

        def ask() -> None:
            answers.append(server.post("/v1/completions", **PROMPT).json()["choices"][0]["text"])

        asking = threading.Thread(target=ask)
        asking.start()
        while not server.engine.stats().waiting:
            pass
        assert server.post("/start_weight_update").status_code == 200
        told = server.post("/update_weights", path=str(tmp_path / "new.safetensors"))
        assert told.json() == {"status": "updated", "tensors": 1}
        assert server.post("/finish_weight_update").status_code == 200 and not answers
        assert server.post("/resume").json() == {"status": "resumed"}
        asking.join()
        assert answers == [expected]
        assert server.client.post("/pause?mode=abort").status_code == 422
        assert server.post("/init_weight_transfer_engine").status_code == 501


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"nothing": torch.zeros(2)}, "path: expected names of the model's parameters, got 'nothing'"),
        ({"lm_head.weight": torch.zeros(2)}, "lm_head.weight: expected (124, 48), got (2,)"),
        ({"lm_head.weight": torch.full((124, 48), torch.nan)}, "lm_head.weight: expected finite values"),
        (None, "path: expected a safetensors file, got"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor] | None, message: str) -> None:
    model, tok = tm.organizer()
    path = tmp_path / "new.safetensors"
    if tensors is None:
        path.write_text("no tensors")
    else:
        shape = model.lm_head.weight.shape
        save_file({k: v.new_full(shape, torch.nan) if v.ndim == 2 else v for k, v in tensors.items()}, path)
        message = message.replace("(124, 48)", str(tuple(shape)))
    with served(ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=64), TELL) as server:
        kept = model.lm_head.weight.detach().clone()
        answer = server.post("/update_weights", path=str(path))
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
        assert torch.equal(model.lm_head.weight, kept)


def test_no_weights_change_unless_allowed() -> None:
    model, tok = tm.organizer()
    with served(ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=64)) as server:
        for path in ("/pause", "/resume", "/start_weight_update", "/finish_weight_update"):
            answer = server.post(path)
            assert answer.status_code == 501 and "--allow-weight-updates" in answer.json()["error"]["message"]
