"""Work done a second, and its share of what the device could do."""

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16/fp16 tensor-core peaks in TFLOP/s, from the vendors' data sheets.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "V100": 125.0, "B200": 2250.0}

GROUPED_IN_BF16_ONLY = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)  # fake grouped products of torch 2.11


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the device promises in half precision, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for key, peak in PEAK.items() if key in name), None)


class Counted(NamedTuple):
    """Of forward and backward pass of one iteration, all turns."""

    flops: int
    operators: int  # views aside: about the kernels that a GPU gets, unless they are compiled


class Operators(TorchDispatchMode):
    """Counts what is dispatched, views aside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def iteration_work(objective: nn.Module, batch: Mapping[str, Tensor]) -> Counted | None:
    """What the turns do with this batch, each of which computes gradients of its own network only. Nothing is computed: that is a matter of the meta
    device or, for what it doesn't know, of fake tensors. None where the work depends on values, so that neither will do."""
    for count in (work_on_meta, work_of_fakes):
        with contextlib.suppress(Exception):  # an operator without such a kernel, say: no MFU for this model, which is no reason to stop
            if (work := count(objective, batch)).flops:
                return work
    return None


def work_on_meta(objective: nn.Module, batch: Mapping[str, Tensor]) -> Counted:
    return _work(copy.deepcopy(objective).to("meta"), {name: value.to("meta") for name, value in batch.items()})


def work_of_fakes(objective: nn.Module, batch: Mapping[str, Tensor], fused_rnn: bool = False) -> Counted:
    """By the CPU's kernels: its fused LSTM is one operator, as a GPU's is, but no FLOPs are counted in it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shadow = copy.deepcopy(objective).to("meta")
    with FakeTensorMode() as fake, torch.backends.mkldnn.flags(enabled=fused_rnn, allow_tf32=None):
        for module in shadow.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                empty = torch.empty(value.shape, dtype=value.dtype)
                setattr(module, name, nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty)
        with torch.autocast("cpu", torch.bfloat16, enabled=GROUPED_IN_BF16_ONLY):
            return _work(shadow, {name: fake.from_tensor(value.cpu()) for name, value in batch.items()})


def _work(objective: nn.Module, batch: Mapping[str, Tensor]) -> Counted:
    turns = getattr(objective, "turns", ("model",))
    flops, operators = zip(*(_turn_work(objective, batch, turn, alone=len(set(turns)) == 1) for turn in turns))
    return Counted(sum(flops), sum(operators))


def _turn_work(objective: nn.Module, batch: Mapping[str, Tensor], turn: str, alone: bool) -> Counted:
    for name, network in () if alone else objective.named_children():
        network.requires_grad_(name == turn)
    carry = [objective.initial_carry(len(next(iter(batch.values()))))] if hasattr(objective, "initial_carry") else []
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_mm_flops}) as flops, Operators() as operators:
        terms, *_ = objective(batch, turn, *carry)
        sum(terms.values()).backward()
    return Counted(flops.get_total_flops(), operators.count)


def _grouped_mm_flops(rows: Sequence[int], matrices: Sequence[int], *_, **__) -> int:
    """(R, A) and (E, A, B), a matrix for each row; or in the backward pass (A, R) and (R, B)."""
    return 2 * math.prod(rows) * matrices[-1]


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
