"""Our models beside their peers: a training step (forward, backward, optimizer; of a layer, the gradients alone) and inference (of a diffusion
model: a batch of samples in ten steps of DDIM; of GPT-2: 64 greedy tokens), in fp32 and under bf16 autocast.

All sides in one process; each repeat gives all of them the same fresh batch, every other one in reverse order; a timing takes a second or so
(--seconds). Ours runs as our trainer runs it (fused optimizer, channels_last where the configuration says so), peers with torch's defaults. A
second instance of the reference is the noise floor: where its quartiles leave 0.95-1.05, the result is "not measured". "Not slower" means that
the upper quartile of the paired ratios is 1 at most. A mode is a precision, and with "+compile" after it the models are compiled.

Beside the times: the products' arithmetic as torch counts it, what that makes a second, as a share of a plain matrix product's pace in the same
process; and the most memory that tensors take beyond what the model and its optimizer hold.

python -m benchmarks peers [--cases resnet18,vit_s16] [--modes fp32,bf16,fp32+compile] [--device cpu] [--repeats 15] [--seconds 1]
                           [--record results/benchmarks/peers.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import cases, layers, sequences
from benchmarks.cases import Batch, Case
from benchmarks.work import flops, matmul_pace, peak_bytes
from zoo.environment import environment
from zoo.training.optim import build_optimizer
from zoo.training.precision import autocast

Run = Callable[[Batch], None]
CASES = cases.CASES | sequences.CASES | layers.CASES


def training(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer | None, mode: str, channels_last: bool) -> Run:
    model.train()
    compute = case.loss(model)

    def step(batch: Batch) -> None:
        images, *others = batch
        with autocast(mode, images.device):
            loss = compute(_laid_out(images, channels_last), *others)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step


def inference(case: Case, model: nn.Module, mode: str, channels_last: bool) -> Run:
    model.eval().requires_grad_(False)  # torch's counter of operations would hang its hooks on what requires gradients
    work = case.other_work(model)

    def forward(batch: Batch) -> None:
        images, *others = batch
        with torch.inference_mode(), autocast(mode, images.device):
            work(_laid_out(images, channels_last), *others)

    return forward


def _laid_out(images: Tensor, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def plain_optimizer(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """As a user of a peer would build it."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](parameters, lr=1e-4)


def fused_optimizer(name: str, parameters: list[Tensor]) -> torch.optim.Optimizer:
    own = {"sgd": {"lr": 1e-3, "momentum": 0.9}, "adam": {"lr": 1e-4}, "adamw": {"lr": 1e-4, "weight_decay": 0.01}}
    return build_optimizer({"name": name, **own[name]}, parameters)


def sides(case: Case, work: str, mode: str, device: torch.device) -> tuple[dict[str, Run], dict[str, int]]:
    """name -> what runs, and the parameter counts; `reference again` is the noise floor."""
    reference, *_ = case.peers
    precision, compiled = mode.removesuffix("+compile"), mode.endswith("+compile")
    built = {"ours": case.ours, **case.peers, f"{reference} again": case.peers[reference]}
    runs, counts = {}, {}
    for name, build in built.items():
        model, channels_last = build().to(device), case.channels_last and name == "ours"
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if compiled:
            model.compile()
        if work in ("step", "gradients"):
            make = fused_optimizer if name == "ours" else plain_optimizer
            optimizer = make(case.optimizer, [p for p in model.parameters() if p.requires_grad]) if work == "step" else None
            runs[name] = training(case, model, optimizer, precision, channels_last)
        else:
            runs[name] = inference(case, model, precision, channels_last)
        counts[name] = sum(p.numel() for p in model.parameters())
    return runs, counts


def measure(case: Case, work: str, mode: str, device: torch.device, repeats: int, seconds: float = 1.0) -> dict:
    """Milliseconds and paired ratios, quartiles each (a timing takes about so many seconds); operations and bytes of one run."""
    runs, counts = sides(case, work, mode, device)
    reference, *_ = case.peers
    times: dict[str, list[float]] = {name: [] for name in runs}
    inner = 1  # runs a timing
    for repeat in range(repeats + 2):
        batch = case.fresh(device)
        for name in list(runs)[:: 1 if repeat % 2 else -1]:
            elapsed = _seconds(lambda: runs[name](batch), inner, device)  # noqa: B023
            times[name].append(elapsed)
        if repeat == 1:  # the first two were to warm up
            inner = max(1, round(seconds / times[reference][1]))
            times = {name: [] for name in runs}
    quartiles = lambda values: [round(q, 4) for q in statistics.quantiles(values, n=4)]
    ratio = lambda name, base: quartiles([a / b for a, b in zip(times[name], times[base])])
    del runs[f"{reference} again"]
    return {
        "parameters": counts,
        "milliseconds": {name: [round(1e3 * q, 2) for q in statistics.quantiles(values, n=4)] for name, values in times.items()},
        "ratio_to": {peer: ratio("ours", peer) for peer in case.peers},
        "noise_floor": ratio(f"{reference} again", reference),
        **({} if mode.endswith("+compile") else counted(case, runs, device)),  # compiled kernels are no operators
    }


def counted(case: Case, runs: dict[str, Run], device: torch.device) -> dict[str, dict[str, float]]:
    """Memory and operations of one run of each side."""
    works = {name: partial(run, case.fresh(device)) for name, run in runs.items()}
    found = {"peak_mib": {name: round(peak_bytes(work, device) / 2**20, 1) for name, work in works.items()}}
    if case.countable:
        found["gigaflop"] = {name: round(flops(work) / 1e9, 3) for name, work in works.items()}
    return found


def _seconds(work: Callable[[], None], times: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / times


def verdict(result: dict) -> str:
    low, _, high = result["noise_floor"]
    if low < 0.95 or high > 1.05:
        return "not measured"
    worst = max(quartiles[2] for quartiles in result["ratio_to"].values())
    return "not slower" if worst <= 1 else f"{100 * (worst - 1):.0f} % slower at the upper quartile"


def asked(result: dict) -> str:
    """Ours: MiB, GFLOP/s, its share of a matrix product's pace."""
    words = f"  {result['peak_mib']['ours']:.0f} MiB" if "peak_mib" in result else ""
    if "gigaflop" in result:
        pace = result["gigaflop"]["ours"] / (result["milliseconds"]["ours"][1] / 1e3)
        words += f"  {pace:.0f} GFLOP/s ({100 * pace / result['matmul_gigaflops']:.0f} %)"
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--modes", default="fp32,bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if unknown := [name for name in options.cases.split(",") if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}: choose from {', '.join(CASES)}")
    device, results = torch.device(options.device), {}
    pace = {mode: matmul_pace(mode.removesuffix("+compile"), device) for mode in options.modes.split(",")}
    for name in options.cases.split(","):
        for work in CASES[name].works:
            for mode in options.modes.split(","):
                torch.manual_seed(0)
                result = measure(CASES[name], work, mode, device, options.repeats, options.seconds)
                results[f"{name} {work} {mode}"] = result | {"matmul_gigaflops": round(pace[mode] / 1e9, 1), "verdict": verdict(result)}
                ours, floor = result["milliseconds"]["ours"][1], "[{0:.2f}, {2:.2f}]".format(*result["noise_floor"])
                ratios = ", ".join(f"{peer} {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]" for peer, q in result["ratio_to"].items())
                print(f"{name:<17} {work:<10} {mode}  {ours:8.1f} ms{asked(results[f'{name} {work} {mode}'])}  ratio to {ratios}"
                      f"  noise {floor}  {verdict(result)}", flush=True)  # fmt: skip
                if options.record:
                    options.record.write_text(json.dumps({"repeats": options.repeats, **environment(device), "results": results}, indent=1))


if __name__ == "__main__":
    main()
