"""From configuration to objects: every `_target_` is called here, after `zoo.schema` has checked its arguments."""

import importlib
import inspect
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zoo.errors import ConfigError
from zoo.schema import DATA, FACTS
from zoo.signature import parameters


def call(where: str, values: Mapping[str, Any], **supplied: Any) -> Any:
    """Calls the `_target_` of a configuration section with the keys beside it.

    Raises:
        ConfigError: where the target does not exist or refuses its arguments.
    """
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    target = _imported(where, values["_target_"])
    try:
        return target(**supplied, **arguments)
    except (TypeError, ValueError) as error:
        extra = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        remedy = f"; '~{where}.{extra[1]}' leaves it out" if extra and extra[1] in arguments else ""
        raise ConfigError(f"{where}: {error}{remedy}") from error


def _imported(where: str, name: str) -> Callable[..., Any]:
    """What a dotted name stands for. Of a package it must be part, not only imported there: who allows a package, allows no other."""
    module, _, attribute = name.rpartition(".")
    package = module.partition(".")[0]
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        remedy = "; the folder that it lies in must be on PYTHONPATH" if absent else ""
        raise ConfigError(f"{where}._target_ {name!r} cannot be imported: {error}{remedy}") from error
    if not callable(target):
        raise ConfigError(f"{where}._target_ {name!r} is a {type(target).__name__}, not a class or function")
    home = getattr(target, "__module__", None) or package
    if package != "zoo" and home.partition(".")[0] != package:  # zoo's were looked up in its source
        raise ConfigError(f"{where}._target_ {name!r} comes from {home}, not from {package}")
    return target


def build_objective(cfg: Mapping[str, Any]) -> nn.Module:
    """The objective with its sub-networks, on the CPU (or the meta device, where the caller says so)."""
    model = cfg["model"]
    if "_target_" in model:
        networks = {"model": call("model", model)}
    else:
        networks = {name: call(f"model.{name}", values) for name, values in model.items()}
    return call("objective", cfg["objective"], **networks)


def build_data(cfg: Mapping[str, Any]) -> Any:
    """The data set; its facts must be those that the configuration states, since models are sized by them.

    Of the seed and what every data section may have (sizes of batches, workers, facts) a function gets what its signature names.
    """
    section = {**cfg["data"], "seed": cfg["seed"]}
    named = _named(section["_target_"])
    keys = {key: value for key, value in section.items() if key in named or key not in {"seed", *DATA, *FACTS}}
    if keys.get("root") is not None:
        keys["root"] = str(Path(keys["root"]).expanduser())
    data = call("data", keys)
    for fact in FACTS:
        stated, found = section.get(fact), data.facts.get(fact)
        if stated is not None and found is not None and stated != found:
            raise ConfigError(f"data.{fact} is {stated} in the configuration, but the data set has {found}: set data.{fact}={found}")
    return data


def _named(target: str) -> Container[str]:
    """The arguments of a data set's function; with **others, all that there may be."""
    if target.startswith("zoo."):
        return parameters(target)
    found = inspect.signature(_imported("data", target)).parameters
    return {*found, "seed", *DATA, *FACTS} if any(p.kind is p.VAR_KEYWORD for p in found.values()) else found


def check_fit(objective: nn.Module, data: Any, tokens: int = 0) -> None:
    """Lets the objective refuse data that do not go with its networks, before anything is trained or judged.

    Args:
        tokens: of a text, that a rank takes at once in training; a fact beside those of the data.
    """
    if hasattr(objective, "check"):
        try:
            objective.check(data.facts | ({"tokens": tokens} if tokens else {}))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def check_token_batches(objective: nn.Module, fewest: int, ranks: int, accumulate: int) -> None:
    """Batches of so many tokens differ in their number of items (`fewest` at least): an objective must count, and draw nothing item by item."""
    if not hasattr(objective, "count") or hasattr(objective, "draw"):
        raise ConfigError(f"data.batch_tokens does not go with {type(objective).__name__}, which counts items: give data.batch_size")
    if fewest < ranks * accumulate:
        raise ConfigError(
            f"data.batch_tokens gives batches of as few as {fewest} items, too few for {ranks} ranks x trainer.accumulate {accumulate}: "
            f"raise data.batch_tokens or lower data.max_length"
        )
