"""One sub-network that learns: its parameters, optimizer, schedule and gradient scaler. A classifier has one player, a GAN two."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.schema import by_turn, check_optim, check_schedule
from zoo.training.distributed import World, data_parallel, local, shared_like, synchronised, total_norm, whole_like
from zoo.training.optim import build_optimizer, set_rates
from zoo.training.schedule import Schedule


class Player:
    """The sub-network `name` of an objective in its own turn."""

    def __init__(self, name: str, objective: nn.Module, cfg: Mapping[str, Any], world: World, updates: int, updates_per_epoch: float):
        names = [n for n, _ in objective.named_children()]
        optim = check_optim(by_turn(cfg["optim"], name, names, "optim"))
        schedule = check_schedule(by_turn(cfg["schedule"], name, names, "schedule"))
        self.name, self.network, self.clip = name, getattr(objective, name), cfg["trainer"]["clip"]
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.shards = [local(p) for p in self.parameters]
        self.sharded = any(s is not p for s, p in zip(self.shards, self.parameters))
        self.optimizer = build_optimizer(optim, self.shards)
        self.schedule = Schedule(schedule, optim["lr"], updates, updates_per_epoch)
        self.scaler = torch.amp.GradScaler(world.device.type) if cfg["trainer"]["precision"] == "fp16" else None
        self.updates = 0
        self.forward, self.world = objective, world

    def wrap(self) -> None:
        """Puts DDP around the objective for this player; call while only its parameters require gradients."""
        if self.world.parallel == "ddp":
            self.forward = data_parallel(self.forward, self.world)

    def learns(self, now: bool) -> None:
        """Whether this player's parameters require gradients. FSDP settles that once and for all at the first forward pass, so there
        gradients of the other players are computed, too, and dropped here before their own turn."""
        for p in self.parameters:
            if self.sharded:
                p.grad = None
            else:
                p.requires_grad_(now)

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        return synchronised(self.forward, self.network, last)

    def backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def update(self, empty: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Unscale, clip, step. Returns the gradient norm, whether it was not finite, and whether the step was skipped (1.0 or 0.0), all on
        the device.

        A step whose gradients are not finite changes nothing: the fused kernels are told by a tensor, so nobody waits for the answer.

        Args:
            empty: 1.0 where no item of the batch counted, which skips the step, too.
        """
        set_rates(self.optimizer, self.schedule.lr(self.updates), self.schedule.momentum(self.updates))
        if self.sharded:
            for shard, p in zip(self.shards, self.parameters):
                shard.grad = None if p.grad is None else local(p.grad)
                if self.world.shares_experts and shard is not p:
                    shard.grad /= self.world.size  # a sum over ranks, where all others are means
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = total_norm(gradients)
        bad = (norm - norm).nan_to_num_(1.0).float()  # a finite norm leaves 0, others nan
        skip = bad if empty is None else torch.maximum(bad, empty)
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.shards, self.clip, norm)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skip
        self.optimizer.step()
        if self.scaler:
            self.scaler.update()
        self.updates += 1
        for p in self.parameters:
            p.grad = None
        return norm, bad, skip

    def state(self) -> dict[str, Any]:
        """Everything but the weights, in plain types and full tensors (a collective where parameters are sharded)."""
        states = self.optimizer.state_dict()["state"]
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        owners = {id(s): p for s, p in zip(self.shards, self.parameters)}
        full = {
            i: {k: whole_like(v, owners[id(flat[i])]).cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
            for i, state in states.items()
        }
        return {
            "optimizer": full,
            "updates": self.updates,
            "plateau": dict(self.schedule.plateau),
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        current = self.optimizer.state_dict()
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        owners = {id(s): p for s, p in zip(self.shards, self.parameters)}
        for i, entries in state["optimizer"].items():
            owner = owners[id(flat[i])]
            current["state"][i] = {
                k: local(shared_like(v, owner)) if isinstance(v, Tensor) and v.shape == owner.shape else v for k, v in entries.items()
            }
        self.optimizer.load_state_dict(current)
        self.updates = state["updates"]
        self.schedule.plateau.update(state["plateau"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
