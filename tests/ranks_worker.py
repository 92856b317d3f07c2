"""Started by torchrun: trains toy runs on every rank. Arguments: a folder, then cases `toy:label:overrides` with overrides joined by spaces."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.toys import toy, without_curves
from zoo.training.loop import run


def main(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    without_curves()
    dist.init_process_group("gloo")  # once for all cases: the runs find it and leave it alone
    for case in cases:
        name, label, overrides = case.split(":", 2)
        assert run(toy(name, folder / name / label, *overrides.split("|"))) == 0
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
