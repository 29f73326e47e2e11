"""What `sample` draws with, in torch and plain integers: the weights of tokens and the random bits.

The formulas of csrc/common/sample_draw.h and philox.h. Every float operation is rounded on its own, so the weights are
the same integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The weight of a most likely token.
ONE = 2**40
_LOG2_E = float.fromhex("0x1.715476p+0")
_LN2 = (float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cp-20"))  # n times the first is exact
_ROUND = 1.5 * 2.0**23  # a float32 plus this is rounded to an integer
_EXP = ("0x1.6a22dp-10", "0x1.123abap-7", "0x1.5558f6p-5", "0x1.55549p-3", "0x1.fffffcp-2")
_POLYNOMIAL = tuple(float.fromhex(digits) for digits in _EXP)  # (e^r - 1 - r) / r^2 for |r| < 0.347
_MASK = 2**32 - 1


def weights(logits: Tensor, peak: Tensor, temperature: Tensor) -> Tensor:
    """trunc(2**40 exp((logits - peak) / temperature)) as int64; logits [V], peak and temperature [1] float32."""
    y = (peak - logits) / temperature
    y = torch.where(y < 29, y, 29.0)
    n = (y * _LOG2_E + _ROUND) - _ROUND
    r = (n * _LN2[0] - y) + n * _LN2[1]  # e^-y = 2^-n e^r
    q = torch.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        q = q * r + coefficient
    power = (r + r * r * q) + 1
    return ((power * 2.0**24).long() << 16) >> n.long()


def random_bits(seed: int, agent: int, position: int) -> int:
    """53 bits of Philox-4x32-10: key ``seed``, counter (position, agent); upper halves in its last two words."""
    c = [position & _MASK, agent & _MASK, position >> 32 & _MASK, agent >> 32 & _MASK]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ key[0], second & _MASK, first >> 32 ^ c[3] ^ key[1], first & _MASK]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return c[0] << 21 ^ c[1] >> 11
