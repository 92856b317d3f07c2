"""What the cache and the batch are worth in decoding: transformer_small with random weights, so that nothing ends early.

- greedy: 128 tokens for 16 sentences with the cache, beside 128 forward passes over all tokens so far;
- beam: a beam of 4 over 32 sentences of 24 tokens together, beside one sentence after the other.

All in one process on the same fresh sentences, the order reversed every other time; a second run of the slower way is the noise floor.

python -m benchmarks decoding [--device cpu] [--repeats 5] [--record results/benchmarks/decoding.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import zoo
from zoo.environment import environment
from zoo.objectives.beam_search import BOS, beam_search

LENGTH, SIZE, EXTRA = 128, 24, 24


def cached(model: torch.nn.Module, source: Tensor) -> Tensor:
    memory, cache = model.start(source)
    tokens, said = source.new_full((len(source),), BOS), []
    for _ in range(LENGTH):
        logits, cache = model.step(tokens, memory, cache)
        tokens = logits.argmax(-1)
        said.append(tokens)
    return torch.stack(said, 1)


def uncached(model: torch.nn.Module, source: Tensor) -> Tensor:
    said = source.new_full((len(source), 1), BOS)
    for _ in range(LENGTH):
        said = torch.cat([said, model(source, said)[:, -1].argmax(-1, keepdim=True)], 1)
    return said[:, 1:]


def together(model: torch.nn.Module, source: Tensor) -> Tensor:
    return beam_search(model, source, beam=4, extra=EXTRA)[0]


def one_by_one(model: torch.nn.Module, source: Tensor) -> Tensor:
    return torch.cat([beam_search(model, row[None], beam=4, extra=EXTRA)[0] for row in source])


def compare(model: torch.nn.Module, fast: Callable, slow: Callable, sentences: int, device: torch.device, repeats: int) -> dict:
    """Seconds, and paired ratios slow / fast, quartiles each."""
    ways = {"fast": fast, "slow": slow, "slow again": slow}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        source = torch.randint(3, 8000, (sentences, SIZE), device=device)
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            ways[name](model, source)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    quartiles = lambda values: [round(q, 4) for q in statistics.quantiles(values, n=4)]
    ratio = lambda name: quartiles([a / b for a, b in zip(times["slow"], times[name])])
    return {"seconds": {name: quartiles(values) for name, values in times.items()}, "speedup": ratio("fast"), "noise_floor": ratio("slow again")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = zoo.create_model("transformer_small").to(device).eval()
    with torch.no_grad():
        results = {
            "greedy, 128 tokens: with the cache beside without": compare(model, cached, uncached, 16, device, options.repeats),
            "beam of 4: 32 sentences together beside one by one": compare(model, together, one_by_one, 32, device, options.repeats),
        }
    result = {"results": results, "repeats": options.repeats, **environment(device)}
    print(json.dumps(result, indent=1))
    if options.record:
        options.record.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
