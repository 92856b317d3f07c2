"""What a sweeper is told of a run, so that it can choose the next one."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from zoo.cli import main
from zoo.run_directory import best_seen


def log(folder: Path, *values: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"step": 1, "loss": 3.0}] + [{"step": step, "valid/accuracy": value, "valid/loss": -value} for step, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, {"step": 9, "test/accuracy": 99.0}]))


def test_the_best_that_a_run_saw_on_its_validation_split(tmp_path):
    log(tmp_path, 10.0, 30.0, 20.0)
    assert best_seen(tmp_path, "accuracy") == 30.0 and best_seen(tmp_path, "-loss") == -30.0 and best_seen(tmp_path, "loss") == -10.0
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "valid/accuracy": null}\n')  # what was not finite
    assert best_seen(tmp_path, "accuracy") == 30.0
    assert best_seen(tmp_path, None) is None and best_seen(tmp_path, "bleu") is None and best_seen(tmp_path / "nowhere", "accuracy") is None


@pytest.mark.slow
def test_optuna_follows_what_runs_return(tmp_path, monkeypatch):
    """Runs in place of which a parabola stands: the best of ten guesses is found, and a failed run is told as one."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rates = []

    def run(cfg):
        rates.append(cfg["optim"]["lr"])
        log(Path(cfg["run_dir"]), 50 - (cfg["optim"]["lr"] - 1) ** 2)
        return 1 if len(rates) == 3 else 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo"])
    monkeypatch.setattr("zoo.cli._run", run)
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=10", "hydra.sweeper.n_jobs=1"]
    words = ["-m", "paper=resnet", "name=swept", "optim.lr=interval(0,2)", *sweeper, "hydra.sweeper.sampler.seed=1"]
    assert main("train", [*words, "hydra.sweeper.max_failure_rate=1"]) == 1 and len(set(rates)) == 10
    found = yaml.safe_load(Path("runs/swept/optimization_results.yaml").read_text())
    heeded = [rate for number, rate in enumerate(rates) if number != 2]
    assert found["best_params"] == {"++optim.lr": min(heeded, key=lambda rate: abs(rate - 1))} and found["best_value"] <= 50
