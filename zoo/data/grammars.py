"""Symbols in an order to be understood: the embedded Reber grammar, in strings and in endless streams, and temporal order.

B rows of a batch, T symbols of a row. A string is a pure function of (seed, split, index), a stream of (seed, split, its number).
"""

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import count, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.base import Address, Batch, Data, send, whole
from zoo.data.hashing import ORDER, uniform
from zoo.data.synthetic import TEST, TRAIN, VALID, synthetic
from zoo.errors import ConfigError

IGNORED = -100  # what the loss leaves out
Path = tuple[int, ...]  # the nodes that a string goes through

SYMBOLS = "BEPSTVX"
# Reber's grammar (1997, figure 3): the edges out of each node, a symbol and the node behind it. Where there are two, each is taken half the time.
REBER = (("B1",), ("T2", "P3"), ("S2", "X4"), ("T3", "V5"), ("X3", "S6"), ("P4", "V6"), ("E7",))


def embedded() -> list[list[tuple[str, int]]]:
    """The embedded grammar (1997, figure 4), B T <Reber> T E or B P <Reber> P E: for each node its edges (symbol, node behind it).

    A string begins and ends at node 0, so that a stream of strings is a walk that goes on.
    """
    edges = [[("B", 1)], [("T", 2), ("P", 10)]]
    for symbol, first in (("T", 2), ("P", 10)):
        edges += [[(edge[0], int(edge[1]) + first) for edge in node] for node in REBER] + [[(symbol, 18)]]
    return [*edges, [("E", 0)]]


FAR = (9, 17)  # where the next symbol is the second one of the string again
EDGES = embedded()
NEXT = [[edges[0][1], edges[-1][1]] for edges in EDGES]  # by node and a toss of a coin


def tables() -> tuple[Tensor, Tensor]:
    """The symbol between two nodes, (nodes, nodes), -100 where there is none; and which symbols may follow a node, (nodes, 7) bool."""
    between, possible = torch.full((len(EDGES), len(EDGES)), IGNORED), torch.zeros(len(EDGES), len(SYMBOLS), dtype=torch.bool)
    for node, edges in enumerate(EDGES):
        for symbol, behind in edges:
            between[node, behind] = SYMBOLS.index(symbol)
            possible[node, SYMBOLS.index(symbol)] = True
    return between, possible


SYMBOL, POSSIBLE = tables()


def predictions(paths: Tensor) -> Batch:  # (B, T + 2) nodes
    """What a network reads, what comes next, what might have come next, and where that depends on the second symbol."""
    symbols = SYMBOL[paths[:, :-1], paths[:, 1:]]
    read = F.one_hot(symbols[:, :-1].clamp(min=0), len(SYMBOLS)).to(torch.get_default_dtype())
    after = paths[:, 1:-1]
    return {"inputs": read, "next": symbols[:, 1:], "possible": POSSIBLE[after], "far": torch.isin(after, torch.tensor(FAR))}


# ---- strings ----


def embedded_reber(seed: int = 0, train: int = 256, test: int = 256) -> Data:
    """Strings of the embedded Reber grammar (Hochreiter and Schmidhuber 1997, experiment 1): predict the next symbol, always. The last but one is
    the second, six symbols before or more.

    Batch: {"inputs" (B, T, 7) one-hot, "next" (B, T) the symbols that follow (-100 after the end), "possible" (B, T, 7) bool, all symbols that
    might have followed, "far" (B, T) bool, where that depends on the second symbol of the string}. Training picks its strings at random from
    the `train` strings, again and again; the `test` strings are others.

    Args:
        seed: of all strings and of the order.
        train, test: how many strings.
    """
    learnt = list(islice(strings(seed, TRAIN), whole("data.train", train, 1)))
    known = set(learnt)
    others = (path for path in strings(seed, TEST) if path not in known)
    asked = list(islice(others, whole("data.test", test, 1)))
    return Data(train=Strings(learnt, seed), valid=None, test=Strings(asked, seed), facts={})


def strings(seed: int, split: int) -> Iterator[Path]:
    """The strings number 0, 1, 2, ... of a split."""
    for first in count(step=256):
        index = torch.arange(first, first + 256)
        for i, coins in zip(index, uniform(seed, torch.full_like(index, split), index, 64)):
            path, symbols = walk(0, coins), 64
            while 0 not in path[1:]:  # a rare string that is longer
                symbols *= 2
                path = walk(0, uniform(seed, torch.tensor([split]), i[None], symbols)[0])
            yield path[: path.index(0, 1) + 1]


def walk(node: int, coins: Tensor) -> Path:
    """The nodes that are passed, the first one included."""
    path = [node]
    for coin in (coins < 0.5).tolist():
        node = NEXT[node][coin]
        path.append(node)
    return tuple(path)


class Strings:
    """A split of strings, each with an end of its own."""

    workers = 0

    def __init__(self, paths: Iterable[Path], seed: int):
        tensors = [torch.tensor(path) for path in paths]
        self.paths = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)  # no symbol leads from node 0 to node 0
        self.nodes = torch.tensor([len(path) for path in tensors])
        self.seed, self.device = seed, torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> "Strings":
        self.device = device
        return self

    def plan(self, batch_size: int) -> "Picked":
        return Picked(len(self), batch_size, self.seed)

    def fetch(self, address: Address) -> Batch:
        index = address["index"]
        batch = predictions(self.paths[index, : int(self.nodes[index].max())])
        return {name: send(value, self.device) for name, value in batch.items()}

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """At least 256 strings side by side."""
        return [[{"index": index}] for index in torch.arange(len(self)).split(max(batch_size, 256))]


class Picked:
    """Items picked at random, with replacement."""

    def __init__(self, items: int, batch_size: int, seed: int):
        self.items, self.seed, self.batch_size = items, seed, whole("data.batch_size", batch_size, 1)
        self.batches_per_epoch = items / batch_size

    def batch(self, number: int) -> Address:
        position = torch.arange(number * self.batch_size, (number + 1) * self.batch_size)
        return {"index": (uniform(self.seed, torch.zeros_like(position), position, 1, ORDER)[:, 0] * self.items).long()}


# ---- streams ----


def continual_reber(
    seed: int = 0, window: int = 25, length: int | None = 1000, streams: int = 10, valid: int = 2000, test: int = 100_000
) -> Data:
    """Strings of the embedded Reber grammar one after another, without end or mark (Gers, Schmidhuber and Cummins 2000, section 4).

    Training reads B streams side by side, the next `window` symbols of each in every batch. Batch: that of `embedded_reber`, and
    {"reset" (B,) bool}, true only where a stream begins.

    Args:
        seed: of the training streams; those of `valid` and `test` are always the same.
        window: T.
        length: symbols of a training stream, in whole windows, after which another begins; None: it never ends.
        streams: how many streams validation and test read ...
        valid, test: ... and so many symbols of each, in whole windows. The paper tests on 10 streams of 100,000.
    """
    for key, value in {"window": window, "length": 1 if length is None else length, "streams": streams}.items():
        whole(f"data.{key}", value, 1)
    for key, value in {"valid": valid, "test": test}.items():
        whole(f"data.{key}", value, 100)  # which hold strings to judge by
    return Data(
        train=Streams(seed, TRAIN, window, length, sys.maxsize),
        valid=Streams(0, VALID, window, valid, streams),
        test=Streams(0, TEST, window, test, streams),
        facts={},
    )


class Streams:
    """A split of streams, read side by side in windows."""

    workers = 0

    def __init__(self, seed: int, split: int, window: int, length: int | None, streams: int):
        self.seed, self.split, self.window, self.streams = seed, split, window, streams
        self.windows = sys.maxsize if length is None else -(-length // window)  # of a stream
        self.device = torch.device("cpu")
        self.reached: dict[tuple[int, int], int] = {}  # (stream, position): the node where a window of the last batch ended

    def __len__(self) -> int:
        return self.streams

    def to(self, device: torch.device) -> "Streams":
        self.device = device
        return self

    def plan(self, batch_size: int) -> "SideBySide":
        return SideBySide(batch_size, self.window, self.windows)

    def fetch(self, address: Address) -> Batch:
        stream, start = address["stream"], address["start"]
        nodes = [self.node(*at) for at in zip(stream.tolist(), start.tolist())]
        coins = self.coins(stream[:, None], start[:, None] + torch.arange(self.window + 1))
        paths = [walk(*row) for row in zip(nodes, coins)]
        self.reached = {at: path[-2] for at, path in zip(zip(stream.tolist(), (start + self.window).tolist()), paths)}
        batch = {**predictions(torch.tensor(paths)), "reset": address["reset"]}
        return {name: send(value, self.device) for name, value in batch.items()}

    def node(self, stream: int, position: int) -> int:
        """The node before the symbol at this position; unless the last batch ended there, it is found by a walk from the beginning."""
        if (stream, position) in self.reached:
            return self.reached[stream, position]
        return walk(0, self.coins(torch.tensor([[stream]]), torch.arange(position)[None])[0])[-1]

    def coins(self, stream: Tensor, position: Tensor) -> Tensor:  # (n, 1), (n, m) -> (n, m)
        epoch = (3 * stream + self.split).expand_as(position)
        return uniform(self.seed, epoch.flatten(), position.flatten(), 1).view(position.shape)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        plan = self.plan(self.streams)
        return [[plan.batch(number) for number in range(self.windows)]]


class SideBySide:
    """Row b of every batch is the next window of its stream: of stream b, and when that ends, b + B, b + 2 B, ... There is no epoch."""

    batches_per_epoch = math.inf

    def __init__(self, batch_size: int, window: int, windows: int):
        self.rows, self.window, self.windows = torch.arange(whole("data.batch_size", batch_size, 1)), window, windows

    def batch(self, number: int) -> Address:
        ended, begun = divmod(number, self.windows)
        start = torch.full_like(self.rows, begun * self.window)
        return {"stream": self.rows + ended * len(self.rows), "start": start, "reset": start == 0}


# ---- temporal order ----

ORDER_SYMBOLS = "EBabcdXY"
PLACES = {2: (10, 50), 3: (10, 33, 66)}  # where the earliest place of each X or Y is; the latest is 10 symbols further


def temporal_order(seed: int = 0, relevant: int = 2, valid: int = 1000, test: int = 2560) -> Data:
    """Temporal order (Hochreiter and Schmidhuber 1997, experiments 6a and 6b): which of X and Y came first, which then?

    A sequence of 100 to 110 symbols begins with E, ends with B and is made of random a, b, c, d but for two symbols (6a), at places 10 to 20 and
    50 to 60, or three (6b), at 10 to 20, 33 to 43 and 66 to 76, which are X or Y. The class is the binary number that they spell, X = 0 and
    Y = 1: 0, 1, 2, 3 are the paper's Q, R, S, U.

    Batch: {"inputs" (B, 110, 8) one-hot, zeros after the end, "target" (B, classes) one-hot, "length" (B,)}.

    Args:
        seed: of the training sequences; those of `valid` and `test`, so many items each, are always the same.
        relevant: how many X or Y, 2 or 3.
    """
    if relevant not in PLACES:
        raise ConfigError(f"data.relevant must be 2 or 3, not {relevant!r}")
    return synthetic(lambda *which: order(*which, PLACES[relevant]), seed, valid, test)


def order(seed: int, split: Tensor, index: Tensor, places: tuple[int, ...]) -> Batch:
    """-> {"inputs" (n, 110, 8), "target" (n, classes), "length" (n,)}."""
    relevant, longest = len(places), 110
    u = uniform(seed, split, index, longest + 2 * relevant + 1)
    lengths = 100 + (u[:, -1] * 11).long()
    where = torch.tensor(places) + (u[:, longest : longest + relevant] * 11).long()
    bits = (u[:, longest + relevant : -1] * 2).long()  # 0: X, 1: Y
    symbols = 2 + (u[:, :longest] * 4).long()  # a, b, c, d
    symbols[:, 0] = ORDER_SYMBOLS.index("E")
    symbols.scatter_(1, where, ORDER_SYMBOLS.index("X") + bits)
    symbols.scatter_(1, lengths[:, None] - 1, ORDER_SYMBOLS.index("B"))
    inside = torch.arange(longest) < lengths[:, None]
    label = (bits * 2 ** torch.arange(relevant).flip(0)).sum(1)
    return {"inputs": F.one_hot(symbols, 8).double() * inside[..., None], "target": F.one_hot(label, 2**relevant).double(), "length": lengths}
