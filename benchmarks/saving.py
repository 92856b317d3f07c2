"""What a checkpoint costs beside a plain save: digests of every file, a manifest, a directory built aside and renamed, all of it on the disk.

The plain one is a file written aside by torch.save, synced and renamed: what it takes to survive a kill. 256 MB: weights and two moments.

python -m benchmarks saving [--repeats 9] [--record results/benchmarks/saving.json]
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from zoo.environment import environment
from zoo.training.checkpoint import save_checkpoint

PARAMETERS = 2**28 // 4 // 3


def plain(folder: Path, content: dict) -> None:
    part = folder / ".plain"
    with open(part, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / "plain.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    weights = {"model.weight": torch.randn(PARAMETERS)}
    training = {"optimizer": {0: {"exp_avg": torch.randn(PARAMETERS), "exp_avg_sq": torch.rand(PARAMETERS)}}}
    times: dict[str, list[float]] = {"checkpoint": [], "plain": [], "plain again": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(options.repeats + 1):
            sides = {
                "checkpoint": lambda step=repeat: save_checkpoint(folder / "checkpoints", step, {"weights": weights}, training, {}),
                "plain": lambda: plain(folder, {"weights": weights, **training}),
                "plain again": lambda: plain(folder, {"weights": weights, **training}),
            }
            for side in list(sides)[:: 1 if repeat % 2 else -1]:
                os.sync()
                start = time.perf_counter()
                sides[side]()
                if repeat:  # the first round makes the disk ready
                    times[side].append(time.perf_counter() - start)
            shutil.rmtree(folder / "checkpoints")
    quartiles = lambda values: [round(q, 3) for q in statistics.quantiles(values, n=4)]
    ratio = lambda a: quartiles([x / y for x, y in zip(times[a], times["plain"])])
    seconds = {side: quartiles(values) for side, values in times.items()}
    found = {"seconds": seconds, "ratio": ratio("checkpoint"), "noise_floor": ratio("plain again"), "repeats": options.repeats}
    print(json.dumps(found))
    if options.record:
        options.record.write_text(json.dumps({**found, **environment(torch.device("cpu"))}, indent=1))


if __name__ == "__main__":
    main()
