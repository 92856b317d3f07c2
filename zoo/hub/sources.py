"""Reading weights: files, repositories on the hub, and the models that they are of.

Nothing is unpickled, and nothing but zoo's own classes is called: neither a folder nor the hub is a place to run code from.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog import find_preset, list_models
from zoo.errors import ConfigError, ZooError

FETCHED = ["*.safetensors", "*.json", "*.txt"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a folder


class WeightsError(ZooError, ValueError):
    """Weights that are not there, cannot be read, or are another model's."""


def target_of(preset: str) -> str:
    """The dotted name of "resnet20" or "resnet.CifarResNet"."""
    return f"zoo.papers.{preset}" if "." in preset else f"zoo.papers.{find_preset(preset).key}.{preset}"


def preset_of(target: str) -> str:
    """The way back."""
    short, name = target.removeprefix("zoo.papers."), target.rpartition(".")[2]
    return name if name in list_models() and target_of(name) == target else short


def build(preset: str, arguments: Mapping[str, Any], told: str) -> nn.Module:
    """The model of a preset or class of ours, arguments checked as those of a configuration are.

    Raises:
        WeightsError: if there is no such preset, or it refuses its arguments.
    """
    from zoo.schema import check_call
    from zoo.training.build import call

    try:
        return call("model", check_call("model", {**arguments, "_target_": target_of(preset)}, ()))
    except (ConfigError, ValueError) as error:
        raise WeightsError(f"{told}: {error}") from None


def written(preset: str, arguments: Mapping[str, Any]) -> str:
    """resnet20(num_classes=10)."""
    return f"{preset}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def may_be_id(name: str) -> bool:
    """Whether nothing lies there and the name could be that of a repository on the hub: "owner/name"."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def tensors(path: Path) -> dict[str, Tensor]:
    """Of a safetensors file.

    Raises:
        WeightsError: if it is none.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors has an error class of its own for each layer
        raise WeightsError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}") from None


def fetched(repo_id: str) -> Path:
    """The folder of a repository on the hub: downloaded, or out of the cache that an earlier download left.

    Raises:
        WeightsError: if there is no such repository, or no connection and nothing in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=FETCHED, ignore_patterns=["*/*"]))
    except RepositoryNotFoundError:
        raise WeightsError(f"{repo_id!r} is no folder here, and the hub has no such repository, or a private one (hf auth login)") from None
    except Exception as error:  # of several libraries: no network, a proxy's refusal, a full disk
        raise WeightsError(
            f"{repo_id!r} is no folder here, and it could not be fetched from the hub ({type(error).__name__}): "
            "without a connection, fetch it elsewhere and give its folder"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has no {path.name}: give a folder as save_pretrained writes it, ours or that of transformers") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is not a map of names to values")
    return found
