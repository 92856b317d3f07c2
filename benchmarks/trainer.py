"""What a step of the trainer costs beside a bare loop with the same features and the same data path: fused AdamW, clipping, a schedule,
an average of the weights, a record every 50 steps; an MLP 64-64-10 on digits, batch 32, one thread.

Both sides in one process, blocks of 200 steps in turn, the order reversed every other time; a second bare loop is the noise floor.

python -m benchmarks trainer [--repeats 21]
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from zoo.config import compose
from zoo.data.loader import stream
from zoo.training.distributed import World
from zoo.training.loop import Trainer
from zoo.training.report import environment
from zoo.training.signals import Stop

BLOCK, LOG_EVERY = 200, 50


class Mlp(nn.Module):
    """(B, 1, 8, 8) -> (B, 10)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def configuration(folder: str) -> dict:
    return compose([
        "name=benchmark", f"run_dir={folder}", "data=digits", "data.batch_size=32", "model._target_=benchmarks.trainer.Mlp",
        "objective._target_=zoo.objectives.Classification", "optim={name: adamw, lr: 1e-3, weight_decay: 0.01}",
        "schedule={name: cosine, warmup: 100}", "trainer.clip=1.0", "trainer.ema=0.999", f"trainer.log_every={LOG_EVERY}",
        "trainer.steps=10000000", "trainer.eval_every=null", "trainer.save_every=null", "trainer.device=cpu",
    ])  # fmt: skip


def ours(cfg: dict) -> Callable[[], None]:
    """A block of the trainer's own loop, as `Trainer.train` runs it."""
    trainer = Trainer(cfg, World(0, 1, torch.device("cpu"), "none"))
    trainer.batches = stream(trainer.data.train, trainer.plan, 0, trainer.world.device)
    stop = Stop(trainer.world, None)
    trainer.recorder.start(0)

    def block() -> None:
        for _ in range(BLOCK):
            trainer.iteration()
            trainer.step += 1
            stop.wanted(trainer.step)
            if any(map(trainer._due, ("log_every", "eval_every", "save_every"))):
                trainer.recorder.log(trainer.step, 0.0)

    return block


def bare(cfg: dict) -> Callable[[], None]:
    """The same by hand."""
    from zoo.training.build import build_data

    data = build_data(cfg)
    plan = data.train.plan(32)
    batches = stream(data.train, plan, 0, torch.device("cpu"))
    model, averaged = Mlp(), Mlp()
    parameters, averages = list(model.parameters()), [p.detach() for p in averaged.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1.0))
    file, state = io.StringIO(), {"step": 0, "losses": [], "correct": []}

    def block() -> None:
        for _ in range(BLOCK):
            batch = next(batches)
            logits = model(batch["image"])
            loss = F.cross_entropy(logits, batch["label"])
            state["correct"].append((logits.detach().argmax(-1) == batch["label"]).sum())  # the trainer's records have the accuracy, too
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1e-3)
            state["losses"].append(loss.detach())
            state["step"] += 1
            if state["step"] % LOG_EVERY == 0:
                loss, correct = torch.stack(state["losses"]).mean(), torch.stack(state["correct"]).sum()
                record = {"step": state["step"], "loss": loss.item(), "accuracy": correct.item() / 16, "grad_norm": norm.item()}
                file.write(json.dumps(record) + "\n")
                state["losses"].clear()
                state["correct"].clear()

    return block


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=21)
    repeats = arguments.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = configuration(folder)
        sides = {"trainer": ours(cfg), "bare": bare(cfg), "bare again": bare(cfg)}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for block in sides.values():  # warm
            block()
        for repeat in range(repeats):
            for name in list(sides) if repeat % 2 else list(sides)[::-1]:
                start = time.process_time()
                sides[name]()
                times[name].append((time.process_time() - start) / BLOCK * 1e6)
    extra = sorted(a - b for a, b in zip(times["trainer"], times["bare"]))
    floor = sorted(a - b for a, b in zip(times["bare again"], times["bare"]))
    quartiles = {name: [round(q, 1) for q in statistics.quantiles(values, n=4)] for name, values in times.items()}
    result = {
        "microseconds_a_step": quartiles,
        "trainer_minus_bare": [round(q, 1) for q in statistics.quantiles(extra, n=4)],
        "noise_floor": [round(q, 1) for q in statistics.quantiles(floor, n=4)],
        "repeats": repeats,
        **environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))

