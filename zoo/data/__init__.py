"""Data sets, each a function that a configuration names: `_target_: zoo.data.digits`. What only one of them needs loads with it."""

from zoo.data.base import Data
from zoo.data.folders import images
from zoo.data.image_sets import cifar10, digits, fashion_mnist, mnist
from zoo.data.loader import stream, sweep
from zoo.data.pairs import dates, multi30k, parallel_files, wmt14
from zoo.data.text import manual, ptb, text_file, tiny_shakespeare

__all__ = [
    "Data",
    "cifar10",
    "dates",
    "digits",
    "fashion_mnist",
    "images",
    "manual",
    "mnist",
    "multi30k",
    "parallel_files",
    "ptb",
    "stream",
    "sweep",
    "text_file",
    "tiny_shakespeare",
    "wmt14",
]
