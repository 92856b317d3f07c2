"""Counts the FLOPs of a training step of every configuration, without its data and mostly on torch's meta device, into results/estimates.json.

python docs/estimates.py       after a configuration has changed, before docs/tables.py; counts what the file doesn't hold, minutes if it is gone
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from zoo.config import compose, paper_configs  # noqa: E402
from zoo.papers.mixture_of_experts import MixtureOfExperts  # noqa: E402
from zoo.training.build import build_objective  # noqa: E402
from zoo.training.scaling import with_noise  # noqa: E402
from zoo.training.specimen import items_of, specimen, varies  # noqa: E402
from zoo.training.throughput import PEAK, iteration_flops  # noqa: E402

GPU, SHARE = "H100", 0.4
ITEMS = 2  # that are counted; a step has items_of(cfg)
SMALL = 20_000_000  # parameters of a model that may be run here, if the meta device doesn't do
UNSEEN = nn.RNNBase, MixtureOfExperts  # whose fused kernels torch doesn't count on a CPU


def flops_per_item(cfg: Mapping[str, Any]) -> float | None:
    """Of forward and backward pass, all turns; None where the shapes of the data are not told, or torch cannot count."""
    cfg = {**cfg, "model": {name: untrained(part) for name, part in cfg["model"].items()}}
    batch = specimen(cfg, ITEMS)
    if batch is None:
        return None
    try:
        with torch.device("meta"):
            objective = built(cfg)
    except NotImplementedError:  # it computes with its constants while it is made
        objective = built(cfg)
    batch = with_noise(cfg, objective, batch, ITEMS)
    flops = iteration_flops(objective, batch)
    if flops is None and sum(p.numel() for p in objective.parameters()) < SMALL and not any(isinstance(m, UNSEEN) for m in objective.modules()):
        flops = iteration_flops(built(cfg), batch, "cpu")
    return flops and flops / ITEMS


def built(cfg: Mapping[str, Any]) -> nn.Module:
    objective = build_objective(cfg).train()
    if "first_stage" in cfg["model"]:
        objective.first_stage.requires_grad_(False).eval()
    return objective


def untrained(part: Any) -> Any:
    """A first stage as its own run builds it, which need not be there."""
    if not isinstance(part, dict) or part.get("_target_") != "zoo.training.first_stage.first_stage":
        return part
    return compose([f"paper={part['run'].removeprefix('runs/').removesuffix('/quick')}"])["model"]


def fingerprint(cfg: Mapping[str, Any]) -> str:
    """Of what an item's FLOPs depend on."""
    shapes = {name: list(value.shape) for name, value in (specimen(cfg, ITEMS) or {}).items()}
    return hashlib.sha256(json.dumps([cfg["model"], cfg["objective"], shapes], sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    file = ROOT / "results" / "estimates.json"
    known = json.loads(file.read_text())["runs"].values() if file.exists() else ()
    counted = {run["of"]: run["flops_per_item"] for run in known}
    told = {"command": "python docs/estimates.py", "torch": torch.__version__, "gpu": GPU, "peak_tflops": PEAK[GPU], "share": SHARE, "runs": {}}
    for name in paper_configs():
        cfg = compose([f"paper={name}"])
        of, steps = fingerprint(cfg), cfg["trainer"]["steps"]
        if steps and of not in counted:
            print(name)
            counted[of] = flops_per_item(cfg)
        each = {"of": of, "flops_per_item": counted.get(of), "items": items_of(cfg), "steps": steps, "at_most": varies(cfg)}
        told["runs"][name] = each
    file.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
