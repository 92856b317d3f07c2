"""What the files of a run directory tell. Whatever is missing, cut short or damaged is left out and noted; nothing here needs torch or data."""

import json
import shlex
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from zoo.catalog import PAPERS, Paper
from zoo.errors import ConfigError
from zoo.run_directory import read_config

SPLITS = ("test", "valid")  # what is told first comes first


class Points(NamedTuple):
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Final:
    """The last metrics of a split."""

    split: str
    step: float
    metrics: dict[str, float]
    about: str = ""  # which weights


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]  # metrics.json, which evaluate.py wrote
    series: Mapping[str, Points]  # key of metrics.jsonl -> its points
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.result.get("name") or self.folder.resolve().name)

    @property
    def paper(self) -> Paper | None:
        return PAPERS.get(self.name.split("/")[0])

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of the configuration; empty where there is none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def steps(self) -> float | None:
        """How many the run is to take."""
        steps = self.section("trainer").get("steps")
        return steps if finite(steps) else None

    @cached_property
    def step(self) -> float:
        """The last one that was logged or evaluated."""
        evaluated = self.result.get("step")
        return max([evaluated if finite(evaluated) else 0, *(points.steps[-1] for points in self.series.values())])

    @property
    def finished(self) -> bool:
        return (self.folder / "model.safetensors").is_file() or (self.steps is not None and self.step >= self.steps)

    @property
    def state(self) -> str:
        of = f" of {self.steps:,.0f}" if self.steps else ""
        return f"finished: {self.step:,.0f} steps" if self.finished else f"unfinished: step {self.step:,.0f}{of}"

    @property
    def seconds(self) -> float | None:
        """Of training, over all resumptions."""
        return self.series["seconds"].values[-1] if "seconds" in self.series else None

    @property
    def throughput(self) -> float | None:
        """Items a second, the median of what was logged."""
        return statistics.median(self.series["items_per_second"].values) if "items_per_second" in self.series else None

    @cached_property
    def final(self) -> Final | None:
        """What evaluate.py measured, unless the run went on since; else the last evaluation that was logged."""
        metrics = {key: value for key, value in _mapping(self.result.get("metrics")).items() if finite(value)}
        step = self.result.get("step")
        found = self._logged()
        if metrics and finite(step) and (found is None or step >= found.step):
            return Final(str(self.result.get("split")), step, metrics, str(self.result.get("weights", "")))
        return found

    def _logged(self) -> Final | None:
        for split in SPLITS:
            found = {key.removeprefix(f"{split}/"): points for key, points in self.series.items() if key.startswith(f"{split}/")}
            if found:
                step = max(points.steps[-1] for points in found.values())
                return Final(split, step, {key: points.values[-1] for key, points in found.items()})
        return None

    @property
    def expect(self) -> Mapping[str, Any]:
        """The paper's number, where the configuration states one; none is of training items."""
        found = self.section("expect")
        comparable = finite(found.get("paper")) and isinstance(found.get("metric"), str) and not (self.final and self.final.split == "train")
        return found if comparable else {}

    @property
    def command(self) -> tuple[str, list[str]] | None:
        """What the run was last started by: the program and its words."""
        words = self.environment.get("command")
        if not isinstance(words, list) or not words:
            return None
        program, *rest = map(str, words)
        return ("python train.py", rest) if program.endswith("train.py") else ("python -m zoo", rest)

    @property
    def command_line(self) -> str:
        return f"{self.command[0]} {shlex.join(self.command[1])}" if self.command else ""

    @property
    def overrides(self) -> dict[str, Any]:
        """key -> value of what the command line set, other than which paper and where to."""
        words = [word.partition("=") for word in (self.command[1] if self.command else []) if "=" in word]
        plain = [(key.lstrip("+~"), value) for key, _, value in words]
        flat = {".".join(key): value for key, value in flatten(self.config)}
        return {key: flat.get(key, value) for key, value in plain if key not in ("paper", "name", "run_dir", "resume")}


def read_run(folder: Path) -> Run:
    """Reads config.yaml, environment.json, metrics.jsonl and metrics.json, as far as they are there.

    Raises:
        ConfigError: if none of them is.
    """
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "metrics.json")):
        raise ConfigError(f"{folder} is no run directory: it has neither config.yaml nor metrics")
    notes: list[str] = []
    environment, result = (_read_json(folder / name, notes) for name in ("environment.json", "metrics.json"))
    config = _read_config(folder, notes) or _mapping(result.get("config"))
    return Run(folder, config, environment, result, _read_series(folder / "metrics.jsonl", notes), notes)


def _read_config(folder: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        return read_config(folder)
    except (ConfigError, ValueError, RecursionError):  # ValueError: bytes that are no text
        if (folder / "config.yaml").exists():
            notes.append("config.yaml is damaged and left out")
        return {}


def _read_json(file: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{file.name} is damaged and left out")
    return _mapping(found)


def _read_series(file: Path, notes: list[str]) -> dict[str, Points]:
    series: dict[str, Points] = {}
    damaged, empty = [], 0
    for number, record in enumerate(_records(file), start=1):
        if not isinstance(record, dict) or not finite(record.get("step")):
            damaged.append(number)
            continue
        for key, value in record.items():
            if finite(value) and key != "step":
                points = series.setdefault(key, Points([], []))
                points.steps.append(record["step"])
                points.values.append(value)
            elif value is None and key.split("/")[-1] == "loss":
                empty += 1
    if damaged:
        notes.append(f"metrics.jsonl: {len(damaged)} damaged line(s) left out, the first of them line {damaged[0]}")
    if empty:
        notes.append(f"metrics.jsonl: {empty} loss(es) were not finite")
    return series


def _records(file: Path) -> list[Any]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [_parsed(line) for line in lines if line.strip()]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def split_of(key: str) -> str | None:
    """test or valid, where a key of metrics.jsonl tells of held-out items."""
    first, slash, _ = key.partition("/")
    return first if slash and first in SPLITS else None


def cited(paper: Paper) -> str:
    """Its first author and year."""
    first, *others = paper.authors.split(", ")
    return f"{first}{' et al.' if others else ''}, {paper.year}"


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn; neither truth values nor integers beyond all floats are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def flatten(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Path of keys and value of every leaf."""
    found = []
    for key, value in values.items():
        path = (*above, str(key))
        found += flatten(value, path) if isinstance(value, dict) and value else [(path, value)]
    return found
