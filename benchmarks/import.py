"""How long it takes until something happens: commands and imports in fresh processes, in turn, the median of several.

python -m benchmarks import [--repeats 7] [--record results/benchmarks/import.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from zoo.environment import environment

PYTHON = [sys.executable, "-c"]
STARTS = {
    "python": [*PYTHON, "pass"],
    "import torch": [*PYTHON, "import torch"],
    "import zoo": [*PYTHON, "import zoo"],
    "from zoo.papers.resnet import resnet50": [*PYTHON, "from zoo.papers.resnet import resnet50"],
    "python -m zoo list": [sys.executable, "-m", "zoo", "list"],
    "python -m zoo info resnet50": [sys.executable, "-m", "zoo", "info", "resnet50"],
    "a misspelt key": [sys.executable, "-m", "zoo", "train", "paper=resnet", "optim.lrr=1"],
    "paper=resnet --cfg job": [sys.executable, "-m", "zoo", "train", "paper=resnet", "--cfg", "job"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for repeat in range(options.repeats + 1):
        for name, command in STARTS.items():
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=name != "a misspelt key")
            if repeat:  # the first round fills the disk's cache
                times[name].append(time.perf_counter() - start)
    seconds = {name: [round(q, 3) for q in statistics.quantiles(values, n=4)] for name, values in times.items()}
    for name, (low, middle, high) in seconds.items():
        print(f"{name:<42} {middle:6.2f} s  [{low:.2f}, {high:.2f}]")
    if options.record:
        options.record.write_text(json.dumps({"seconds": seconds, "repeats": options.repeats, **environment(torch.device("cpu"))}, indent=1))


if __name__ == "__main__":
    main()
