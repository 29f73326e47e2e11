"""``random_weights.py MODEL OUT``: a model of the same configuration and tokenizer with random weights, seed 0."""

from __future__ import annotations

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    name, out = sys.argv[1:]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(name).save_pretrained(out)


if __name__ == "__main__":
    main()
