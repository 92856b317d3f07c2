"""What a step of the trainer costs beside a bare loop with the same features and the same data path: fused AdamW, clipping, a schedule,
an average of the weights, a record every 50 steps; an MLP 64-64-10 on digits, batch 32, one thread.

All sides in one process, blocks of 50 steps in turn (short ones, since a machine's pace changes), the order reversed every other time; a second
bare loop is the noise floor. Where Lightning is installed, its Trainer does the same beside them: clip, schedule, average and a CSV record every 50
steps, fed by the same data path; no bar.

python -m benchmarks trainer [--repeats 201] [--record results/benchmarks/trainer.json]
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from zoo.config import compose
from zoo.data.loader import stream
from zoo.environment import environment
from zoo.training.distributed import World
from zoo.training.loop import Trainer
from zoo.training.signals import Stop

BLOCK, LOG_EVERY = 50, 50


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


def lightning(cfg: dict, folder: str, pause: Callable[[], bool]) -> None:
    """The same by Lightning's Trainer, which cannot be left between two steps: after each block it calls `pause`, until the answer is False."""
    import lightning.pytorch as L
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
    from lightning.pytorch.loggers import CSVLogger

    from zoo.training.build import build_data

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Mlp()

        def training_step(self, batch, index):
            logits = self.model(batch["image"])
            loss = F.cross_entropy(logits, batch["label"])
            self.log("loss", loss)
            self.log("accuracy", (logits.detach().argmax(-1) == batch["label"]).float().mean())
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1.0))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Turns(Callback):
        def on_train_batch_end(self, trainer, *others):
            if trainer.global_step % BLOCK == 0:
                trainer.should_stop = not pause()

    data = build_data(cfg)
    batches = stream(data.train, data.train.plan(32), 0, torch.device("cpu"))

    class Batches(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict]:
            return batches

    trainer = L.Trainer(
        max_steps=10_000_000, accelerator="cpu", devices=1, gradient_clip_val=1.0, log_every_n_steps=LOG_EVERY, logger=CSVLogger(folder),
        callbacks=[EMAWeightAveraging(decay=0.999), Turns()], enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(Batches(), batch_size=None))


class Clock:
    """Process time of blocks, in turn; `times[name]` in microseconds a step."""

    def __init__(self, sides: dict[str, Callable[[], None]], repeats: int):
        self.sides, self.repeats, self.round = sides, repeats, 0
        self.times: dict[str, list[float]] = {name: [] for name in sides}
        for block in sides.values():  # warm
            block()

    def turn(self) -> bool:
        """One block of each side; whether there is another round."""
        for name in list(self.sides)[:: 1 if self.round % 2 else -1]:
            start = time.process_time()
            self.sides[name]()
            self.add(name, start)
        self.round += 1
        return self.round < self.repeats

    def add(self, name: str, start: float) -> None:
        self.times.setdefault(name, []).append((time.process_time() - start) / BLOCK * 1e6)


def beside_lightning(clock: Clock, cfg: dict, folder: str) -> None:
    """All rounds, each within a pause of Lightning's loop."""
    start = None

    def turns() -> bool:
        nonlocal start
        if start is not None:
            clock.add("lightning", start)
        goes_on = clock.turn() if start is not None else True  # its first block was to warm up
        start = time.process_time()
        return goes_on

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of loaders without workers
        lightning(cfg, folder, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=201)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = configuration(folder)
        clock = Clock({"trainer": ours(cfg), "bare": bare(cfg), "bare again": bare(cfg)}, options.repeats)
        if importlib.util.find_spec("lightning"):
            beside_lightning(clock, cfg, folder)
        else:
            while clock.turn():
                pass
    times = clock.times
    quartiles = lambda values: [round(q, 1) for q in statistics.quantiles(values, n=4)]
    more = lambda name: quartiles([a - b for a, b in zip(times[name], times["bare"])])
    result = {
        "microseconds_a_step": {name: quartiles(values) for name, values in times.items()},
        "trainer_minus_bare": more("trainer"),
        "noise_floor": more("bare again"),
        "fastest_tenth": {name: round(statistics.quantiles(values, n=10)[0], 1) for name, values in times.items()},  # others only ever slow one down
        **({"lightning_minus_bare": more("lightning")} if "lightning" in times else {}),
        "repeats": options.repeats,
        **environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))
    if options.record:
        options.record.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
