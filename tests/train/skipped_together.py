"""Two processes, in each of which one gradient is NaN in turn. Run by torchrun: skipped_together.py OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from asyncthink.model.files import device_for
from asyncthink.train.distributed import World, gradients
from asyncthink.train.steps import Steps


def made(max_skipped: int = 5) -> tuple[nn.Parameter, torch.optim.AdamW, Steps]:
    """A weight with momentum and weight decay, after one step."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    adam = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    steps = Steps(adam, 1.0, max_skipped)
    give(weight, 0.3, 0.1)
    steps.take(1.0)
    return weight, adam, steps


def give(weight: nn.Parameter, *values: float) -> None:
    weight.grad = torch.tensor(values)


def state(weight: nn.Parameter, adam: torch.optim.AdamW) -> list[Tensor]:
    """The weight and all that the optimizer holds of it."""
    return [weight.detach().clone(), *(value.clone() for value in adam.state[weight].values())]


def main(out: Path) -> None:
    with World.start(device_for("cpu")) as world:
        weight, adam, steps = made()
        for culprit in (0, 1):
            give(weight, float("nan") if world.rank == culprit else 0.1, 0.1)
            world.sum_(gradients([weight]))
            steps.take(1.0)
        give(weight, 0.1, 0.1)
        world.sum_(gradients([weight]))
        steps.take(1.0)
        seen = {"left_out": repr(steps.left_out), "state": [each.tolist() for each in state(weight, adam)]}
        (out / f"{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
