"""python -m zoo export: the weights of a finished run as a folder that others can use, or as weights that ship with the package."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from zoo.catalog import list_models
from zoo.errors import ConfigError
from zoo.hub import create, from_pretrained, save_pretrained
from zoo.hub.card import record_of
from zoo.hub.sources import WeightsError
from zoo.hub.words import own_words
from zoo.weights import FOLDER

HELP = """usage: python -m zoo export run=<run directory> to=<folder> [preset=...] [network=...]

  python -m zoo export run=runs/resnet/quick to=my_resnet            model.safetensors, config.json and a model card
  python -m zoo export run=runs/gan/quick to=my_gan network=generator    of a run that trained several networks
  python -m zoo export run=runs/resnet/mine preset=resnet20 as=digits    into the package: zoo.create_model("resnet20", weights="digits")
  python -m zoo export run=... preset=... as=... dtype=fp16              in half the size; what ships has 2 MB at most
"""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMIT = 2_000_000  # bytes of a file that ships
# What of metrics.json stays with weights that ship.
KEPT = ("name", "metrics", "split", "data", "step", "seed", "config", "config_sha256", "trained_on")


def export_command(argv: list[str]) -> int:
    """Prints what it wrote."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(HELP, end="")
        return 0 if argv else 2
    given = own_words(argv, ("run", "to", "as", "preset", "network", "dtype"))
    if "run" not in given or ("to" in given) == ("as" in given):
        raise ConfigError("give run=<run directory> and either to=<folder> or as=<name of weights that ship>")
    if "preset" in given:
        model = create(given["preset"], given["run"], (), {})
    else:
        model = from_pretrained(given["run"], given.get("network"))
    if "to" in given:
        run = Path(given["run"]).expanduser()
        print(save_pretrained(model, given["to"], run=run if record_of(run) else None))
    else:
        print(ship(model, given["as"], given["run"], given.get("dtype", "fp32")))
    return 0


def ship(model: nn.Module, name: str, run: str, dtype: str = "fp32") -> Path:
    """Writes zoo/weights/<preset>-<name>.safetensors, and beside it a .json with what made it.

    Raises:
        WeightsError: if the model is not of a preset, the run was not evaluated, or the file would be larger than 2 MB.
    """
    from safetensors.torch import save

    from zoo.training.checkpoint import write_atomically
    from zoo.training.state import module_state

    made: Any = model.made_by
    preset, arguments = made["preset"], made["arguments"]
    if preset not in list_models():
        raise WeightsError(f"{run} trained {preset}, which is no preset by itself: preset=... says which one that is")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if not name.isidentifier():
        raise ConfigError(f"as={name}: letters, digits and _ make a name")
    record = record_of(Path(run).expanduser())
    if record is None:
        raise WeightsError(f"{run} has no metrics of its final weights: python evaluate.py run={run}")
    state = {key: value.to(DTYPES[dtype]) if value.is_floating_point() else value for key, value in module_state(model).items()}
    content = save(state, metadata={"format": "pt"})
    if len(content) > LIMIT:
        raise WeightsError(f"{len(content):,} bytes are more than the {LIMIT:,} that ship: dtype=fp16 halves them; to=<folder> has no limit")
    file = FOLDER / f"{preset}-{name}.safetensors"
    kept = {key: record[key] for key in KEPT if key in record}
    about = {"preset": preset, "arguments": arguments, "version": zoo.__version__, "dtype": dtype, "run": kept}
    write_atomically(file, content)
    write_atomically(file.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
    return file
