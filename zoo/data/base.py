"""What the training loop asks of a data set, and the orders in which one can be read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zoo.data.hashing import ORDER, PHASE, bits, uniform
from zoo.errors import ConfigError

Batch = dict[str, Tensor]
Address = dict[str, Tensor]  # which items a batch consists of: small CPU tensors, items first


class Plan(Protocol):
    """The order of training: the address of each global batch."""

    batches_per_epoch: float

    def batch(self, number: int) -> Address:
        """The address of global batch `number` (0, 1, 2, ...): a pure function of (seed, number)."""
        ...


class Split(Protocol):
    """Training, validation or test items.

    A split with `workers` > 0 also has `load(address)`, which worker processes call for a batch on the CPU, and `finish(batch)`, which
    turns that batch, by then on the device, into what `fetch` returns.
    """

    workers: int

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Split":
        """Moves the data where `fetch` shall work."""
        ...

    def plan(self, batch_size: int) -> Plan: ...

    def fetch(self, address: Address) -> Batch: ...

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """Evaluation: every item exactly once, in sequences of addresses. Recurrent state goes on within a sequence, not between them."""
        ...


@dataclass
class Data:
    """A data set. The best checkpoint is chosen on `valid`, never on `test`.

    Args:
        facts: num_classes, image_size, channels, vocab_size: what the set's YAML states, as found in the data.
        decode: token ids (n, T) -> n texts.
        encode: a text -> token ids (T,).
        digest: sha256 of the text, where the source may differ between machines.
        notes: what a user should know about what was read, such as how many items were left out.
    """

    train: Split
    valid: Split | None
    test: Split | None
    facts: dict[str, int]
    classes: list[str] | None = None
    decode: Callable[[Tensor], list[str]] | None = None
    encode: Callable[[str], Tensor] | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()


class Shuffled:
    """All items in a new order each epoch; the orders follow one another without a gap, so that a batch may straddle two epochs."""

    def __init__(self, items: int, batch_size: int, seed: int):
        self.items, self.seed = items, seed
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.batches_per_epoch = items / batch_size
        self._orders: dict[int, Tensor] = {}

    def batch(self, number: int) -> Address:
        position, stop = number * self.batch_size, (number + 1) * self.batch_size
        indices, epochs, orders = [], [], {}
        while position < stop:
            epoch, first = divmod(position, self.items)
            orders[epoch] = self._orders[epoch] if epoch in self._orders else self.order(epoch)
            indices.append(orders[epoch][first : first + stop - position])
            epochs.append(torch.full_like(indices[-1], epoch))
            position += len(indices[-1])
        self._orders = orders  # those of the last batch, which the next one most likely needs
        return {"index": torch.cat(indices), "epoch": torch.cat(epochs)}

    def order(self, epoch: int) -> Tensor:
        """A permutation of the items: sorted by a random number each."""
        index = torch.arange(self.items)
        return bits(self.seed, torch.full_like(index, epoch), index, 1, ORDER)[:, 0].argsort(stable=True)


class ShuffledWindows:
    """Windows of a stream in a new order each epoch, cut at a new phase each epoch; none continues the one before."""

    def __init__(self, tokens: int, window: int, batch_size: int, seed: int):
        windows = (tokens - window) // window  # whole ones at any phase, with a target after the last token
        if windows < 1:
            raise ConfigError(f"data.window {window} is too long: {tokens} training tokens allow {max(1, tokens // 2)} at most")
        self.window, self.seed = window, seed
        self.shuffled = Shuffled(windows, batch_size, seed)
        self.batches_per_epoch = self.shuffled.batches_per_epoch

    def batch(self, number: int) -> Address:
        address = self.shuffled.batch(number)
        epoch = address["epoch"]
        phase = (uniform(self.seed, epoch, torch.zeros_like(epoch), 1, PHASE)[:, 0] * self.window).long()
        return {"start": phase + address["index"] * self.window, "reset": torch.ones_like(epoch, dtype=torch.bool)}


class Columns:
    """A stream cut into `batch_size` columns of equal length, read side by side, window after window; each epoch starts anew.

    Row c of every batch belongs to column c, so the recurrent state of a row continues in the next batch. What is left over at the end
    of the stream and of the columns is not read (Zaremba et al., arXiv:1409.2329).
    """

    def __init__(self, tokens: int, window: int, batch_size: int):
        self.window = window
        self.length = tokens // whole("data.batch_size", batch_size, 1)
        self.batches_per_epoch = (self.length - 1) // window  # the last target needs one token more
        if self.batches_per_epoch < 1:
            raise ConfigError(f"{tokens} training tokens are too few for data.batch_size {batch_size} columns with data.window {window}")
        self.starts = torch.arange(batch_size) * self.length

    def batch(self, number: int) -> Address:
        number %= self.batches_per_epoch
        return {"start": self.starts + number * self.window, "reset": torch.full_like(self.starts, number == 0, dtype=torch.bool)}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it, which needs pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def home(root: str | None) -> Path:
    """The folder `data.root`, or ConfigError."""
    if not root:
        raise ConfigError(f"data.root must be the folder of the data, not {root!r}")
    return Path(root).expanduser()


def whole(key: str, value: Any, least: int) -> int:
    """A whole number that is large enough, or ConfigError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key} must be a whole number from {least}, not {value!r}")
    return value


def choice(key: str, value: Any, choices: Iterable[str]) -> Any:
    """One of the choices, or ConfigError."""
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(choices)}, not {value!r}")
    return value


def one_line(error: Exception) -> str:
    """What an error of somebody else says, for use within a sentence."""
    return " ".join(str(error).split()) or type(error).__name__
