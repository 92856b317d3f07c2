"""Where weights come from: what ships with the package, a file, a run directory, a folder of ours or of transformers, the hub."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import ZooError
from zoo.hub.sources import CONFIG, WEIGHTS, WeightsError, fetched, may_be_id, preset_of, read_json, tensors
from zoo.hub.transformers_folder import BUILDERS
from zoo.weights import FOLDER, about, shipped


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


def _of_package(preset: str, name: str) -> Source:
    return Source(f"weights={name!r}", tensors(FOLDER / f"{preset}-{name}.safetensors"), preset, about(preset, name)["arguments"])


def _of_folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise WeightsError(f"there is no {folder}: give a run directory, a .safetensors file, or a folder as save_pretrained writes it")
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
