"""Evaluates a run: python evaluate.py run=runs/resnet/quick [which=best|ema|raw] (or paper=... weights=<file.safetensors>)."""

import sys

from zoo.cli import main

if __name__ == "__main__":
    sys.exit(main("evaluate", sys.argv[1:]))
