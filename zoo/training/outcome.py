"""What a run leaves behind: where it ran, its weights, its curve, and what to do next."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from zoo.environment import environment
from zoo.report import save_report
from zoo.training.checkpoint import write_atomically
from zoo.training.distributed import World
from zoo.training.logging import Progress


def plan_in_words(cfg: Mapping[str, Any], world: World, objective: nn.Module, items: int) -> str:
    """What a run is about to do: its size, its batch and how that is shared."""
    data, accumulate = cfg["data"], cfg["trainer"]["accumulate"]
    whole, unit = (data["batch_size"], "") if data["batch_size"] else (data["batch_tokens"], " tokens")
    count, learning = (sum(p.numel() for p in objective.parameters() if p.requires_grad or every) for every in (True, False))
    lone = len(set(getattr(objective, "turns", ("model",)))) == 1  # of several players, only the one whose turn it is learns
    trained = f", {learning:,} of them trained" if lone and learning < count else ""
    return (
        f"{cfg['name']}: {count:,} parameters{trained} on {world.device}, batch {whole}{unit} = {world.size} rank(s) x "
        f"{accumulate} micro-batch(es) of {whole // (world.size * accumulate)}, {cfg['trainer']['precision']}, "
        f"{'endless' if items == sys.maxsize else f'{items:,}'} training items"
    )


def write_environment(folder: Path, cfg: Mapping[str, Any], world: World, data: str | None, init: str | None) -> None:
    """environment.json: what one needs to know to believe a number; `data` and `init` are digests of a text and of the weights started from."""
    file = folder / "environment.json"
    facts = {**environment(world.device), "ranks": world.size, "command": sys.argv, "seed": cfg["seed"], "data_sha256": data}
    if init is None and file.exists():  # a resumed run doesn't read again what it began with
        init = json.loads(file.read_text()).get("init_sha256")
    if init:
        facts["init_sha256"] = init
    write_atomically(file, json.dumps(facts, indent=1).encode())


def write_weights(folder: Path, states: Mapping[str, Mapping[str, Tensor]], frozen: Mapping[str, str]) -> None:
    """model.safetensors and ema.safetensors. The weights of a lone model carry the model's own names, so that another project loads them.

    Args:
        frozen: the sha256 of files that have what a run did not train; it goes into the metadata.
    """
    metadata = {"frozen": json.dumps(frozen)} if frozen else {"format": "pt"}  # one of them: safetensors writes two in any order
    for stem, state in sorted(states.items(), key=lambda item: item[0] == "model"):  # last: its presence says that the run is finished
        alone = all(name.startswith("model.") for name in state)
        content = {name.removeprefix("model.") if alone else name: value for name, value in state.items()}
        write_atomically(folder / f"{stem}.safetensors", save(content, metadata=metadata))


def save_beside(folder: Path, trained: nn.Module, judged: nn.Module) -> None:
    """What a network writes of itself by `save_beside(network, folder)`: an adapter, in the format of its users.

    Args:
        trained: knows what learned.
        judged: the average, where there is one.
    """
    for (name, network), other in zip(judged.named_children(), trained.children()):
        if hasattr(network, "save_beside"):
            for ours, theirs in zip(network.parameters(), other.parameters()):
                ours.requires_grad_(theirs.requires_grad)
            network.save_beside(network, folder / ("adapter" if name == "model" else f"adapter-{name}"))


def write_report(cfg: Mapping[str, Any], folder: Path, progress: Progress, samples: bool) -> None:
    """Draws the curve, writes report.html; tells the paper's number and where everything is."""
    from zoo.evaluation.pictures import curves

    curve, page = curves(folder), save_report(folder)
    if cfg["expect"]:
        expect = cfg["expect"]
        progress.say(f"the paper: {expect['metric']} {expect['paper']:g} ({expect['source']})")
    program = "python evaluate.py" if Path("evaluate.py").is_file() else "python -m zoo evaluate"
    where = {"run directory": folder, "curve": curve, "report": page, "evaluate": f"{program} run={folder}"}
    where["sample"] = f"python -m zoo sample run={folder}" if samples else None
    progress.say("\n".join(f"{what:<15}{value}" for what, value in where.items() if value))
