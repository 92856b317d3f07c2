"""Random numbers as a function: each depends on (seed, epoch, item) alone, never on what was drawn before.

So the order of the items and their augmentation are the same for any batch size, number of ranks, worker processes and device, and a
run can be resumed at any step. The mixing function is the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014, figure 13).
"""

from functools import cache

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15  # the odd integer nearest to 2^64 / golden ratio
WORD = 2**64 - 1

# What the numbers are for. Different purposes are independent of each other.
AUGMENT, ORDER, PHASE, MIX = range(4)


def uniform(seed: int, epoch: Tensor, index: Tensor, slots: int, purpose: int = AUGMENT) -> Tensor:
    """`slots` numbers in [0, 1) for each item: (n,) int64 epochs and indices -> (n, slots) float64, the same on every device."""
    return _shift(bits(seed, epoch, index, slots, purpose), 11).double() * 2.0**-53


def bits(seed: int, epoch: Tensor, index: Tensor, slots: int, purpose: int = AUGMENT) -> Tensor:
    """As `uniform`, but all 64 bits of each number, as int64."""
    state = _mix(_mix(_start(seed, purpose), epoch), index)
    return _mix(state[:, None], torch.arange(slots, device=index.device))


def _mix(state: int | Tensor, value: Tensor) -> Tensor:
    """Absorbs a value: finalise(state + GAMMA (value + 1)), modulo 2^64, which is what int64 arithmetic does."""
    z = state + _signed(GAMMA) * (value + 1)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> by) & (WORD >> by)


@cache
def _start(seed: int, purpose: int) -> int:
    zero = torch.zeros((), dtype=torch.int64)
    return int(_mix(_mix(0, zero + purpose), zero + _signed(seed & WORD)))


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    return word - 2**64 if word >> 63 else word
