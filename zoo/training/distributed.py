"""Ranks: who shares the work, and how sub-networks are wrapped for it."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from zoo.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among its peers: `rank` of `size`, computing on `device`."""

    rank: int
    size: int
    device: torch.device
    parallel: str  # none | ddp | fsdp; none where there is one rank and no sharding was asked for
    shares_experts: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def in_step(self) -> bool:
        """Whether a forward pass needs all ranks."""
        return self.parallel == "fsdp" or self.shares_experts

    def sum(self, values: Tensor) -> Tensor:
        """Sums over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


def choose_device(choice: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: if the chosen device isn't there.
    """
    cuda = torch.cuda.is_available()
    if choice == "auto":
        choice = "cuda" if cuda else "cpu"
    if choice == "cuda" and not cuda:
        raise ConfigError("trainer.device=cuda: this machine has no CUDA device; there is cpu")
    return torch.device(choice, int(os.environ.get("LOCAL_RANK", 0))) if choice == "cuda" else torch.device(choice)


@contextlib.contextmanager
def joined(device: str, parallel: str, share_experts: bool = False) -> Iterator[World]:
    """Joins the process group that torchrun announces, if any, and leaves it at the end."""
    chosen = choose_device(device)
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    grouped = "WORLD_SIZE" in os.environ and (size > 1 or parallel == "fsdp") and not dist.is_initialized()
    if grouped:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    if parallel == "fsdp" and not dist.is_initialized():
        raise ConfigError("trainer.parallel=fsdp shards over the ranks of torchrun: start with torchrun --nproc-per-node N train.py ...")
    try:
        yield World(rank, size, chosen, parallel if size > 1 or parallel == "fsdp" else "none", share_experts and size > 1)
    finally:
        if grouped:
            dist.destroy_process_group()


def shard(objective: nn.Module, world: World) -> None:
    """FSDP2 in place: every repeated block, then the sub-network around them, holds 1/size of its parameters."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    methods = getattr(objective, "forward_methods", ())
    for network in objective.children():
        for block in _repeated_blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        for layer in network.modules():
            if isinstance(layer, nn.RNNBase):
                layer.register_forward_pre_hook(_refresh_weights)
        for method in methods:
            if hasattr(network, method):
                register_fsdp_forward_method(network, method)


def share_experts(objective: nn.Module, world: World) -> None:
    """Every mixture of experts in place: each of several ranks holds its part of the experts, as distributed tensors.

    Raises:
        ConfigError: if there are none, or they don't divide.
    """
    layers = [layer for layer in objective.modules() if hasattr(layer, "share_experts")]
    if not layers:
        raise ConfigError("trainer.expert_parallel: this model has no experts to share among the ranks")
    if world.size == 1:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    try:
        for layer in layers:
            layer.share_experts(mesh)
    except ValueError as error:
        raise ConfigError(f"trainer.expert_parallel: {error}") from error


def synchronise_batch_norm(module: nn.Module) -> None:
    """Batch statistics over all ranks, in place; of those norms that are frozen the statistics are, too, and stay as they are."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if child.weight is None or child.weight.requires_grad:
                setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            synchronise_batch_norm(child)


def _refresh_weights(layer: nn.RNNBase, inputs: tuple) -> None:
    """torch's recurrent layers keep a list of their weights, which FSDP, exchanging shards for full tensors, doesn't know of."""
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules with layers of their own that stand in a ModuleList or Sequential."""
    if _is_list(network):
        return [block for child in network.children() for block in (_repeated_blocks(child) if _is_list(child) else [child]) if _is_block(block)]
    return [block for child in network.children() for block in _repeated_blocks(child)]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


def data_parallel(objective: nn.Module, world: World) -> nn.Module:
    """DDP around the whole objective, for the parameters that require grad now, shared experts aside; batch statistics are synchronised by
    the loop, not each step, and initial weights are equal."""
    devices = [world.device] if world.device.type == "cuda" else None
    shared = [p for p in objective.parameters() if isinstance(p, DTensor)]
    learning = [p for p in shared if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames broadcast_buffers; 2.11 has only the old name
        wrapped = DistributedDataParallel(
            objective, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True, init_sync=not shared
        )
    for p in learning:
        p.requires_grad_(True)
    return wrapped


def synchronised(forward: nn.Module, network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Gradients meet over the ranks only in the backward pass of the last micro-batch."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    if isinstance(forward, DistributedDataParallel) and not last:
        return forward.no_sync()
    return contextlib.nullcontext()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together, sharded or not (a collective if any is)."""
    sharded = [g for g in gradients if isinstance(g, DTensor)]
    if not sharded:
        return torch.nn.utils.get_total_norm(gradients)
    kinds = [sharded, [g for g in gradients if not isinstance(g, DTensor)]]
    return torch.stack([whole(torch.nn.utils.get_total_norm(some)) for some in kinds if some]).norm()


def whole(value: Tensor) -> Tensor:
    """The full tensor behind a sharded one (a collective: every rank must call it), or the tensor itself."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_like(value: Tensor, like: Tensor) -> Tensor:
    """`value`, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device_mesh.device_type), like.device_mesh, like.placements)


def local(value: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor (its own memory, no copy), or the tensor itself."""
    return value.detach().to_local() if isinstance(value, DTensor) else value


def whole_like(shard: Tensor, like: Tensor) -> Tensor:
    """The full tensor whose shards are laid out as those of the parameter `like` (a collective)."""
    if not isinstance(like, DTensor) or shard.shape != local(like).shape:
        return shard
    return DTensor.from_local(shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()
