"""Work done a second, and its share of what the device could do."""

import contextlib
import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16/fp16 tensor-core peaks in TFLOP/s, from the vendors' data sheets.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "V100": 125.0, "B200": 2250.0}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the device promises in half precision, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for key, peak in PEAK.items() if key in name), None)


def iteration_flops(objective: nn.Module, batch: Mapping[str, Tensor], device: str = "meta") -> int | None:
    """FLOPs of forward and backward pass of all turns on this batch, each of which computes gradients of its own network only, as torch counts
    them; None where it can't. On the meta device nothing is computed, and what depends on values, such as the choice of an expert, is not counted."""
    try:
        shadow = copy.deepcopy(objective).to(device)
        inputs = {name: value.to(device) for name, value in batch.items()}
        turns = getattr(shadow, "turns", ("model",))
        return sum(_turn_flops(shadow, inputs, turn, alone=len(set(turns)) == 1) for turn in turns) or None
    except Exception:  # an operator without a meta kernel, say: no MFU for this model, which is no reason to stop
        return None


def _turn_flops(objective: nn.Module, batch: Mapping[str, Tensor], turn: str, alone: bool) -> int:
    for name, network in () if alone else objective.named_children():
        network.requires_grad_(name == turn)
    carry = [objective.initial_carry(len(next(iter(batch.values()))))] if hasattr(objective, "initial_carry") else []
    with FlopCounterMode(display=False) as counter:
        terms, *_ = objective(batch, turn, *carry)
        sum(terms.values()).backward()
    return counter.get_total_flops()


def memory(device: torch.device) -> float | None:
    """Peak memory of this process on its device in MiB; for the CPU, of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "cpu":
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return None


def profiler(steps: int | None, folder: Path, here: bool) -> contextlib.AbstractContextManager:
    """Traces `steps` steps after three of warm-up into <run_dir>/profile (open with chrome://tracing); a context whose `step()` marks each step."""
    if not steps or not here:
        return contextlib.nullcontext(_NoProfile())
    schedule = torch.profiler.schedule(wait=2, warmup=1, active=steps, repeat=1)
    return torch.profiler.profile(schedule=schedule, on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder / "profile")))


class _NoProfile:
    def step(self) -> None:
        pass
