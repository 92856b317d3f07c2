"""The papers' numbers beside ours, out of the files in results/: what `python -m zoo results` prints, and documents are made from."""

import difflib
import fnmatch
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo.config import compose, config_dir, paper_configs, trainer_defaults
from zoo.errors import ConfigError
from zoo.metrics import importance, meaning
from zoo.run_directory import differences

Record = Mapping[str, Any]  # what `evaluate record=...` writes

HELP = """usage: python -m zoo results [paper or pattern]

  python -m zoo results                   every configuration: the paper's number, ours, or that nobody has run it
  python -m zoo results resnet            one paper
  python -m zoo results 'resnet/cifar*'   configurations that match a shell pattern

Reads results/ of the working directory, or else beside the package: an installed package has none, so call it from a checkout.
"""

NOT_RUN, EARLIER = "not yet run", "recorded with an earlier configuration"


@dataclass(frozen=True)
class Row:
    """One metric of one configuration on one split, over all seeds that were recorded; all fields but `values` as they are shown."""

    name: str
    metric: str = ""
    paper: str = ""
    here: str = NOT_RUN
    seeds: str = ""
    steps: str = ""
    hardware: str = ""
    values: tuple[float, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        return self.name, self.metric, self.paper, self.here, self.seeds, self.steps, self.hardware


HEADINGS = ("configuration", "metric", "paper", "here", "seeds", "steps", "hardware")


def results_command(argv: list[str]) -> int:
    """Prints the rows of a paper, of the configurations that match a pattern, or all."""
    if set(argv) & {"-h", "--help"} or len(argv) > 1:
        print(HELP, end="")
        return 0 if len(argv) == 1 else 2
    chosen = names(*argv)
    folder = next((path for path in (Path("results"), Path(__file__).parent.parent / "results") if path.is_dir()), None)
    if folder is None:
        raise ConfigError("there is no results/ here, and an installed package has none: call it from a checkout of the repository")
    found = records(folder)
    cells = [HEADINGS, *(row.cells for name in chosen for row in rows(name, found.get(name, [])))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip())
    return 0


def names(pattern: str = "*") -> list[str]:
    """The configurations of a paper, or those that match a shell pattern.

    Raises:
        ConfigError: if there are none.
    """
    every = list(paper_configs())
    found = [name for name in every if fnmatch.fnmatch(name, pattern) or name.split("/")[0] == pattern]
    if not found:
        near = difflib.get_close_matches(pattern, every, n=3, cutoff=0.4)
        raise ConfigError(f"no configuration is called {pattern!r}; " + (f"did you mean {' or '.join(near)}?" if near else "see python -m zoo list"))
    return found


def records(folder: Path) -> dict[str, list[Record]]:
    """Configuration -> its recorded evaluations, one a seed and split."""
    found: dict[str, list[Record]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        if "metrics" in record:
            found.setdefault(record["name"].removesuffix("/quick"), []).append(record)
    return found


def rows(name: str, runs: Iterable[Record]) -> list[Row]:
    """A row for each split and metric: the one that the paper states a number for, else those that tables have room for."""
    runs, expect = list(runs), stated(name) or {}
    paper = f"{expect['paper']:g} ({expect['source']})" if expect else ""
    if not runs:
        return [Row(name, expect.get("metric", ""), paper)]
    found = []
    for split in sorted({run["split"] for run in runs}, reverse=True):
        part = [run for run in runs if run["split"] == split]
        metrics = [expect["metric"]] if expect else sorted({key for run in part for key in run["metrics"] if (known := meaning(key)) and known.shown})
        beside = paper if split != "train" else ""  # no paper's number is one of its training items
        found += [_row(name, metric, split, beside, [run for run in part if metric in run["metrics"]]) for metric in metrics]
    return found


def _row(name: str, metric: str, split: str, paper: str, runs: list[Record]) -> Row:
    title = metric if split == "test" else f"{metric} ({split})"
    if not runs:
        return Row(name, title, paper, "not measured")
    values = tuple(run["metrics"][metric] for run in runs)
    spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
    marks = ["partial"] * any(run["partial"] for run in runs) + [EARLIER] * any(changes(run) for run in runs)
    return Row(
        name,
        title,
        paper,
        ", ".join([f"{statistics.fmean(values):.4g}{spread}", *marks]),
        ", ".join(str(run["seed"]) for run in runs),
        ", ".join(map(str, sorted({run["step"] for run in runs}))),
        ", ".join(sorted({(run["trained_on"] or run["environment"])["hardware"] for run in runs})),  # published weights were trained elsewhere
        values,
    )


def headline(names: Iterable[str], found: Mapping[str, list[Record]]) -> Row:
    """A paper's one row: of those beside which the paper states a number, the one that comes nearest to it; if none was run, the run that took
    longest (or, of a variant of another row that was run, that one), by what the paper states numbers of, or else by the metric that says most."""
    names = list(names)
    expected = {name: expect for name in names if (expect := stated(name))}
    beside = [(abs(statistics.fmean(row.values) / expected[name]["paper"] - 1), row)
              for name in expected for row in rows(name, found.get(name, [])) if row.values and row.paper]  # fmt: skip
    if beside:
        return min(beside, key=lambda pair: pair[0])[1]
    longest = max(names, key=lambda name: (max([record["seconds"] or 0 for record in found.get(name, [])], default=0), "/" not in name))
    longest = next((base for base in _bases(_read(config_dir() / "paper" / f"{longest}.yaml")) if found.get(base)), longest)
    wanted = [expect["metric"] for expect in expected.values()]
    return min(rows(longest, found.get(longest, [])), key=lambda row: (row.metric not in wanted, importance(row.metric)))


# ---- configurations ----


def _bases(file: Mapping[str, Any]) -> list[str]:
    """The rows that a configuration is a variant of."""
    return [entry.removeprefix("/paper/") for entry in file.get("defaults", []) if isinstance(entry, str) and entry.startswith("/paper/")]


@cache
def stated(name: str) -> dict[str, Any] | None:
    """`expect` of a configuration, the paper's own number, without the fifth of a second that composing all of it takes."""
    file = _read(config_dir() / "paper" / f"{name}.yaml")
    bases = _bases(file)
    if "expect" in file and file["expect"] is None:  # unlike what it builds on
        return None
    inherited = {key: value for base in bases for key, value in (stated(base) or {}).items()}
    return {**inherited, **file.get("expect", {})} or None


def changes(record: Record) -> dict[str, tuple[Any, Any]]:
    """key -> (recorded, now): in what the configuration of a record differs from its file, but for how and where it ran.

    Keys younger than the record count as they are by default. Metrics that were asked for on the command line of the evaluation are not compared.
    """
    now = {**composed(record["name"].removesuffix("/quick")), "seed": record["seed"]}
    then = {**_defaults(config_dir() / "train.yaml"), **record["config"]}
    then["trainer"] = {**trainer_defaults(), **then["trainer"]}
    young = {key: value for key, value in now["data"].items() if key not in then["data"] and _by_default(now["data"]["_target_"], key, value)}
    then["data"] = {**young, **then["data"]}
    metrics = {"evaluation": {}}  # compared below
    found = differences({**then, **metrics}, {**now, **metrics})
    for name in {**then["evaluation"], **now["evaluation"]}:
        if f" evaluation.{name}." not in record["command"]:
            old, new = ({k: v for k, v in side["evaluation"].get(name, {}).items() if k != "every"} for side in (then, now))
            found |= {f"evaluation.{name}": (old, new)} if old != new else {}
    return found


@cache
def composed(name: str) -> dict[str, Any]:
    return compose([f"paper={name}"])


def _by_default(target: str, key: str, value: Any) -> bool:
    """Whether configs/data/ states this value for data sets of this kind."""
    files = map(_defaults, sorted((config_dir() / "data").glob("*.yaml")))
    return any(file["_target_"] == target and key in file and file[key] == value for file in files)


def _defaults(file: Path) -> dict[str, Any]:
    return {key: value for key, value in _read(file).items() if key not in ("defaults", "hydra")}


@cache
def _read(file: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8"))


# ---- estimates ----


def gpu_hours(name: str, estimates: Mapping[str, Any]) -> str:
    """What a run would take on one GPU, as docs/estimates.py counted it; "" for quick runs, which are for the CPU."""
    if "/" not in name:
        return ""
    counted = estimates["runs"].get(name)
    if counted and counted["steps"] == 0:
        return "no training"
    if not counted or counted["flops_per_item"] is None:
        return "not counted"
    arithmetic = counted["flops_per_item"] * counted["items"] / (estimates["share"] * estimates["peak_tflops"] * 1e12)
    launching = (counted["operators"] or 0) * counted["micro_batches"] * estimates["launch_us"] * 1e-6
    hours = max(arithmetic, launching) * counted["steps"] / 3600  # whichever the other waits for
    if hours < 0.01:
        return "< 0.01"
    return ("at most " if counted["at_most"] else "") + (f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}")
