"""A training step of VQ-VAE's quantiser beside vector-quantize-pytorch's: 512 codes of width 64, 8,192 vectors, running means, fp32.

Forward, the gradient through to the vectors, the codebook's update. Both in one process on the same fresh vectors, the order reversed every other
time; a second instance of theirs is the noise floor. Needs pip install vector-quantize-pytorch.

python -m benchmarks quantizer [--device cpu] [--repeats 21] [--record results/benchmarks/quantizer.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.environment import environment
from zoo.papers.vq_vae import EmaVectorQuantizer

CODES, WIDTH, SHAPE = 512, 64, (8, 1024)


def ours(device: torch.device) -> Callable[[Tensor], None]:
    quantizer = EmaVectorQuantizer(CODES, WIDTH).to(device).train()

    def step(z: Tensor) -> None:
        z = z.flatten(0, 1)
        e, _ = quantizer(z)
        ((z + (e - z).detach()).square().mean() + 0.25 * F.mse_loss(z, e.detach())).backward()
        quantizer.update()

    return step


def theirs(device: torch.device) -> Callable[[Tensor], None]:
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=WIDTH, codebook_size=CODES, decay=0.99, commitment_weight=0.25).to(device).train()

    def step(z: Tensor) -> None:
        e, _, commitment = quantizer(z)
        (e.square().mean() + commitment.sum()).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    steps = {"ours": ours(device), "theirs": theirs(device), "theirs again": theirs(device)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 2):
        z = torch.randn(*SHAPE, WIDTH, device=device)
        for name in list(steps)[:: 1 if repeat % 2 else -1]:
            leaf, start = z.clone().requires_grad_(), time.perf_counter()
            steps[name](leaf)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    quartiles = lambda values: [round(q, 4) for q in statistics.quantiles(values, n=4)]
    ratio = lambda name: quartiles([a / b for a, b in zip(times[name], times["theirs"])])
    result = {
        "milliseconds": {name: quartiles([1e3 * t for t in values]) for name, values in times.items()},
        "ratio": ratio("ours"), "noise_floor": ratio("theirs again"), "repeats": options.repeats, **environment(device),
    }
    print(json.dumps(result, indent=1))
    if options.record:
        options.record.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
