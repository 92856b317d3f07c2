"""The benchmarks still run, and judge by their own rule."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.cases import CASES, Case
from benchmarks.peers import measure, verdict


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 1000))


@pytest.mark.parametrize("work, mode", [("step", "bf16"), ("inference", "fp32")])
def test_a_measurement_has_times_ratios_and_the_noise_floor(work, mode, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.round", lambda value, digits=0: 1, raising=False)  # one run a timing, not as many as fill a second
    case = Case(small, {"first": small, "second": small}, batch=2, optimizer="sgd", channels_last=True, size=8)
    result = measure(case, work, mode, torch.device("cpu"), repeats=2)
    assert set(result["milliseconds"]) == {"ours", "first", "second", "first again"}
    assert set(result["ratio_to"]) == {"first", "second"} and len(result["noise_floor"]) == 3
    assert len(set(result["parameters"].values())) == 1


@pytest.mark.parametrize("ratio, floor, said", [
    ([0.8, 0.9, 1.0], [0.96, 1.0, 1.04], "not slower"),
    ([0.8, 0.9, 1.07], [0.96, 1.0, 1.04], "7 % slower at the upper quartile"),
    ([0.8, 0.9, 0.95], [0.94, 1.0, 1.04], "not measured"),
    ([0.8, 0.9, 0.95], [0.96, 1.0, 1.06], "not measured"),
])  # fmt: skip
def test_the_verdict(ratio, floor, said):
    assert verdict({"ratio_to": {"peer": ratio}, "noise_floor": floor}) == said


def test_cases_name_presets_that_exist():
    for case in CASES.values():
        with torch.device("meta"):
            assert sum(p.numel() for p in case.ours().parameters()) > 0


def test_without_a_name_the_benchmarks_are_listed():
    done = subprocess.run([sys.executable, "-m", "benchmarks"], capture_output=True, text=True)
    assert done.returncode == 2 and "peers" in done.stdout
