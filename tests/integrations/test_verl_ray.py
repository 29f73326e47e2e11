"""The agent loop in verl's Ray actors, from the manager to the rows in the trainer's queue. In verl's environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("verl", reason="runs in verl's environment: docs/verl.md")

import ray
import transfer_queue
from omegaconf import OmegaConf
from test_verl_loop import Sessions, codec, config, data_row, solved, wrong
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=False)
    try:
        transfer_queue.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
        yield
    finally:
        ray.shutdown()


def test_two_prompts_through_two_workers(cluster: None) -> None:
    made = config("actor_rollout_ref.rollout.agent.num_workers=2", "actor_rollout_ref.rollout.n=2")
    servers = Sessions(codec(), [solved(7) + solved(8), wrong(7) + wrong(8)])
    manager = AgentLoopManagerTQ.create(config=made, llm_client=servers)
    manager.generate_sequences(list_of_dict_to_tensordict([data_row(7), data_row(8)]))
    uids, tags = ["puzzle7", "puzzle8"], dict[str, dict[str, object]]()
    while not all(tags.get(uid, {}).get("status") in ("finished", "failure") for uid in uids):  # or the time limit
        tags = transfer_queue.kv_list("train").get("train", {})
    assert [tags[uid]["status"] for uid in uids] == ["finished"] * 2
    keys = sorted(key for key in tags if key not in uids)
    assert sorted({key.rpartition("_")[0] for key in keys}) == ["puzzle7_0", "puzzle7_1", "puzzle8_0", "puzzle8_1"]
    rows = transfer_queue.kv_batch_get(keys, "train", select_fields=["rm_scores", "extra_fields"])
    scores = rows["rm_scores"].to_padded_tensor(0.0).sum(1).tolist()
    for uid in uids:
        of_sessions = [
            {round(s, 4) for k, s in zip(keys, scores, strict=True) if k.startswith(f"{uid}_{n}_")} for n in (0, 1)
        ]
        assert sorted(len(of_session) for of_session in of_sessions) == [1, 1], "one score an episode"
        assert of_sessions[0] != of_sessions[1]
