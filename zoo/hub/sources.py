"""Where weights come from: what ships with the package, a file, a run directory, a folder of ours or of transformers, the hub.

Nothing is unpickled, and nothing but zoo's own classes is called: neither a folder nor the hub is a place to run code from.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog import find_preset, list_models
from zoo.errors import ConfigError, ZooError
from zoo.hub.transformers_folder import BUILDERS
from zoo.weights import FOLDER, about, shipped

FETCHED = ["*.safetensors", "*.json", "*.txt"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class WeightsError(ZooError, ValueError):
    """Weights that are not there, cannot be read, or are another model's."""


@dataclass(frozen=True)
class Source:
    """Weights in the names of one of our models, and what is known of that model.

    Args:
        told: where they lie, for errors.
        preset: a name of the catalogue ("resnet20"), or a class or function of a paper ("resnet.CifarResNet"); None where nobody knows.
        network: which one, of a run that has several ("generator").
    """

    told: str
    state: Mapping[str, Tensor]
    preset: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    network: str | None = None


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


def lookup(where: str | Path, preset: str | None = None) -> list[Source]:
    """What lies there: one source, or of a run that trained several networks as many.

    Args:
        where: a folder, a run directory, a .safetensors file, an id on the hub ("owner/name"), or, given a preset, a name of weights that
            ship with it. A path begins with ./ where it could be taken for one of the last two.

    Raises:
        WeightsError: if there is nothing, or it cannot be read.
    """
    name, path = str(where), Path(where).expanduser()
    if preset and re.fullmatch(r"\w+", name):
        if name in shipped(preset).get(preset, []):
            return [_of_package(preset, name)]
        if not path.exists():
            known = ", ".join(shipped(preset).get(preset, ["none do"]))
            raise WeightsError(f"{name!r} is no file or folder here, and no weights of that name ship with {preset} ({known})")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise WeightsError(f"{path} is no .safetensors file: python -m zoo convert makes one of .pt, .pth, .bin, .ckpt and .npz")
        return [Source(str(path), tensors(path))]
    if (path / "config.yaml").is_file():
        return _of_run(path)
    return [_of_folder(fetched(name) if isinstance(where, str) and may_be_id(name) else path)]


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


def _of_package(preset: str, name: str) -> Source:
    return Source(f"weights={name!r}", tensors(FOLDER / f"{preset}-{name}.safetensors"), preset, about(preset, name)["arguments"])


def _of_folder(folder: Path) -> Source:
    config, path = read_json(folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS}: other formats are not read; save_pretrained writes this one")
    state = tensors(path)
    if "preset" in config:
        preset, arguments = config["preset"], config.get("arguments", {})
        if not (isinstance(preset, str) and re.fullmatch(r"\w+(\.\w+)*", preset) and isinstance(arguments, dict)):
            raise WeightsError(f"{folder / CONFIG}: preset must be a name, and arguments a map")
        return Source(str(path), state, preset, arguments)
    kind = config.get("model_type")
    if kind not in BUILDERS:
        raise WeightsError(f"{folder}: model_type {kind!r} is not among {', '.join(BUILDERS)}, which from_pretrained knows")
    try:
        preset, arguments, ours = BUILDERS[kind](config, state)
    except KeyError as error:
        raise WeightsError(f"{folder / CONFIG} does not say {error.args[0]}") from None
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from None
    return Source(str(path), ours, preset, arguments)


def _of_run(folder: Path) -> list[Source]:
    """The networks of a finished run: the average of their weights where there is one, frozen ones from where the run had them."""
    from zoo.training.first_stage import load_frozen

    try:
        frozen = load_frozen(str(folder))
    except ZooError as error:
        raise WeightsError(str(error)) from None
    model = frozen.cfg["model"]
    sections = {"model": model} if "_target_" in model else model
    found = []
    for name, section in sections.items():
        if section["_target_"].startswith("zoo.papers."):  # a first stage is another run's
            arguments = {key: value for key, value in section.items() if key != "_target_"}
            told = str(folder) if len(sections) == 1 else f"{folder}, its {name},"
            found.append(Source(told, getattr(frozen.objective, name).state_dict(), preset_of(section["_target_"]), arguments, name))
    if not found:
        targets = ", ".join(section["_target_"] for section in sections.values())
        raise WeightsError(f"{folder} is a run of {targets}, not of a model of zoo: model.safetensors there is for its own load_state_dict")
    return found
