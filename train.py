"""Trains a paper's model: python train.py paper=resnet optim.lr=0.05 (python train.py --help shows every key)."""

import sys

from zoo.cli import main

if __name__ == "__main__":
    sys.exit(main("train", sys.argv[1:]))
