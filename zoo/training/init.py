"""Starting from weights that exist: a run, a safetensors file, a folder, an id on the hub; also in the names of other implementations."""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.hub.naming import in_our_names
from zoo.hub.sources import fetched, may_be_id
from zoo.run_directory import read_config
from zoo.training.checkpoint import digest
from zoo.training.state import FrozenSource, kept_elsewhere


def weights_file(source: str, which: str = "auto") -> Path:
    """The file of weights of a run directory or of another folder with a model.safetensors, here or on the hub, or the file itself.

    Args:
        which: of a run: "auto" (averaged if there are any, else raw), "ema" or "raw".

    Raises:
        ConfigError: if there is none.
    """
    path = Path(source).expanduser()
    if may_be_id(source) and path.suffix not in (".safetensors", ".npz"):
        path = fetched(source)
    if (path / "adapter_config.json").is_file():
        raise ConfigError(f"{source} is an adapter without its base: give the directory of its run, which names the base")
    if path.is_dir():
        names = {"auto": ("ema", "model"), "ema": ("ema",), "raw": ("model",)}[which]
        path = next((path / f"{name}.safetensors" for name in names if (path / f"{name}.safetensors").is_file()), path)
    if not path.is_file() or path.suffix not in (".safetensors", ".npz"):
        raise ConfigError(f"{source}: no weights there; give a finished run's directory or a .safetensors file (python -m zoo convert makes one)")
    return path


def read_weights(source: str, which: str = "auto") -> tuple[dict[str, Tensor], Path]:
    """The weights of a run directory, of a .safetensors file or of an .npz file of arrays, and the file they came from; see `weights_file`.

    Raises:
        ConfigError: if there is no such file or it cannot be read.
    """
    path = weights_file(source, which)
    try:
        return (load_file if path.suffix == ".safetensors" else _load_arrays)(path), path
    except Exception as error:  # safetensors has an error class of its own for each layer
        raise ConfigError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from None


def frozen_digests(path: Path) -> dict[str, str]:
    """What a run's final weights leave to other files: the sha256 of each by sub-module, "init" for what the run began with."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("frozen", "{}"))


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
    """Weights of the same networks in another setting, a ViT's of another resolution say, as each network's `adapt_state` changes them; those of
    a lone network may have the names of another implementation."""
    networks = dict(objective.named_children())
    if len(networks) == 1 and named_as(objective, state) is not state:
        state = in_our_names(*networks.values(), state)
    state = named_as(objective, state)
    for name, network in objective.named_children():
        if hasattr(network, "adapt_state"):
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            try:
                state |= {f"{name}.{key}": value for key, value in network.adapt_state(own).items()}
            except ValueError as error:
                raise ConfigError(str(error)) from error
    return state


def start_from(objective: nn.Module, source: str, skip: Sequence[str]) -> str:
    """Copies weights into the objective, except tensors whose name matches a pattern in `skip`; returns the file's sha256.

    Which of them are frozen, so that a run need not store them, is told by `objective.frozen_source`. A run that stores only what it trained is
    read together with the weights that it began with itself.

    Raises:
        ConfigError: names the first tensor that is missing or has another shape.
    """
    weights, path = read_weights(source)
    weights, sha256 = adapted(objective, weights), digest(path)
    state = objective.state_dict(keep_vars=True)
    wanted = {name: names for name, names in _tied(objective).items() if not _skipped(name, skip)}
    missing = [name for name, names in wanted.items() if not any(n in weights for n in names)]
    base = frozen_digests(path).get("init")
    if missing and base:
        found = start_from(objective, _began_with(path), [*skip, *weights])
        if found != base:
            raise ConfigError(f"init: {path} was trained upon other weights than {_began_with(path)} has now: put that file back")
        sha256 += "+" + found
    elif missing:
        raise ConfigError(f"init: {path} has no tensor '{missing[0].removeprefix('model.')}'; {_remedy(state[missing[0]])}")
    for name, names in wanted.items():
        if name not in missing:
            _copy(state[name], weights[next(n for n in names if n in weights)], name, path)
    frozen = {n for name, names in wanted.items() for n in names if isinstance(state[name], nn.Parameter) and not state[name].requires_grad}
    if frozen:
        objective.frozen_source = FrozenSource(sha256, frozenset(frozen))
    return sha256


def in_words(objective: nn.Module, cfg: Mapping[str, Any]) -> list[str]:
    """What a run with `init` begins with, a line."""
    if not cfg["init"]:
        return []
    fresh = [name.removeprefix("model.") for name in _tied(objective) if _skipped(name, cfg["init_skip"])]
    words = f"; afresh: {', '.join(fresh[:4]) or 'nothing has such a name'}{', ...' if fresh[4:] else ''}" if cfg["init_skip"] else ""
    return [f"began with the weights of {cfg['init']}{words}"]


def restore_frozen(objective: nn.Module, state: Mapping[str, Tensor], cfg: Mapping[str, Any], stated: Mapping[str, str], run: str) -> None:
    """Reads the frozen weights that a run left to the file that it began with, where its own `state` lacks them.

    Args:
        stated: the digests of such files, first stages included, as the run has them.

    Raises:
        ConfigError: if they are other files now.
    """
    if cfg["init"] and any(not any(n in state for n in names) for names in _tied(objective).values()):
        start_from(objective, cfg["init"], cfg["init_skip"])
    _, sources = kept_elsewhere(objective)
    for name, sha256 in stated.items():
        if sources.get(name) != sha256:
            raise ConfigError(f"the frozen weights of '{name}' are not those that {run} was trained with: put their file back")


def _began_with(path: Path) -> str:
    """The `init` of the run that a file of final weights is of."""
    if not (path.parent / "config.yaml").is_file():
        raise ConfigError(f"init: {path} has only what its run trained, upon weights that its config.yaml names: give the run's directory")
    return read_config(path.parent)["init"]


def _remedy(value: Tensor) -> str:
    if isinstance(value, nn.Parameter) and not value.requires_grad:
        return "it is frozen and would stay as it is: give the weights that this model is for"
    return "name it in init_skip to start it afresh"


def _tied(objective: nn.Module) -> dict[str, list[str]]:
    """The first name of each tensor that a first stage doesn't bring along -> all its names; in a file it stands under one of them."""
    names: dict[int, list[str]] = {}
    brought, _ = kept_elsewhere(objective)
    for name, value in objective.state_dict(keep_vars=True).items():
        if name not in brought:
            names.setdefault(id(value), []).append(name)
    return {same[0]: same for same in names.values()}


def _skipped(name: str, patterns: Sequence[str]) -> bool:
    short = name.removeprefix("model.")
    return any(fnmatch.fnmatch(short, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns)


@torch.no_grad()
def _copy(value: Tensor, given: Tensor, name: str, path: Path) -> None:
    if given.shape != value.shape:
        short, theirs, ours = name.removeprefix("model."), tuple(given.shape), tuple(value.shape)
        raise ConfigError(f"init: '{short}' has shape {theirs} in {path}, but {ours} in the model; {_remedy(value)}")
    value.copy_(given)
