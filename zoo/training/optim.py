"""Optimizers: fused, with parameters that decay and parameters that don't."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(section: Mapping[str, Any], parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of one sub-network's parameters.

    `decay: matrices` keeps weight decay off tensors of fewer than two dimensions (biases, norms); `all`, the default, decays
    everything, as older papers do. Fused kernels take `found_inf` as a tensor, so that a bad step is skipped without asking the host.
    Of sharded parameters it gets this rank's shards: all three rules work element by element.
    """
    arguments = {key: value for key, value in section.items() if key not in ("name", "decay", "weight_decay")}
    decay = section.get("weight_decay", 0.0)  # explicit: torch's AdamW would decay by 0.01
    optimizer = CLASSES[section["name"]](
        _groups(parameters, decay, section.get("decay", "all")), fused=True, weight_decay=decay, **arguments
    )
    if section["name"] == "sgd" and section.get("momentum", 0.0):
        _start_momentum(optimizer)
    return optimizer


def _groups(parameters: Sequence[Tensor], decay: float, which: str) -> list[dict[str, Any]]:
    exempt = [p for p in parameters if which == "matrices" and p.ndim < 2]
    ids = {id(p) for p in exempt}
    groups = [{"params": [p for p in parameters if id(p) not in ids]}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Zero velocities from the start: the fused kernel would leave them uninitialised if the very first step were skipped."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None) -> None:
    """Sets what the schedule says for the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if momentum is not None:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
