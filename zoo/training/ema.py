"""Exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn

from zoo.training.distributed import local


class Average:
    """A copy of the objective whose trainable parameters follow the original's: theta' <- decay theta' + (1 - decay) theta.

    Buffers (batch statistics, tables) are copied, not averaged: an average of counters or noise schedules is no such thing.
    """

    def __init__(self, objective: nn.Module, decay: float):
        self.decay = decay
        self.objective = copy.deepcopy(objective).requires_grad_(False).eval()

    def follow(self, objective: nn.Module) -> None:
        """Names the original; call once both have their final form (device, shards)."""
        names = [name for name, p in objective.named_parameters() if p.requires_grad]
        ours, theirs = dict(self.objective.named_parameters()), dict(objective.named_parameters())
        self.averages, self.parameters = [local(ours[n]) for n in names], [local(theirs[n]).detach() for n in names]
        self.copies, self.buffers = list(self.objective.buffers()), list(objective.buffers())

    def update(self, skip: Tensor) -> None:
        """One step of the average; none where the iteration was skipped (a 0-dim tensor, 1.0 or 0.0)."""
        if skip.device.type == "cpu":
            if not skip:
                torch._foreach_lerp_(self.averages, self.parameters, 1 - self.decay)
        else:  # asking a GPU for the value would stall it
            difference = torch._foreach_sub(self.parameters, self.averages)
            torch._foreach_mul_(difference, (1 - self.decay) * (1 - skip))
            torch._foreach_add_(self.averages, difference)
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)
