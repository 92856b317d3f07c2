"""Synthetic tasks. An item is a pure function of (seed, split, index): training never repeats one, evaluation always sees the same."""

import math
import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from zoo.data.base import Address, Batch, Data, choice, send, whole
from zoo.data.hashing import uniform
from zoo.errors import ConfigError

TRAIN, VALID, TEST = range(3)  # take the place of the epoch among what the random numbers depend on


def adding(seed: int = 0, form: Literal["modern", "1997"] = "modern", length: int = 100, valid: int = 1000, test: int = 2560) -> Data:
    """The adding problem: report, at the end of a long sequence of (value, marker) pairs, the sum of the two marked values.

    "1997" (Hochreiter and Schmidhuber, experiment 4): values in [-1, 1]; the length is random from T to T + T/10; one of the first 10
    pairs and another of the first T/2 are marked by 1, the first and the last pair by -1 otherwise; the target is 0.5 + sum / 4. The value of
    a first pair that is marked is 0, as the paper has it. Always answering 0.5 has an MSE of about 1/24.

    "modern" (as in Arjovsky et al. 2016, arXiv:1511.06464): values in [0, 1], T pairs, one marked in each half, the target is the sum.
    Always answering 1 has an MSE of 1/6.

    Batch: {"inputs" (B, T, 2), "target" (B,), "length" (B,)}, padded with zeros after the length.

    Args:
        seed: of the training sequences; those of `valid` and `test`, so many items each, are always the same.
        length: T.
    """
    draw = {"modern": modern, "1997": original}[choice("data.form", form, ("modern", "1997"))]
    return pairs(draw, length, seed, valid, test)


def multiplication(seed: int = 0, length: int = 100, valid: int = 1000, test: int = 2560) -> Data:
    """The multiplication problem (Hochreiter and Schmidhuber 1997, experiment 5): `adding` of form 1997 with values in [0, 1] and the product
    of the two marked values as the target. The value of a first pair that is marked is 1. Always answering the mean, 0.28, has an MSE of 0.06.

    Batch and arguments: see `adding`.
    """
    return pairs(product, length, seed, valid, test)


def pairs(draw: Callable[..., tuple[Tensor, Tensor, Tensor]], length: int, seed: int, valid: int, test: int) -> Data:
    """Sequences of pairs. draw(seed, split, index, length) -> inputs, target, length."""
    whole("data.length", length, 20)
    return synthetic(lambda *which: dict(zip(("inputs", "target", "length"), draw(*which, length))), seed, valid, test)


def mixture_2d(seed: int = 0, modes: int = 8, radius: float = 2.0, spread: float = 0.2, valid: int = 1000, test: int = 10_000) -> Data:
    """Points of the plane: `modes` round normals with standard deviation `spread`, equally likely, evenly spaced on a circle.

    The density is 1/K sum_k N(x; c_k, spread^2 I) with c_k = radius (cos 2 pi k/K, sin 2 pi k/K), k = 0 ... K - 1. Batch: {"point" (B, 2)}.

    Args:
        seed: of the training points; those of `valid` and `test`, so many items each, are always the same.
    """
    whole("data.modes", modes, 1)
    for key, value in (("radius", radius), ("spread", spread)):
        if not value > 0:
            raise ConfigError(f"data.{key} must be a number above 0, not {value}")
    return synthetic(lambda *which: {"point": ring(*which, modes, radius, spread)}, seed, valid, test)


def synthetic(make: Callable[[int, Tensor, Tensor], Batch], seed: int, valid: int, test: int) -> Data:
    """Endless training items; `valid` and `test` of them, which don't depend on the seed. make(seed, split, index) -> a batch."""
    return Data(
        train=Synthetic(make, seed, TRAIN, sys.maxsize),  # as good as endless
        valid=Synthetic(make, 0, VALID, whole("data.valid", valid, 1)),
        test=Synthetic(make, 0, TEST, whole("data.test", test, 1)),
        facts={},
    )


class Synthetic:
    """A split of items made on the fly."""

    workers = 0

    def __init__(self, make: Callable[[int, Tensor, Tensor], Batch], seed: int, split: int, items: int):
        self.make, self.seed, self.split, self.items = make, seed, split, items
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.items

    def to(self, device: torch.device) -> "Synthetic":
        self.device = device
        return self

    def plan(self, batch_size: int) -> "Endless":
        return Endless(batch_size)

    def fetch(self, address: Address) -> Batch:
        index = address["index"]
        batch, dtype = self.make(self.seed, torch.full_like(index, self.split), index), torch.get_default_dtype()
        return {name: send(value.to(dtype) if value.is_floating_point() else value, self.device) for name, value in batch.items()}

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """At least 256 items side by side: they are small, and training may take them one by one."""
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
    u, markers, lengths = marked(seed, split, index, length)
    values = 2 * u - 1
    values[markers[:, 0] == 1, 0] = 0.0
    return padded(values, markers, lengths), 0.5 + (values * (markers == 1)).sum(1) / 4, lengths


def product(seed: int, split: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> inputs (n, T + T/10, 2), target (n,), length (n,)."""
    values, markers, lengths = marked(seed, split, index, length)
    values[markers[:, 0] == 1, 0] = 1.0
    return padded(values, markers, lengths), torch.where(markers == 1, values, 1.0).prod(1), lengths


def marked(seed: int, split: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """1997's sequences -> numbers in [0, 1) (n, T + T/10), markers of the same shape, length (n,)."""
    longest, rows = length + length // 10, torch.arange(len(index))
    u = uniform(seed, split, index, longest + 3)
    lengths = length + (u[:, -3] * (longest - length + 1)).long()
    first = (u[:, -2] * 10).long()
    second = (u[:, -1] * (length // 2 - 1)).long()
    second += second >= first  # among the pairs that are still unmarked
    markers = torch.zeros_like(u[:, :longest]).scatter(1, torch.stack([first, second], dim=1), 1.0)
    markers[:, 0] = 2 * markers[:, 0] - 1  # 1 or -1
    markers[rows, lengths - 1] = -1
    return u[:, :longest], markers, lengths


def padded(values: Tensor, markers: Tensor, lengths: Tensor) -> Tensor:
    """(n, T) each -> (n, T, 2), zeros after the length."""
    inside = torch.arange(values.shape[1]) < lengths[:, None]
    return torch.stack([values, markers], dim=-1) * inside[..., None]


def ring(seed: int, split: Tensor, index: Tensor, modes: int, radius: float, spread: float) -> Tensor:
    """-> points (n, 2)."""
    u = uniform(seed, split, index, 3)
    angle = (u[:, 0] * modes).floor() * (2 * math.pi / modes)
    normal = torch.special.ndtri(u[:, 1:] + 2.0**-54)  # 0 would become minus infinity
    return radius * torch.stack([angle.cos(), angle.sin()], 1) + spread * normal
