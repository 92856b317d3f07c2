"""How the cost of a step grows: seconds (process time, one thread) and kept bytes against batch, length, width, experts; against ranks by gloo.

Each quantity is doubled while the others stay; the exponent is the slope of log cost over log size, by least squares, beside the arithmetic's own,
which torch counts. Where the measured one is larger, something costs more than its products.

python -m benchmarks growth [--repeats 5] [--record results/benchmarks/growth.json] [--picture growth.png]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.environment import environment

SIZES = {"batch": (2, 4, 8, 16, 32), "length": (32, 64, 128, 256, 512), "width": (64, 128, 256, 512), "experts": (2, 4, 8, 16, 32, 64)}
RANKS = (1, 2, 4)
Work = Callable[[], Tensor]


def gpt(batch: int = 8, length: int = 128, width: int = 128) -> Work:
    """The loss of a GPT-2 of two layers."""
    from zoo.papers.gpt_2 import GPT2

    model = GPT2(256, context=length, depth=2, d_model=width, n_heads=width // 32, dropout=0.0)
    tokens = torch.randint(256, (batch, length + 1))
    return lambda: F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def experts(experts: int) -> Work:
    """A mixture layer with two experts a token, 1,024 tokens: more experts, the same products."""
    from zoo.papers.mixture_of_experts import MixtureOfExperts, NoisyTopKGate

    layer = MixtureOfExperts(NoisyTopKGate(128, experts, 2), 128, 256)
    nn.init.normal_(layer.gate.w_gate, std=128**-0.5)
    x = torch.randn(1024, 128)
    return lambda: layer(x).square().mean()


def step(work: Work) -> None:
    work().backward()


def cost(work: Work, repeats: int) -> dict[str, float]:
    """Seconds of a step (the best of several, since noise only adds), operations, bytes kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with FlopCounterMode(display=False) as counter:
        step(work)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = work()
    loss.backward()
    inner = max(1, round(0.2 / _seconds(work, 1)))
    return {"seconds": min(_seconds(work, inner) for _ in range(repeats)), "flops": counter.get_total_flops(), "kept": sum(kept.values())}


def _seconds(work: Work, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        step(work)
    return (time.process_time() - start) / times


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log cost over log size."""
    return round(statistics.linear_regression([math.log(s) for s in sizes], [math.log(max(c, 1e-12)) for c in costs]).slope, 2)


def series(repeats: int) -> Iterator[tuple[str, dict]]:
    for name, sizes in SIZES.items():
        measured = []
        for size in sizes:
            torch.manual_seed(0)
            measured.append(cost(experts(size) if name == "experts" else gpt(**{name: size}), repeats))
        columns = {key: [m[key] for m in measured] for key in measured[0]}
        if name == "experts":  # torch counts a grouped product as if each row met every expert's matrix
            del columns["flops"]
        yield name, {"sizes": sizes, **columns, "exponents": {key: exponent(sizes, values) for key, values in columns.items()}}


def _rank(rank: int, ranks: int, folder: str, found: str) -> None:
    """A rank of a data parallel step, eight items each: the time of the whole and of its computation."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    parallel, x = DistributedDataParallel(model), torch.randn(8, 512)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        parallel(x).square().mean().backward()
        times.append(time.perf_counter() - start)
    if rank == 0:
        Path(found).write_text(str(statistics.median(times[10:])))
    dist.destroy_process_group()


def ranks() -> dict:
    """Seconds of a step of 3 MB of gradients, by the wall clock: on one machine the ranks share its cores."""
    import tempfile

    seconds = []
    for count in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (count, folder, f"{folder}/found"), count)
            seconds.append(float((Path(folder) / "found").read_text()))
    return {"sizes": RANKS, "seconds": seconds, "exponents": {"seconds": exponent(RANKS, seconds)}}


def draw(results: dict, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(results), 3.2), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items()):
        for key in ("seconds", "kept"):
            if key in found:
                first = found[key][0]
                axes.loglog(found["sizes"], [value / first for value in found[key]], "o-", label=f"{key}: size^{found['exponents'][key]}")
        if "flops" in found:
            counted, slope = [value / found["flops"][0] for value in found["flops"]], found["exponents"]["flops"]
            axes.loglog(found["sizes"], counted, "k:", label=f"flops: size^{slope}")
        axes.set_xticks(found["sizes"], labels=map(str, found["sizes"]))
        axes.minorticks_off()
        axes.set_title(name)
        axes.legend(fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = dict(series(options.repeats)) | {"ranks": ranks()}
    for name, found in results.items():
        print(f"{name:<8} {found['exponents']}  " + ", ".join(f"{size}: {1e3 * s:.2f} ms" for size, s in zip(found["sizes"], found["seconds"])))
    if options.record:
        options.record.write_text(json.dumps({"results": results, "repeats": options.repeats, **environment(torch.device("cpu"))}, indent=1))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
