"""What a generative model draws while it is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.data.base import Data
from zoo.evaluation.pictures import grid, save_picture
from zoo.evaluation.statistics import frozen
from zoo.training.distributed import World
from zoo.training.seeds import mixed


def draw(objective: nn.Module, data: Data, cfg: Mapping[str, Any], world: World, step: int) -> None:
    """Writes pictures/samples-<step>.png and the objective's own pictures, from the same noise and held-out images each time, which are also
    evaluate.py's."""
    if data.decode is not None:
        return
    generator, drawn = torch.Generator(world.device).manual_seed(mixed(cfg["seed"], -3)), {}
    with frozen(objective, cfg["trainer"]["precision"], world.device):  # on every rank: with sharded parameters all of them take part
        if hasattr(objective, "sample"):
            drawn["samples"] = grid(objective.sample(64, generator))
        if hasattr(objective, "pictures"):
            split = next(split for split in (data.test, data.valid, data.train) if split is not None)
            (first, *_), *_ = split.sweeps(min(cfg["data"]["batch_size"], 64))
            drawn |= objective.pictures(split.fetch(first), generator)
    if world.first:
        for name, picture in drawn.items():
            save_picture(picture, Path(cfg["run_dir"]) / "pictures" / f"{name}-{step:08d}.png")
