"""The model of a finished run as a part of a second one: a prior, a decoder or an upsampler over what a first stage has learnt."""

import importlib
from pathlib import Path

from torch import nn

from zoo.errors import ConfigError
from zoo.run_directory import read_config
from zoo.schema import check_call
from zoo.training.build import call
from zoo.training.init import read_weights
from zoo.training.state import load_module


def first_stage(run: str, model: str, data: dict) -> nn.Module:
    """The model of the run directory `run`, with its final weights (the average, where there is one), frozen and in evaluation mode.

    A configuration names it as a sub-network that no turn trains; from the first checkpoint on, the second run has the weights itself:

        model:
          prior: ...
          first_stage:
            _target_: zoo.training.first_stage.first_stage
            run: runs/vq_vae/mnist
            model: zoo.papers.vq_vae.VQVAE
            data: {_target_: "${data._target_}", normalise: "${data.normalise}", image_size: "${data.image_size}", channels: "${data.channels}"}

    Args:
        model: the class that the model must have, by its dotted name.
        data: keys of the second run's data in which the first one's must be the same.

    Raises:
        ConfigError: if there is no such run, it is not finished, has another model, was trained on other data, or its weights don't fit.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"the first stage {run} does not exist: train it first, or name another run directory")
    cfg = read_config(folder)
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(f"the first stage {run} is not finished: train {cfg['name']} to its end")
    module, _, name = model.rpartition(".")
    wanted = getattr(importlib.import_module(module), name)
    network = call("model", check_call("model", cfg["model"], foreign=())) if "_target_" in cfg["model"] else None
    if not isinstance(network, wanted):
        raise ConfigError(f"the first stage {run} is a run of {cfg['name']}, whose model is no {name}: name the run directory of one")
    for key, ours in data.items():
        if (theirs := cfg["data"].get(key)) != ours:
            raise ConfigError(f"the first stage {run} was trained on data.{key}={theirs}, but here data.{key} is {ours}: both need the same")
    weights, path = read_weights(str(folder))
    load_module(network, {name.removeprefix("model."): value for name, value in weights.items()}, str(path))
    return network.requires_grad_(False).eval()
