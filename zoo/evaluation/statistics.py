"""Evaluation by sums and counts: any batching and any number of ranks give the same number."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.training.build import call
from zoo.training.distributed import World
from zoo.training.precision import autocast
from zoo.training.seeds import mixed


def evaluate(objective: nn.Module, split: Any, batch_size: int, world: World, seed: int, precision: str) -> dict[str, float]:
    """The objective's own metrics on a whole split, every item counted once.

    Ranks take whole sequences of batches and meet only at the end. Noise is drawn from (seed, sequence, batch), so it does not
    depend on the ranks either.
    """
    sequences = split.sweeps(batch_size)
    totals: dict[str, Tensor] = {}
    with frozen(objective, precision, world.device):
        for round_ in range(-(-len(sequences) // world.size)):
            number = round_ * world.size + world.rank
            spare = number >= len(sequences)
            if spare and world.parallel != "fsdp":
                continue
            # Sharded parameters are gathered by all ranks together: a rank without work repeats a sequence and forgets the result.
            for name, value in _sequence(objective, split, sequences[0 if spare else number], 0 if spare else number, seed):
                totals[name] = totals.get(name, 0.0) + (torch.zeros_like(value) if spare else value)
    names = sorted({name for names in world.gather(list(totals)) for name in names})
    zero = torch.zeros((), dtype=torch.float64, device=world.device)
    summed = world.sum(torch.stack([totals.get(name, zero).to(zero) for name in names]))
    return objective.summarise(dict(zip(names, summed.tolist())))


def _sequence(objective: nn.Module, split: Any, addresses: list, number: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator(next(objective.parameters()).device)
    carry = None
    for i, address in enumerate(addresses):
        batch = split.fetch(address)
        items = len(next(iter(batch.values())))
        if hasattr(objective, "draw"):
            batch |= objective.draw(items, generator.manual_seed(mixed(seed, -1, number, i)))
        if hasattr(objective, "initial_carry"):
            statistics, carry = objective.evaluate(batch, carry if carry is not None else objective.initial_carry(items))
        else:
            statistics = objective.evaluate(batch)
        yield from statistics.items()


def extra_metrics(section: Mapping[str, Any], objective: nn.Module, data: Any, seed: int, precision: str) -> dict[str, float]:
    """One entry of `evaluation:`, a function (objective, data, generator, **params) -> metrics."""
    device = next(objective.parameters()).device
    arguments = {key: value for key, value in section.items() if key != "every"}
    with frozen(objective, precision, device):
        generator = torch.Generator(device).manual_seed(mixed(seed, -2))
        return call("evaluation", arguments, objective=objective, data=data, generator=generator)


@contextlib.contextmanager
def frozen(objective: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients, and the global random state untouched afterwards."""
    training = objective.training
    objective.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), autocast(precision, device):
            yield
    finally:
        objective.train(training)
