"""What a piece of work asks of the machine: operations, memory; and what the machine has."""

import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from zoo.training.precision import AUTOCAST


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the products in `work`, which runs once; an LSTM is taken apart into its products for that."""
    with FlopCounterMode(display=False) as counter, torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        work()
    return counter.get_total_flops()


def matmul_pace(precision: str, device: torch.device, size: int = 2048, repeats: int = 10) -> float:
    """FLOP/s of a plain product of two square matrices, the best of several."""
    a, b = torch.randn(2, size, size, device=device, dtype=AUTOCAST.get(precision, torch.float32))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made in `work`, which runs once, hold together at a time. On a CPU operators' scratch space is not seen."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Live() as live:
        work()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows the storages that operators return until they are freed."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._born(leaf.untyped_storage())
        return out

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.known:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._died, key, storage.nbytes())

    def _died(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.now -= nbytes
