"""From addresses to batches: fetched directly where the data is on the device, by worker processes where a split asks for them.

What is read depends on the plan alone: not on the number of workers, and no random number of the run is drawn.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data.base import Address, Batch, Plan, Split, one_line, send
from zoo.errors import ZooError

TIMEOUT = 120  # seconds without a batch from the workers


def stream(
    split: Split, plan: Plan, start: int, device: torch.device, rank: int = 0, ranks: int = 1, timeout: float = TIMEOUT
) -> Iterator[Batch]:
    """Batches number start, start + 1, ... for ever; of each only this rank's share of the global batch.

    Raises:
        ZooError: where an item can't be read, or the workers died or were silent for `timeout` seconds.
    """
    return batches(split, (share(plan.batch(number), rank, ranks) for number in count(start)), device, timeout)


def share(batch: Batch | Address, rank: int, ranks: int) -> Batch | Address:
    """The rows of one rank: consecutive ones, as many as the others' or one more or less."""
    return {k: v[len(v) * rank // ranks : len(v) * (rank + 1) // ranks] for k, v in batch.items()}


def sweep(
    split: Split, batch_size: int, device: torch.device, rank: int = 0, ranks: int = 1, timeout: float = TIMEOUT, even: bool = False
) -> Iterator[tuple[int | None, int, Batch]]:
    """All batches of an evaluation as (sequence, step, batch); recurrent state starts afresh at step 0 of each sequence.

    The ranks share the sequences; every item is seen once. Nothing is padded and ranks may get unequal numbers of batches, so there
    must be no collective call inside the loop, unless `even`: then a rank that is short of a sequence repeats the first one as number None.
    """
    sequences = list(enumerate(split.sweeps(batch_size)))
    mine: list[tuple[int | None, list[Address]]] = list(sequences[rank::ranks])
    if even and len(mine) < len(sequences[::ranks]):
        mine.append((None, sequences[0][1]))
    places = [(number, step) for number, sequence in mine for step in range(len(sequence))]
    addresses = [address for _, sequence in mine for address in sequence]
    return ((*place, batch) for place, batch in zip(places, batches(split, addresses, device, timeout)))


def batches(split: Split, addresses: Iterable[Address], device: torch.device, timeout: float = TIMEOUT) -> Iterator[Batch]:
    """The batch at each address, on the device, in this order."""
    split.to(device)
    if split.workers == 0:
        return map(split.fetch, addresses)
    return _from_workers(split, addresses, device, timeout)


def _from_workers(split: Split, addresses: Iterable[Address], device: torch.device, timeout: float) -> Iterator[Batch]:
    awaited: deque[Address] = deque()

    def noted() -> Iterator[dict[str, np.ndarray]]:
        for address in addresses:
            awaited.append(address)
            yield {name: value.numpy() for name, value in address.items()}  # tensors would travel as a file descriptor each

    loader = DataLoader(
        _Loaded(split),
        batch_size=None,
        sampler=noted(),
        num_workers=min(split.workers, os.cpu_count() or 1),  # torch warns of more
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
        timeout=timeout,
        worker_init_fn=_only_the_parent_stops_me,
        generator=torch.Generator(),  # else the loader draws from the global one, and the run would depend on having workers
    )
    iterator = iter(loader)
    try:
        while True:
            batch = _next(iterator, awaited)
            if batch is None:
                return
            if isinstance(batch, ZooError):
                raise batch
            yield split.finish({name: send(value, device) for name, value in batch.items()})
    finally:
        del iterator  # stops the workers now; as part of an exception's garbage it would wait for each of them in vain


def _next(iterator: Iterator, awaited: deque[Address]) -> Batch | ZooError | None:
    """The next batch, or the worker's error; None after the last one."""
    try:
        batch = next(iterator, None)
    except (RuntimeError, OSError, EOFError) as error:
        return ZooError(f"no batch from the loader's workers while items {_items(awaited[0])} were awaited: {one_line(error)}")
    if batch is not None:
        awaited.popleft()
    return batch


class _Loaded(Dataset):
    """In a worker: address -> batch, or the error, which would otherwise arrive wrapped in a trace."""

    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, arrays: dict[str, np.ndarray]) -> Batch | ZooError:
        address = {name: torch.from_numpy(value) for name, value in arrays.items()}
        try:
            return self.split.load(address)
        except ZooError as error:
            return error
        except Exception as error:
            return ZooError(f"items {_items(address)} could not be loaded: {type(error).__name__}: {one_line(error)}")


def _items(address: Address) -> str:
    numbers = next(iter(address.values())).tolist()
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _unchanged(batch: Batch) -> Batch:
    return batch


def _only_the_parent_stops_me(worker: int) -> None:
    """In a worker: Ctrl-C and a SIGTERM to all processes are for the main one, which still has a step to finish and to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
