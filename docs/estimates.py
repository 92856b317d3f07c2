"""Counts the FLOPs and operators of a training step of every configuration, without its data and without computing it, into results/estimates.json.

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
from zoo.training.build import build_objective  # noqa: E402
from zoo.training.scaling import with_noise  # noqa: E402
from zoo.training.specimen import items_of, specimen, varies  # noqa: E402
from zoo.training.throughput import PEAK, iteration_work, work_of_fakes  # noqa: E402

GPU, SHARE = "H100", 0.4
LAUNCH = 10  # microseconds an operator, in which an eager host brings it to the GPU
ITEMS = 2  # that are counted; a step has items_of(cfg)


def work_of(cfg: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """FLOPs an item and operators a micro-batch, of forward and backward pass, all turns; None where the shapes of the data are not told, or torch
    cannot count."""
    cfg = {**cfg, "model": {name: untrained(part) for name, part in cfg["model"].items()}}
    batch = specimen(cfg, ITEMS)
    if batch is None:
        return None, None
    try:
        with torch.device("meta"):
            objective = built(cfg)
    except NotImplementedError:  # it computes with its constants while it is made
        objective = built(cfg)
    batch = with_noise(cfg, objective, batch, ITEMS)
    work = iteration_work(objective, batch)
    if work is None:
        return None, None
    recurrent = [module for module in objective.modules() if isinstance(module, nn.RNNBase)]  # which the meta device takes apart
    if any(module.proj_size for module in recurrent):  # and the CPU, too, where a GPU has a kernel
        return work.flops / ITEMS, None
    return work.flops / ITEMS, work_of_fakes(objective, batch, fused_rnn=True).operators if recurrent else work.operators


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
    counted = {run["of"]: (run["flops_per_item"], run["operators"]) for run in known if run["flops_per_item"]}
    assumed = {"gpu": GPU, "peak_tflops": PEAK[GPU], "share": SHARE, "launch_us": LAUNCH}
    told = {"command": "python docs/estimates.py", "torch": torch.__version__, **assumed, "runs": {}}
    for name in paper_configs():
        cfg = compose([f"paper={name}"])
        of, steps = fingerprint(cfg), cfg["trainer"]["steps"]
        if steps and of not in counted:
            print(name)
            counted[of] = work_of(cfg)
        flops, operators = counted.get(of, (None, None))
        each = {"of": of, "flops_per_item": flops, "operators": operators, "items": items_of(cfg), "micro_batches": cfg["trainer"]["accumulate"]}
        told["runs"][name] = {**each, "steps": steps, "at_most": varies(cfg)}
    file.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
