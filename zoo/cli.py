"""The commands: train, evaluate, sample, plan, export, convert, results, report, gallery, list, info.

Errors are one line each; only what computes imports torch.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, ZooError

USAGE = """usage: python -m zoo <command> [key=value ...]

  train     python -m zoo train paper=resnet            train a paper's model (--help: all keys)
  evaluate  python -m zoo evaluate run=runs/resnet/quick    metrics and pictures of a run
  sample    python -m zoo sample run=runs/gan/quick n=16    images or text from a run
  plan      python -m zoo plan paper=vit gpus=64        how long a step would take on many GPUs
  export    python -m zoo export run=runs/resnet/quick to=mine     a run's weights as a folder that others can use
  convert   python -m zoo convert resnet50.pth --to resnet50_v1_5     weights in somebody else's names into ours
  results   python -m zoo results resnet                the paper's numbers beside ours
  report    python -m zoo report runs/a runs/b          a run's page anew, or one that compares runs
  gallery   python -m zoo gallery                       all papers on one page
  list      python -m zoo list                          the papers and their configurations
  info      python -m zoo info resnet50                 what a paper or preset is
"""


def main(command: str, argv: list[str]) -> int:
    """Runs a command; returns its exit code: 0 done, 1 a fault while running, 2 a wrong command line, 3 no usable checkpoint,
    4 non-finite loss, 130 / 143 stopped by a signal after saving."""
    commands = {"train": train, "evaluate": evaluate, "sample": sample, "plan": plan, "results": results, "list": list_papers, "info": info,
                "export": export, "convert": convert, "report": report, "gallery": gallery}  # fmt: skip
    if command not in commands:
        print(USAGE, end="", file=sys.stdout if command in ("-h", "--help") else sys.stderr)
        return 0 if command in ("-h", "--help") else 2
    return guarded(lambda: commands[command](argv))


def guarded(action: Callable[[], int], folder: Path | None = None) -> int:
    """Runs an action; an error becomes one line and an exit code. The trace of an unexpected one goes to <folder>/error.txt."""
    try:
        return action()
    except ZooError as error:
        _tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zoo results | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        if type(error).__name__ == "OutOfMemoryError":
            _tell("the device is out of memory: raise trainer.accumulate or lower data.batch_size")
            return 1
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _tell("no space left on the disk: make room, and the same command goes on")
            return 1
        if type(error).__name__ == "DistBackendError" or "gloo" in str(error):
            rank = f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
            _tell(f"{rank} waits in vain for another one, which was killed, hangs or failed; the same command goes on from the last checkpoint")
            return 1
        where = f"; the trace is in {folder / 'error.txt'}" if _write_trace(folder) else "; ZOO_DEBUG=1 shows the trace"
        _tell(f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}{where}")
        return 1


def _tell(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _write_trace(folder: Path | None) -> bool:
    if folder is None or not folder.is_dir():
        return False
    try:
        (folder / "error.txt").write_text(traceback.format_exc())
    except OSError:
        return False
    return True


def train(argv: list[str]) -> int:
    """Composes, checks and trains; with -m once for each combination of the swept values."""
    from zoo import config
    from zoo.run_directory import best_seen

    if not argv:
        _print_papers()
        print("\nchoose one: python train.py paper=<name>; --help shows every key")
        return 2
    codes = []

    def task(cfg: dict[str, Any]) -> float | None:
        code = guarded(lambda: _run(cfg), Path(cfg["run_dir"]))
        if code > 128:
            raise SystemExit(code)  # a stop ends a multirun, too
        codes.append(code)
        return best_seen(Path(cfg["run_dir"]), cfg["trainer"]["monitor"]) if code == 0 else None  # to a sweeper that asks

    config.run_hydra(task, argv)
    return max(codes, default=0)


def _run(cfg: dict[str, Any]) -> int:
    from zoo.training.loop import run

    return run(cfg)


def evaluate(argv: list[str]) -> int:
    """run=<directory> or paper=... weights=<file>; prints a table, writes metrics.json and pictures."""
    from zoo.evaluation.command import evaluate_command

    return evaluate_command(argv)


def sample(argv: list[str]) -> int:
    """run=<directory> n=16: images into pictures/samples.png, text onto the screen."""
    from zoo.evaluation.command import sample_command

    return sample_command(argv)


def plan(argv: list[str]) -> int:
    """paper=... gpus=64: what data parallel training of it would take."""
    from zoo.training.scaling import plan_command

    return plan_command(argv)


def export(argv: list[str]) -> int:
    """run=<directory> to=<folder>: model.safetensors, config.json and a model card."""
    from zoo.hub.export import export_command

    return export_command(argv)


def convert(argv: list[str]) -> int:
    """<file, folder or hub id> --to <preset>: weights in somebody else's names into a safetensors file in ours."""
    from zoo.hub.convert import convert_command

    return convert_command(argv)


def results(argv: list[str]) -> int:
    """[paper or pattern]: what has been recorded, beside the papers' numbers."""
    from zoo.results import results_command

    return results_command(argv)


def report(argv: list[str]) -> int:
    """<run directory> ...: the page of a run, or of several beside one another."""
    from zoo.report.command import report_command

    return report_command(argv)


def gallery(argv: list[str]) -> int:
    """All papers on one page, with pictures from results/."""
    from zoo.report.command import gallery_command

    return gallery_command(argv)


def list_papers(argv: list[str]) -> int:
    if argv:
        raise ConfigError(f"list takes no arguments, not {argv[0]!r}")
    _print_papers()
    return 0


def _print_papers() -> None:
    from zoo.catalog import PAPERS
    from zoo.config import paper_configs

    configs = paper_configs()
    for paper in PAPERS.values():
        print(f"{paper.key:<10} {paper.title} ({paper.year}): {paper.summary}")
        rows = [name for name in configs if name.startswith(f"{paper.key}/")]
        if rows:
            print(f"{'':<10} rows: {', '.join(row.split('/', 1)[1] for row in rows)}")


def info(argv: list[str]) -> int:
    """What is known of one paper or preset, without building it."""
    import difflib

    from zoo.catalog import PAPERS, list_models
    from zoo.config import paper_configs
    from zoo.weights import about, shipped

    if len(argv) != 1:
        raise ConfigError("info takes one name: python -m zoo info resnet50")
    name = argv[0]
    paper = PAPERS.get(name) or next((p for p in PAPERS.values() if name in p.presets), None)
    if paper is None:
        near = difflib.get_close_matches(name, [*PAPERS, *list_models()], n=3, cutoff=0.4)
        raise ConfigError(f"no paper or preset is called {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "; see python -m zoo list"))
    print(f"{paper.title}\n{paper.authors}, {paper.year}, {paper.source}\n{paper.area}: {paper.summary}")
    if paper.builds_on:
        print(f"builds on: {', '.join(paper.builds_on)}")
    shown = {name: paper.presets[name]} if name in paper.presets else paper.presets
    for preset, count in shown.items():
        print(f"  from zoo.papers.{paper.key} import {preset:<24} {count:>13,} parameters")
        for weights in shipped(preset).get(preset, []):
            metrics = ", ".join(f"{metric} {value:.4g}" for metric, value in about(preset, weights)["run"]["metrics"].items())
            print(f'    zoo.create_model("{preset}", weights="{weights}"): {metrics}')
    for key, headline in paper_configs().items():
        if key.split("/")[0] == paper.key:
            print(f"  python train.py paper={key:<32} {headline}")
    return 0
