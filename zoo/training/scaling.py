"""How long a step takes on many GPUs: a model of data parallel training, by bytes and bandwidths, with its assumptions told.

step = compute + what the network needs beyond the time in which it works unseen.

DDP adds gradients in one all-reduce, FSDP gathers parameters twice and scatters gradients once. A ring sends (P - 1) / P of these bytes through each
of P links in each direction, twice for an all-reduce; the slowest link decides, on several nodes a node's network. DDP's works unseen during the
backward pass, taken as two thirds of the computation, but for its last bucket; FSDP's during all of the computation, but for one block's share.
Left out: stragglers, input, congestion, kernel launches, and that a GPU is slower at small micro-batches. Published figures that the model is held
against (tests/test_scaling.py): ResNet-50 by DDP from 8 to 256 P100 at 50 Gbit/s a node keeps about 90 % (Goyal et al. 2017, arXiv:1706.02677,
section 5.5), the model says 97 %; Llama 3.1 8B by FSDP from 8 to 128 H100 at 400 Gbit/s a GPU keeps 97 % (torchtitan, December 2024, tables 1
and 3), the model says 100 %.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import compose
from zoo.errors import ConfigError, ZooError
from zoo.schema import Key, section
from zoo.training.build import build_data, build_objective
from zoo.training.precision import autocast
from zoo.training.seeds import mixed
from zoo.training.specimen import specimen
from zoo.training.throughput import PEAK, iteration_work

BUCKET = 25 * 2**20  # bytes of gradients that DDP sends together
BACKWARD = 2 / 3  # share of the computation
MOMENTS = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 1}  # an sgd without momentum has none, which is no size to plan for

HELP = """usage: plan paper=<name> gpus=64 [key=value ...]

  python -m zoo plan paper=resnet/imagenet_resnet50 gpus=64 gpu=H100           from the model's FLOPs, at 40 % of what the GPU promises (share=0.4)
  python -m zoo plan paper=gpt_2 gpus=8 trainer.parallel=fsdp                  from a step measured here
  python -m zoo plan ... per_node=8 inside=450 between=400 latency=20          GPUs a node; GB/s of a GPU, of a node's network; microseconds
"""
KEYS = {
    "gpus": Key(int, low=1),
    "gpu": Key(str, choices=tuple(PEAK)),
    "share": Key(float, above=0, high=1),
    "per_node": Key(int, low=1),
    "inside": Key(float, above=0),
    "between": Key(float, above=0),
    "latency": Key(float, low=0),
}


@dataclass(frozen=True)
class Cluster:
    """Bandwidths in bytes a second and direction: of a GPU to others of its node, and of a node's network in all; latency of a hop in seconds."""

    per_node: int = 8
    inside: float = 450e9
    between: float = 400e9
    latency: float = 20e-6


@dataclass(frozen=True)
class Work:
    """What a rank does in a step, beside waiting.

    Args:
        seconds: of forward and backward for one item.
        gathered: bytes of parameters, as FSDP sends them.
        gradients: bytes of gradients.
        blocks: that FSDP gathers one after the other.
    """

    seconds: float
    gathered: float
    gradients: float
    blocks: int = 1


def ring(size: float, ranks: int, cluster: Cluster) -> float:
    """Seconds to gather or to scatter `size` bytes among the ranks; an all-reduce is one after the other."""
    if ranks == 1:
        return 0.0
    bandwidth = cluster.inside if ranks <= cluster.per_node else min(cluster.inside, cluster.between)
    return (ranks - 1) / ranks * size / bandwidth + math.ceil(math.log2(ranks)) * cluster.latency


def network(work: Work, items: float, ranks: int, cluster: Cluster, parallel: str) -> tuple[float, float]:
    """Seconds that the network needs for a step of `items` a rank, and how many of them are not hidden behind computation."""
    compute = items * work.seconds
    if parallel == "fsdp":
        needed = 2 * ring(work.gathered, ranks, cluster) + ring(work.gradients, ranks, cluster)
        return needed, max(needed - compute, needed / work.blocks)
    needed = 2 * ring(work.gradients, ranks, cluster)
    return needed, max(needed - BACKWARD * compute, needed * min(1.0, BUCKET / work.gradients))


def efficiency(work: Work, items: float, ranks: int, cluster: Cluster, parallel: str) -> float:
    """Computation's share of a step."""
    compute = items * work.seconds
    return compute / (compute + network(work, items, ranks, cluster, parallel)[1])


def plan_command(argv: list[str]) -> int:
    """Prints the table of `plan`."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP, end="")
        return 0 if argv else 2
    own = dict(word.split("=", 1) for word in argv if word.split("=", 1)[0] in KEYS and "=" in word)
    read = {key: value if key == "gpu" else _number(value) for key, value in own.items()}
    options = {"gpu": None, "share": 0.4, **section("", read, KEYS, required=("gpus",))}
    bandwidths = {key: options[key] * 1e9 for key in ("inside", "between") if key in options}
    hop = {"latency": options["latency"] * 1e-6} if "latency" in options else {}
    nodes = {"per_node": options["per_node"]} if "per_node" in options else {}
    cfg = compose([word for word in argv if word.split("=", 1)[0] not in KEYS])
    print(plan(cfg, options["gpus"], options["gpu"], options["share"], Cluster(**nodes, **bandwidths, **hop)))
    return 0


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def plan(cfg: Mapping[str, Any], gpus: int, gpu: str | None, share_of_peak: float, cluster: Cluster) -> str:
    """A table for 1, 2, 4, ... `gpus` ranks of a configuration, at its global batch.

    Args:
        gpu: whose promised FLOP/s are taken, times `share_of_peak`; None: what a rank's micro-batch takes here, now.

    Raises:
        ConfigError: if the batch doesn't divide, or the FLOPs of the model cannot be counted.
    """
    batch_size, accumulate, parallel = cfg["data"]["batch_size"], cfg["trainer"]["accumulate"], cfg["trainer"]["parallel"]
    if not batch_size:
        raise ConfigError("plan knows batches of so many items, not data.batch_tokens")
    if batch_size % (gpus * accumulate):
        raise ConfigError(f"gpus={gpus}: data.batch_size {batch_size} does not divide into {gpus} ranks x trainer.accumulate {accumulate}")
    objective = build_objective(cfg).train()
    turns = tuple(getattr(objective, "turns", ("model",)))
    micro = batch_size // gpus // accumulate
    if gpu:
        work = iteration_work(objective, _batch(cfg, objective, 2))
        if work is None:
            raise ConfigError("gpu=...: the FLOPs of this model cannot be counted; leave it out to measure a step here")
        seconds = work.flops / 2 / (PEAK[gpu] * 1e12 * share_of_peak)
        source = f"{gpu} at {100 * share_of_peak:g} % of its {PEAK[gpu]:g} TFLOP/s"
    else:
        seconds = _measured(cfg, objective, _batch(cfg, objective, micro), turns) / micro
        source = f"measured here, {micro} items at once, {cfg['trainer']['precision']}"
    count = sum(p.numel() for p in objective.parameters())
    learning = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    blocks = max((len(module) for module in objective.modules() if isinstance(module, nn.ModuleList | nn.Sequential)), default=1)
    work = Work(seconds, 4.0 * count, 4.0 * learning, blocks)
    moments = MOMENTS.get(cfg["optim"]["name"], 2)
    ranks = [n for n in (2**k for k in range(gpus.bit_length())) if n < gpus and batch_size % (n * accumulate) == 0] + [gpus]
    stored = (4 * count + 4 * (1 + moments) * learning) / 2**30
    lines = [
        f"{cfg['name']}: {count:,} parameters, {4 * learning / 1e6:,.0f} MB of gradients, {parallel}, batch {batch_size}, "
        f"{cfg['trainer']['steps']:,} steps",
        f"computation: {1e3 * seconds:.3g} ms an item ({source})",
        f"network: {cluster.inside / 1e9:g} GB/s inside a node of {cluster.per_node}, {cluster.between / 1e9:g} GB/s between nodes, "
        f"{1e6 * cluster.latency:g} us a hop",
        f"weights, gradients and moments: {stored:.2f} GiB a rank with ddp, {stored / gpus:.2f} with fsdp on {gpus}; activations come on top",
        f"{'ranks':>6} {'items':>7} {'compute':>10} {'network':>10} {'waited':>10} {'step':>10} {'kept':>6} {'items/s':>9} {'whole run':>10}",
    ]
    for n in ranks:
        items = batch_size / n
        needed, waited = network(work, items, n, cluster, parallel)
        step = items * seconds + waited
        lines.append(
            f"{n:>6} {items:>7g} {_time(items * seconds):>10} {_time(needed):>10} {_time(waited):>10} {_time(step):>10} "
            f"{efficiency(work, items, n, cluster, parallel):>6.1%} {batch_size / step:>9,.0f} {_time(step * cfg['trainer']['steps']):>10}"
        )
    lines.append("left out: stragglers, input, congestion, kernel launches; of published runs on 128 and 256 GPUs it says 3 and 7 % too much")
    return "\n".join(lines)


def _batch(cfg: Mapping[str, Any], objective: nn.Module, items: int) -> dict[str, Tensor]:
    """The first items of training, or, where they are not at hand, noise of their size."""
    try:
        train = build_data(cfg).train
        batch = train.fetch({key: value[:items] for key, value in train.plan(max(items, 2)).batch(0).items()})
    except ZooError:
        batch = specimen(cfg, items)
        if batch is None:
            raise
    return with_noise(cfg, objective, batch, items)


def with_noise(cfg: Mapping[str, Any], objective: nn.Module, batch: dict[str, Tensor], items: int) -> dict[str, Tensor]:
    """The batch and what the objective draws for it."""
    return batch | objective.draw(items, torch.Generator().manual_seed(mixed(cfg["seed"]))) if hasattr(objective, "draw") else batch


def _measured(cfg: Mapping[str, Any], objective: nn.Module, batch: Mapping[str, Tensor], turns: Sequence[str]) -> float:
    """Seconds of forward and backward of all turns: the median of three, after one to warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() and cfg["trainer"]["device"] != "cpu" else "cpu")
    objective, batch = objective.to(device), {name: value.to(device) for name, value in batch.items()}
    carry = [objective.initial_carry(len(next(iter(batch.values()))))] if hasattr(objective, "initial_carry") else []
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for turn in turns:
            with autocast(cfg["trainer"]["precision"], device):
                terms, *_ = objective(batch, turn, *carry)
                loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            objective.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[1]


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"
