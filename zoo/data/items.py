"""A split of any map-style torch data set, for data of one's own: `dataset[i]` is a dict of tensors or numbers."""

import random
from collections.abc import Mapping, Sized
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from zoo.data.base import Address, Batch, Shuffled, send, whole
from zoo.data.hashing import bits


class Dataset(Sized, Protocol):
    """What is asked of a data set."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Items:
    """A split of such items, read one by one, by worker processes where `workers` is above 0.

    In training an item may draw random numbers, by torch, numpy or `random`: each item's depend on (seed, epoch, item) alone, so that neither
    workers nor resuming change them. In evaluation no epoch is known, and they are the same each time.

    Args:
        dataset: items 0, 1, ..., len - 1, each a dict of tensors or numbers, of equal shapes in all items.
        seed: of the order of training and of what the items draw.
    """

    def __init__(self, dataset: Dataset, seed: int = 0, workers: int = 0):
        self.dataset, self.seed, self.workers = dataset, seed, whole("data.workers", workers, 0)
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device) -> Self:
        self.device = device
        return self

    def plan(self, batch_size: int) -> Shuffled:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """The last batch may be smaller."""
        return [[{"index": index}] for index in torch.arange(len(self)).split(whole("data.batch_size", batch_size, 1))]

    def load(self, address: Address) -> Batch:
        """On the CPU; with `index`, the numbers of the items."""
        index = address["index"]
        seeds = bits(self.seed, address.get("epoch", torch.full_like(index, -1)), index, 1)[:, 0]
        generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            items = default_collate([self._item(*pair) for pair in zip(index.tolist(), seeds.tolist())])
            return {**items, "index": index}
        finally:  # those of the run stay as they were
            random.setstate(generators[0])
            np.random.set_state(generators[1])
            torch.set_rng_state(generators[2])

    def _item(self, index: int, seed: int) -> Mapping[str, Any]:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        return self.dataset[index]

    def finish(self, batch: Mapping[str, Tensor]) -> Batch:
        """Floating-point numbers in the precision of the run."""
        dtype = torch.get_default_dtype()
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}

    def fetch(self, address: Address) -> Batch:
        return self.finish({name: send(value, self.device) for name, value in self.load(address).items()})
