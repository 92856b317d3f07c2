"""Synthetic tasks. An item is a pure function of (seed, split, index): training never repeats one, evaluation always sees the same."""

import math
import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from zoo.data.base import Address, Batch, Data, choice, send, whole
from zoo.data.hashing import uniform

TRAIN, VALID, TEST = range(3)  # take the place of the epoch among what the random numbers depend on


def adding(seed: int = 0, form: Literal["modern", "1997"] = "modern", length: int = 100, valid: int = 1000, test: int = 2560) -> Data:
    """The adding problem: report, at the end of a long sequence of (value, marker) pairs, the sum of the two marked values.

    "1997" (Hochreiter and Schmidhuber, experiment 4): values in [-1, 1]; the length is random from T to T + T/10; one of the first 10
    pairs and another of the first T/2 are marked by 1, the first and the last pair by -1; the target is 0.5 + sum / 4. A first pair that
    is drawn to be marked keeps its -1 and so counts as zero, as X_1 does in the paper. Always answering 0.5 has an MSE of about 1/24.

    "modern" (as in Arjovsky et al. 2016, arXiv:1511.06464): values in [0, 1], T pairs, one marked in each half, the target is the sum.
    Always answering 1 has an MSE of 1/6.

    Args:
        seed: of the training sequences; those of `valid` and `test`, so many items each, are always the same.
        length: T.
    """
    draw = {"modern": modern, "1997": original}[choice("data.form", form, ("modern", "1997"))]
    whole("data.length", length, 20)
    return Data(
        train=Adding(draw, length, seed, TRAIN, sys.maxsize),  # as good as endless
        valid=Adding(draw, length, 0, VALID, whole("data.valid", valid, 1)),
        test=Adding(draw, length, 0, TEST, whole("data.test", test, 1)),
        facts={},
    )


class Adding:
    """A split of the adding problem; batch: {"inputs" (B, T, 2), "target" (B,), "length" (B,)}, padded with zeros after the length."""

    workers = 0

    def __init__(self, draw: Callable[..., tuple[Tensor, Tensor, Tensor]], length: int, seed: int, split: int, items: int):
        self.draw, self.length, self.seed, self.split, self.items = draw, length, seed, split, items
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.items

    def to(self, device: torch.device) -> "Adding":
        self.device = device
        return self

    def plan(self, batch_size: int) -> "Endless":
        return Endless(batch_size)

    def fetch(self, address: Address) -> Batch:
        index = address["index"]
        inputs, target, length = self.draw(self.seed, torch.full_like(index, self.split), index, self.length)
        dtype = torch.get_default_dtype()
        batch = {"inputs": inputs.to(dtype), "target": target.to(dtype), "length": length}
        return {name: send(value, self.device) for name, value in batch.items()}

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """At least 256 sequences side by side: they are small, and training may take them one by one."""
        return [[{"index": index}] for index in torch.arange(self.items).split(max(batch_size, 256))]


class Endless:
    """New items in every batch: there is no epoch."""

    batches_per_epoch = math.inf

    def __init__(self, batch_size: int):
        self.batch_size = whole("data.batch_size", batch_size, 1)

    def batch(self, number: int) -> Address:
        return {"index": torch.arange(number * self.batch_size, (number + 1) * self.batch_size)}


def modern(seed: int, split: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> inputs (n, T, 2), target (n,), length (n,)."""
    u = uniform(seed, split, index, length + 2)
    values, half = u[:, :length], length // 2
    first = (u[:, -2] * half).long()
    second = half + (u[:, -1] * (length - half)).long()
    markers = torch.zeros_like(values).scatter(1, torch.stack([first, second], dim=1), 1.0)
    return torch.stack([values, markers], dim=-1), (values * markers).sum(1), torch.full_like(index, length)


def original(seed: int, split: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> inputs (n, T + T/10, 2), target (n,), length (n,)."""
    longest, rows = length + length // 10, torch.arange(len(index))
    u = uniform(seed, split, index, longest + 3)
    values = 2 * u[:, :longest] - 1
    lengths = length + (u[:, -3] * (longest - length + 1)).long()
    first = (u[:, -2] * 10).long()
    second = (u[:, -1] * (length // 2 - 1)).long()
    second += second >= first  # among the pairs that are still unmarked
    markers = torch.zeros_like(values).scatter(1, torch.stack([first, second], dim=1), 1.0)
    markers[:, 0] = -1
    markers[rows, lengths - 1] = -1
    target = 0.5 + (values * (markers == 1)).sum(1) / 4
    inside = torch.arange(longest) < lengths[:, None]
    return torch.stack([values, markers], dim=-1) * inside[..., None], target, lengths
