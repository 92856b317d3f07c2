"""python -m zoo convert: weights in the names of another implementation -> a safetensors file, or a folder, in ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.catalog import find_preset
from zoo.errors import ConfigError
from zoo.hub import create, save_pretrained
from zoo.hub.naming import NOT_ITS_NAMES, State, compare, converters, refuse_twin
from zoo.hub.sources import WeightsError, build, fetched, may_be_id, tensors, written
from zoo.hub.words import pairs

HELP = """usage: python -m zoo convert <file, folder or hub id> --to <preset> [--from <source>] [--out <file or folder>] [argument=value ...]

  python -m zoo convert resnet50.pth --to resnet50_v1_5                      into resnet50_v1_5.safetensors
  python -m zoo convert google/vit-base-patch16-224 --to vit_b16 --out vit   into a folder with config.json and a model card
  python -m zoo convert mine.pt --to resnet18 --from torchvision num_classes=7
  python -m zoo convert bert/ --to bert_base head=pretraining

Reads .safetensors, .npz and, with weights_only=True, .pt, .pth, .bin and .ckpt. Without --from every converter of the paper is tried.
"""
STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")  # in a folder, in this order
PICKLED = (".bin", ".pth", ".pt", ".ckpt")
NESTED = ("state_dict", "model_state_dict", "model")  # what a checkpoint calls its weights
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name


def convert_command(argv: list[str]) -> int:
    """Prints what it found and wrote."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP, end="")
        return 0 if argv else 2
    words = list(pairs(argv))
    given, places = {key: value for key, value in words if key}, [word for key, word in words if key is None]
    if len(places) != 1 or "to" not in given:
        raise ConfigError("give one file, folder or hub id, and --to <preset>: python -m zoo convert resnet50.pth --to resnet50_v1_5")
    to, layout, out = given.pop("to"), given.pop("from", None), given.pop("out", None)
    try:
        find_preset(to)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    arguments = {key: _literal(value) for key, value in given.items()}
    layout, state = converted(places[0], to, layout, arguments)
    out = Path(out or f"{to}.safetensors").expanduser()
    print(f"{places[0]}: {len(state)} tensors, {sum(value.numel() for value in state.values()):,} numbers, in the names of {layout}")
    print(write(state, to, arguments, out))
    return 0


def converted(place: str, preset: str, layout: str | None, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Whose names they are in, and the weights in ours: every tensor of the preset, in its shape.

    Args:
        place: a file, a folder or an id on the hub.
        layout: torchvision, timm, ...: a `from_<layout>` of the paper's convert.py; None tries all, and takes that by which most tensors fit.

    Raises:
        WeightsError: if there are no weights; names the first tensor that doesn't fit, by the converter that comes nearest.
    """
    with torch.device("meta"):
        ours = build(preset, arguments, preset).state_dict(keep_vars=True)
    path = _file(place)
    state, attempts = read(path), []
    for name, convert in converters(find_preset(preset).key, layout).items():
        try:
            renamed = dict(convert(state))
        except NOT_ITS_NAMES as error:
            attempts.append((0, f"{path}, read as {name}: {str(error).splitlines()[0]}"))
            continue
        fault, fitting = compare(ours, renamed)
        if fault is None:
            refuse_twin(preset, name)
            return name, {key: renamed[key] for key in ours if key in renamed}
        attempts.append((fitting, f"{path}, read as {name}, {fault} in {written(preset, arguments)}; arguments go behind it, as in num_classes=10"))
    fitting, told = max(attempts, key=lambda attempt: attempt[0])
    if not fitting and layout is None:
        known = ", ".join(converters(find_preset(preset).key, None))
        raise WeightsError(f"{path}: names such as '{next(iter(state), '')}' are none that {preset} has in {known}")
    raise WeightsError(told)


def read(path: Path) -> dict[str, Any]:
    """The tensors of a file; nothing in it is run.

    Raises:
        WeightsError: if it holds anything else.
    """
    if path.suffix == ".safetensors":
        state: Any = tensors(path)
    else:
        try:
            state = _arrays(path) if path.suffix == ".npz" else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch have their own
            why = "it holds more than tensors, which would have to be run" if "weights_only" in str(error).lower() else str(error).splitlines()[0]
            raise WeightsError(f"{path} cannot be read: {why}; torch.save(model.state_dict(), ...) writes what can be") from None
    state = next((state[key] for key in NESTED if isinstance(state, dict) and isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: torch.save(model.state_dict(), ...) writes one")
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def write(state: State, preset: str, arguments: Mapping[str, Any], out: Path) -> Path:
    """One file, or a folder as `zoo.hub.save_pretrained` writes it, where the name doesn't end in .safetensors."""
    from safetensors.torch import save

    from zoo.training.checkpoint import write_atomically

    file = out if out.suffix == ".safetensors" else out / "model.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({name: value.contiguous().clone() for name, value in state.items()}, metadata={"format": "pt"}))
    except OSError as error:
        raise WeightsError(f"{out} cannot be written: {error.strerror}") from None
    return out if file == out else save_pretrained(create(preset, str(file), (), arguments), out)


def _file(place: str) -> Path:
    path = Path(place).expanduser()
    if may_be_id(place) and path.suffix not in (".safetensors", ".npz", *PICKLED):
        path = fetched(place)
    if path.is_dir():
        files = [path / f"{stem}{suffix}" for stem in STEMS for suffix in (".safetensors", ".bin")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise WeightsError(f"{path} has none of {', '.join(file.name for file in files)}: give the file")
        return found
    if not path.is_file():
        raise WeightsError(f"there is no file or folder {place}")
    if path.suffix not in (".safetensors", ".npz", *PICKLED):
        raise WeightsError(f"{path}: give a file that ends in .safetensors, .npz, {', '.join(PICKLED)}")
    return path


def _arrays(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

