"""Starting from weights that exist: a run, or a safetensors file."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.training.checkpoint import digest


def read_weights(source: str, which: str = "auto") -> tuple[dict[str, Tensor], Path]:
    """The weights of a run directory, of a .safetensors file or of an .npz file of arrays, and the file they came from.

    Args:
        which: of a run: "auto" (averaged if there are any, else raw), "ema" or "raw".

    Raises:
        ConfigError: if there is no such file or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        names = {"auto": ("ema", "model"), "ema": ("ema",), "raw": ("model",)}[which]
        path = next((path / f"{name}.safetensors" for name in names if (path / f"{name}.safetensors").is_file()), path)
    if not path.is_file() or path.suffix not in (".safetensors", ".npz"):
        raise ConfigError(f"{source}: no weights there; give a finished run's directory or a .safetensors file")
    try:
        return (load_file if path.suffix == ".safetensors" else _load_arrays)(path), path
    except Exception as error:  # safetensors has an error class of its own for each layer
        raise ConfigError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None


def _load_arrays(path: Path) -> dict[str, Tensor]:
    """What JAX projects publish. Pickled objects in it are refused, not loaded."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def named_as(objective: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model alone fit an objective whose only sub-network is called `model`."""
    networks = [name for name, _ in objective.named_children()]
    if len(networks) == 1 and not any(name.startswith(f"{networks[0]}.") for name in state):
        return {f"{networks[0]}.{name}": value for name, value in state.items()}
    return state


def adapted(objective: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same networks in another setting, a ViT's of another resolution say, as each network's `adapt_state` changes them."""
    state = named_as(objective, state)
    for name, network in objective.named_children():
        if hasattr(network, "adapt_state"):
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            try:
                state |= {f"{name}.{key}": value for key, value in network.adapt_state(own).items()}
            except ValueError as error:
                raise ConfigError(str(error)) from error
    return state


def start_from(objective: nn.Module, source: str | None, skip: Sequence[str]) -> str | None:
    """Copies weights into the objective, except parameters whose name matches a pattern in `skip`; returns the file's sha256.

    Raises:
        ConfigError: names the first tensor that is missing or has another shape.
    """
    if source is None:
        return None
    weights, path = read_weights(source)
    weights = adapted(objective, weights)
    tied: dict[int, list[str]] = {}  # such tensors stand in the file under one of their names
    for name, value in objective.state_dict(keep_vars=True).items():
        names = tied.setdefault(id(value), [])
        names.append(name)
        short = name.removeprefix("model.")
        if any(fnmatch.fnmatch(short, pattern) or fnmatch.fnmatch(name, pattern) for pattern in skip):
            continue
        given = next((n for n in names if n in weights), None)
        if given is None:
            raise ConfigError(f"init: {path} has no tensor '{short}'; name it in init_skip to start it afresh")
        if weights[given].shape != value.shape:
            theirs, ours = tuple(weights[given].shape), tuple(value.shape)
            raise ConfigError(f"init: '{short}' has shape {theirs} in {path}, but {ours} in the model; init_skip starts it afresh")
        with torch.no_grad():
            value.copy_(weights[given])
    return digest(path)
