"""Weights in the names of another implementation: which converter of a paper's convert.py turns them into ours, and what then fits."""

import contextlib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog import find_preset
from zoo.errors import ConfigError
from zoo.hub.sources import WeightsError, build

OURS = "zoo"  # the source whose names are ours already
NOT_ITS_NAMES = (ValueError, KeyError, IndexError, RuntimeError)  # what a converter raises of names that it doesn't know
State = Mapping[str, Tensor]


def in_our_names(network: nn.Module, state: State) -> State:
    """The weights as the converter of the network's paper gives them by which most tensors fit; as they are where none gives more.

    Raises:
        WeightsError: if they would load, but are of a network that computes something else.
    """
    ours, paper = network.state_dict(keep_vars=True), re.match(r"zoo\.papers\.(\w+)", type(network).__module__)
    if not paper or not set(ours) - set(state):
        return state
    best, layout, fitting = state, OURS, compare(ours, dict(state))[1]
    for name, convert in converters(paper[1], None).items():
        with contextlib.suppress(*NOT_ITS_NAMES):
            renamed = dict(convert(state))
            if (count := compare(ours, renamed)[1]) > fitting:
                best, layout, fitting = renamed, name, count
    for (source, preset), meant in getattr(_module(paper[1]), "MEANT_FOR", {}).items():
        with torch.device("meta"):
            if source == layout and _strides(build(preset, {}, preset)) == _strides(network):
                raise WeightsError(f"the weights of {layout} would load, but are of a network that computes something else: {meant}")
    return best


def converters(paper: str, layout: str | None) -> dict[str, Callable[[State], State]]:
    """Source -> converter; our own names first. Converters that need more than a state dict are left to Python."""
    module = _module(paper)
    found: dict[str, Callable[[State], State]] = {OURS: lambda state: state}
    for name in sorted(dir(module), key="from_official".__eq__):  # last, since BERT's takes the names of transformers, too
        if name.startswith("from_"):
            convert = getattr(module, name)
            needed = [p for p in inspect.signature(convert).parameters.values() if p.default is p.empty]
            if len(needed) == 1:
                found[name.removeprefix("from_")] = convert
            elif layout == name.removeprefix("from_"):
                raise ConfigError(f"{module.__name__}.{name} needs {', '.join(p.name for p in needed[1:])} besides the weights: call it in Python")
    if layout is None:
        return found
    if layout not in found:
        raise ConfigError(f"--from {layout}: {paper} has converters from {', '.join(found)}")
    return {layout: found[layout]}


def compare(ours: State, theirs: dict[str, Tensor]) -> tuple[str | None, int]:
    """What doesn't fit first, and how many tensors do. Counters of batches, which old files lack, become 0."""
    for name, value in ours.items():
        if name.endswith("num_batches_tracked"):
            theirs.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    same: dict[int, list[str]] = {}
    for name, value in ours.items():
        same.setdefault(id(value), []).append(name)
    fault, fitting = None, 0
    for names in same.values():
        given = next((name for name in names if name in theirs), None)
        if given is not None and theirs[given].shape == ours[given].shape:
            fitting += not given.endswith("num_batches_tracked")
        elif given is None:
            fault = fault or f"has no '{names[0]}', which there is"
        else:
            fault = fault or f"has '{given}' of shape {tuple(theirs[given].shape)}, but it is {tuple(ours[given].shape)}"
    extra = sorted(set(theirs) - set(ours))
    return fault or (f"has '{extra[0]}', for which there is no place" if extra else None), fitting


def refuse_twin(preset: str, layout: str) -> None:
    """Weights may load into a preset that computes something else: the paper's convert.py knows."""
    meant = getattr(_module(find_preset(preset).key), "MEANT_FOR", {}).get((layout, preset))
    if meant:
        raise WeightsError(f"the weights of {layout} would load into {preset}, but are of a network that computes something else: --to {meant}")


def _module(paper: str) -> Any:
    name = f"zoo.papers.{paper}.convert"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _strides(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: module.stride for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
