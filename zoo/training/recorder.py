"""What happened since the last logged step: gathered on the device, read once, checked, and told."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import NonFiniteError
from zoo.report import save_report
from zoo.training.distributed import World
from zoo.training.logging import Progress, Tracker
from zoo.training.player import Player
from zoo.training.throughput import memory, peak_flops

PATIENCE = 100  # updates skipped in a row, after which there is no hope


class Recorder:
    """Gathers terms, logs and gradient norms step by step without asking the device for a value; `log` asks once, for all of them."""

    def __init__(
        self, cfg: Mapping[str, Any], world: World, players: Mapping[str, Player], turns: Iterable[str], items: float, step: int, trained: float
    ):
        self.world, self.players, self.turns = world, players, tuple(turns)
        self.items, self.nonfinite = items, cfg["trainer"]["nonfinite"]  # items of a batch; a mean where batches are of so many tokens
        self.progress = Progress(cfg["trainer"]["steps"])
        self.folder = Path(cfg["run_dir"])
        self.tracker = Tracker(self.folder, cfg["logger"], cfg, step) if world.first else None
        self.prefix = {name: f"{name}/" if len(players) > 1 else "" for name in players}
        self.seconds = trained  # of training, over all resumptions
        self.hopeless = dict.fromkeys(players, 0)  # updates skipped in a row, whole records only
        self.flops = None  # of one iteration over all ranks
        self.start(step)

    def start(self, step: int) -> None:
        """The clock begins at this step."""
        self.step, self.since = step, time.perf_counter()
        self.progress.begin(step)
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, dict[str, list[Tensor]]] = {name: defaultdict(list) for name in self.players}  # of this rank
        self.counts: dict[str, list[Mapping[str, int | Tensor]]] = {name: [] for name in self.players}  # over all ranks
        self.shared: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in self.players}  # the same on every rank

    def micro_batch(self, turn: str, loss: Tensor, terms: Mapping[str, Tensor], logs: Mapping[str, Tensor]) -> None:
        """The sums of one micro-batch; a lone term called loss is the loss itself and not told twice."""
        sums = self.sums[turn]
        sums["loss"].append(loss.detach())
        for values in (terms, logs):
            for key, value in values.items():
                if key != "loss":
                    sums[key].append(value.detach())

    def turn(self, turn: str, counts: Mapping[str, int | Tensor], norm: Tensor, bad: Tensor, skip: Tensor) -> None:
        """What one whole turn adds: how many items stand behind the sums, its gradient norm, whether that was bad, whether it was skipped."""
        self.counts[turn].append(counts)
        self.shared[turn].append((norm, bad, skip))

    def log(self, step: int, epoch: float) -> None:
        """One record of everything since the last one.

        Raises:
            NonFiniteError: if a step was skipped for gradients that were not finite and `trainer.nonfinite` is stop.
        """
        steps, now = step - self.step, time.perf_counter()
        record = self._read()
        for name in self.players:
            self._check_finite(name, record, step, steps)
        for name, player in self.players.items():
            record[f"{self.prefix[name]}lr"] = player.schedule.lr(max(player.updates - 1, 0))
        if len(self.players) > 1:
            record["loss"] = sum(record[f"{prefix}loss"] for prefix in self.prefix.values())
        seconds = now - self.since
        self.seconds += seconds
        record |= {"epoch": epoch, "seconds": self.seconds, "items_per_second": steps * self.items / seconds}
        record["memory_mib"] = memory(self.world.device)
        if self.flops:
            record["tflops"] = self.flops * steps / seconds / 1e12
            if peak := peak_flops(self.world.device):
                record["mfu"] = self.flops * steps / seconds / (peak * self.world.size)
        self.step, self.since = step, now
        if self.world.first:
            self.tracker.write({"step": step, **record})
            self.progress.line(step, record)

    def _read(self) -> dict[str, float]:
        """Each sum over its count, each shared value's mean."""
        sums = {f"{self.prefix[turn]}{key}": torch.stack(values) for turn, named in self.sums.items() for key, values in named.items()}
        counts = [self._items(turn, key) for turn, named in self.sums.items() for key in named]
        shared = {f"{self.prefix[turn]}{key}": values for turn, told in self.shared.items()
                  for key, values in zip(("grad_norm", "bad", "skipped"), zip(*told))}  # fmt: skip
        total = self.world.sum(torch.stack([values.sum(dtype=torch.float64) for values in sums.values()]))
        means = torch.stack([torch.stack(values).mean(dtype=torch.float64) for values in shared.values()])
        values = torch.cat([total / torch.stack(counts), means]).tolist()  # the one wait for the device
        self._clear()
        return dict(zip([*sums, *shared], values))

    def _items(self, turn: str, key: str) -> Tensor:
        """How many items stand behind a sum; behind the loss, which is divided already, how many turns."""
        counts = [1 if key == "loss" else count.get(key, self.items) for count in self.counts[turn]]
        return _total(counts, self.world.device)

    def _check_finite(self, name: str, record: dict[str, float], step: int, steps: int) -> None:
        player, prefix, updates = self.players[name], self.prefix[name], steps * self.turns.count(name)
        skipped, bad = (round(record.pop(f"{prefix}{key}") * updates) for key in ("skipped", "bad"))
        player.updates -= skipped  # schedules count the updates that happened
        if skipped:
            record[f"{prefix}skipped"] = skipped
        self.hopeless[name] = self.hopeless[name] + bad if bad == updates else 0
        tolerated = self.nonfinite == "skip" or player.scaler is not None  # fp16 finds its scale by overflowing now and then
        if bad and (not tolerated or self.hopeless[name] >= PATIENCE):
            raise NonFiniteError(
                f"{name}: {bad} of the updates in steps {step - steps + 1} to {step} had gradients that were not finite; they changed "
                f"nothing, and the last checkpoint is good: lower optim.lr, set trainer.clip, or choose trainer.nonfinite=skip"
            )

    def evaluated(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """A record of metrics on a split."""
        if self.world.first:
            self.tracker.write({"step": step, **{f"{split}/{key}": value for key, value in metrics.items()}})
            self.say(f"step {step}  {split}: " + "  ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        self.since = time.perf_counter()  # evaluation doesn't count as training time

    def stopped(self, step: int, last: int) -> None:
        """Tells how to go on, and leaves a report of what there is."""
        self.say(f"stopped after step {step} of {last}; the same command goes on from there")
        if self.world.first:
            save_report(self.folder)

    def say(self, text: str) -> None:
        if self.world.first:
            self.progress.say(text)

    def close(self) -> None:
        """Once is enough; more does no harm."""
        if self.tracker:
            self.tracker.close()
            self.tracker = None


def _total(counts: list[int | Tensor], device: torch.device) -> Tensor:
    if any(isinstance(count, Tensor) for count in counts):
        return torch.stack([on_device(count, device) for count in counts]).sum()
    return on_device(sum(counts), device)


def on_device(number: int | Tensor, device: torch.device) -> Tensor:
    """A float64 on the device, without a copy that waits for it."""
    return number.to(device, torch.float64) if isinstance(number, Tensor) else torch.full((), number, dtype=torch.float64, device=device)
