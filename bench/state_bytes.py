"""What a fork copies: the recurrent state of each causal-LM type, at the size of the type's default config.

``python bench/state_bytes.py [TYPE ...]`` prints a table. Models are made on torch's meta device, so nothing is
computed: the layers of transformers' own cache give the shapes. Experts are made few, as they have no state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asyncthink.model.hook import HookedModel
from asyncthink.model.recurrent import StateLayout, has_states

FEW = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
       "num_experts_per_token": 2, "n_group": 1, "topk_group": 1, "num_expert_group": 1}  # fmt: skip


def configs(kinds: list[str]) -> Iterator[tuple[str, PreTrainedConfig]]:
    for kind in kinds:
        default = AutoConfig.for_model(kind)
        for part in (default, default.get_text_config(decoder=True)):
            for name, few in FEW.items():
                if isinstance(getattr(part, name, None), int):
                    setattr(part, name, few)
        yield kind, default


def row(kind: str, config: PreTrainedConfig) -> str | None:
    """The table's line; None for a type without recurrent layers in transformers' cache."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    if not has_states(model):
        return None
    layout = StateLayout(HookedModel(model), kind)
    states = len({key.layer for key in layout.shapes})
    kinds = sorted({key.kind for key in layout.shapes})
    cells = (f"`{kind}`", f"{states} of {len(layout.cache())}", layout.attention_layers, " and ".join(kinds))
    return f"| {' | '.join(map(str, cells))} | {layout.bytes_per_state:,} |"


def main() -> None:
    print("| type | layers with a state | attention layers | state | bytes in bfloat16 |\n|---|---|---|---|---|")
    for kind, config in configs(sys.argv[1:] or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        try:
            line = row(kind, config)
        except Exception as error:  # one type must not end the table
            first = str(error).strip().splitlines() or [type(error).__name__]
            line = None if not sys.argv[1:] and "states" not in first[0] else f"| `{kind}` | {first[0][:120]} | | | |"
        if line is not None:
            print(line, flush=True)


if __name__ == "__main__":
    main()
