"""What a fork copies: the recurrent state of each causal-LM type, at the size of the type's default config.

``python bench/state_bytes.py [TYPE ...]`` prints a table. Models are made of torch's fake tensors, so nothing is
computed: the layers of transformers' own cache give the shapes. Experts are made few, as they have no state.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asyncthink.model.hook import HookedModel
from asyncthink.model.recurrent import StateLayout, has_states

FEW = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
       "num_experts_per_token": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1}  # fmt: skip


def default_config(kind: str) -> PreTrainedConfig:
    config = AutoConfig.for_model(kind)
    for part in (config, config.get_text_config(decoder=True)):
        for name, few in FEW.items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, few)
    return config


def row(kind: str) -> str | None:
    """The table's line; None for a type without recurrent layers in transformers' cache."""
    config = default_config(kind)
    if not has_states(SimpleNamespace(config=config)):
        return None
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        layout = StateLayout(HookedModel(model), kind)
    states = len({key.layer for key in layout.shapes})
    kinds = sorted({key.kind for key in layout.shapes})
    cells = (f"`{kind}`", f"{states} of {len(layout.cache())}", layout.attention_layers, " and ".join(kinds))
    return f"| {' | '.join(map(str, cells))} | {layout.bytes_per_state:,} |"


def main() -> None:
    print("| type | layers with a state | attention layers | state | bytes in bfloat16 |\n|---|---|---|---|---|")
    for kind in sys.argv[1:] or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            line = row(kind)
        except Exception as error:  # one type must not end the table
            print(f"{kind}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}", file=sys.stderr)
        else:
            if line is not None:
                print(line, flush=True)


if __name__ == "__main__":
    main()
