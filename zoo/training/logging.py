"""Where numbers go: a line on the screen, metrics.jsonl and metrics.csv always, TensorBoard or Weights & Biases where chosen."""

import contextlib
import csv
import hashlib
import io
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.run_directory import drop_after


class Tracker:
    """Writes one record a logged step. A logger that fails is dropped with one warning: it never stops or delays a run."""

    def __init__(self, folder: Path, section: Mapping[str, Any], cfg: Mapping[str, Any], start: int):
        drop_after(folder / "metrics.jsonl", start)
        self.file = open(folder / "metrics.jsonl", "a", buffering=1)
        self.folder = folder
        self.remote = {"tensorboard": TensorBoard, "wandb": WandB}.get(section["name"])
        if self.remote:
            self.remote = self._guarded(lambda: self.remote(folder, section, cfg))

    def write(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl. JSON has no NaN: such values are written as null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self.file.write(json.dumps(clean) + "\n")
        if self.remote:
            self._guarded(lambda: self.remote.write(clean))

    def close(self) -> None:
        """Flushes everything and writes the same numbers as metrics.csv."""
        self.file.close()
        write_csv(self.folder / "metrics.jsonl", self.folder / "metrics.csv")
        if self.remote:
            self._guarded(lambda: self.remote.close())

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            print(f"warning: the logger is off ({_short(error)}); metrics.jsonl goes on", file=sys.stderr)
            self.remote = None
            return None


class TensorBoard:
    """Event files in <run_dir>/tensorboard."""

    def __init__(self, folder: Path, section: Mapping[str, Any], cfg: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard")

    def write(self, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            if key != "step" and value is not None:
                self.writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases, online for at most ten seconds of trying, then offline."""

    def __init__(self, folder: Path, section: Mapping[str, Any], cfg: Mapping[str, Any]):
        import wandb

        options = {
            "project": section.get("project", "zoo"),
            "entity": section.get("entity"),
            "name": cfg["name"],
            "id": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],  # the same run directory is the same run
            "dir": str(folder),
            "config": dict(cfg),
            "resume": "allow",
        }
        try:
            settings = wandb.Settings(init_timeout=10, silent=True)
            self.run = wandb.init(mode=section.get("mode", "online"), settings=settings, **options)
        except Exception as error:
            print(f"warning: Weights & Biases cannot be reached ({_short(error)}); logging offline in {folder / 'wandb'}", file=sys.stderr)
            self.run = wandb.init(mode="offline", settings=wandb.Settings(silent=True), **options)

    def write(self, record: Mapping[str, Any]) -> None:
        self.run.log({k: v for k, v in record.items() if v is not None}, step=record["step"])

    def close(self) -> None:
        last = threading.Thread(target=self._finish, daemon=True)  # an upload that hangs must not keep the run alive
        last.start()
        last.join(timeout=10)

    def _finish(self) -> None:
        with contextlib.suppress(Exception):
            self.run.finish()


class Progress:
    """The line that a person watches: rewritten in place on a terminal, printed plainly elsewhere."""

    def __init__(self, steps: int, out: Any = None):
        self.steps, self.out = steps, out or sys.stdout
        self.live = self.out.isatty()
        self.started = self.shown = None

    def begin(self, step: int) -> None:
        self.started = (step, time.perf_counter())

    def line(self, step: int, record: Mapping[str, Any]) -> None:
        """step, loss, learning rate, throughput, time to go."""
        first, since = self.started
        per_step = (time.perf_counter() - since) / max(step - first, 1)
        left = int(per_step * (self.steps - step))
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
        rates = "/".join(f"{v:.3g}" for k, v in record.items() if k == "lr" or k.endswith("/lr"))
        text = f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {record['loss']:.4f}  lr {rates}"
        text += f"  {record['items_per_second']:,.0f} items/s  eta {eta}"
        self.out.write(f"\r\033[K{text}" if self.live else f"{text}\n")
        self.out.flush()
        self.shown = self.live

    def say(self, text: str) -> None:
        """A line that stays."""
        self.out.write(("\n" if self.shown else "") + text + "\n")
        self.out.flush()
        self.shown = None


def write_csv(source: Path, target: Path) -> None:
    """metrics.jsonl as a table: one row a record, one column for every key that occurs."""
    records = [json.loads(line) for line in source.read_text().splitlines()]
    columns = list(dict.fromkeys(key for record in records for key in record))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(records)
    target.write_text(table.getvalue())


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
