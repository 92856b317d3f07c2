"""docs/own-models.md does what it says, in a folder outside the repository; whose code may be called; data that are read item by item."""

import importlib
import json
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import message
from zoo.cli import main
from zoo.data.base import Data
from zoo.data.items import Items
from zoo.data.loader import stream, sweep
from zoo.errors import ConfigError
from zoo.signature import own_packages
from zoo.training.build import build_data, call
from zoo.training.first_stage import load_frozen

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "own-models.md").read_text(), re.S)
COMMANDS = [line for language, content in BLOCKS if language == "bash" for line in content.splitlines()]


def write_files(folder: Path) -> None:
    """The page's blocks that say in which file they stand."""
    for language, content in BLOCKS:
        if language != "bash":
            file = folder / re.search(r"^# (\S+/\S+)$", content, re.M)[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files, whose package can be imported and may not be called."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo"])
    monkeypatch.delenv("ZOO_PACKAGES", raising=False)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mypkg"]:
        del sys.modules[name]


def said(command: str, *words: str, capsys) -> str:
    """What a refused command says: one line."""
    assert main(command, list(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.slow
def test_the_page_through_a_shell(tmp_path):
    """With a repository that is no working directory, as an installed one isn't; then the first command again, which finds the run finished."""
    write_files(tmp_path)
    script = "\n".join(COMMANDS).replace("$PWD", f"$PWD:{ROOT}").replace("python -m", f"{sys.executable} -P -m")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs" / "mine"
    assert json.loads((runs / "net" / "metrics.json").read_text())["metrics"]["accuracy"] > 60
    found = json.loads((runs / "bars" / "metrics.json").read_text())
    assert found["metrics"]["accuracy"] > 80 and "best" in found["weights"]
    done = subprocess.run(["bash", "-e", "-c", "\n".join(script.splitlines()[:2])], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "is finished" in done.stdout


def test_a_model_of_ones_own_trains_resumes_and_is_evaluated(place, capsys, monkeypatch):
    words = COMMANDS[1].replace("'", "").split()[4:-1]
    assert main("train", [*words, "trainer.steps=4", "trainer.save_every=2", "trainer.keep=2"]) == 0
    run = place / "runs" / "mine" / "net"
    whole = (run / "model.safetensors").read_bytes()
    for left in ("model.safetensors", "checkpoints/step-00000004/manifest.json"):
        (run / left).unlink()
    capsys.readouterr()
    assert main("train", [*words, "trainer.steps=4", "trainer.save_every=2", "trainer.keep=2"]) == 0
    assert "step-00000002" in capsys.readouterr().out and (run / "model.safetensors").read_bytes() == whole
    advice = said("evaluate", f"run={run}", capsys=capsys)
    assert "ZOO_PACKAGES=mypkg" in advice
    assert main("evaluate", [f"run={run}", re.search(r"(\S+=\S+) on the command line", advice)[1]]) == 0
    monkeypatch.setenv("ZOO_PACKAGES", "other,mypkg")
    assert main("evaluate", [f"run={run}"]) == 0
    assert "generates nothing" in said("sample", f"run={run}", capsys=capsys)
    assert type(load_frozen(str(run)).objective.model).__name__ == "Net"
    capsys.readouterr()
    assert main("export", [f"run={run}", "to=exported"]) == 1 and "mypkg.net.Net, not of a model of zoo" in capsys.readouterr().err


def test_a_file_of_ones_own_with_data_and_objective(place, capsys, monkeypatch):
    words = ["--config-dir=conf", "paper=bars", "trainer.steps=4", "trainer.eval_every=2"]
    assert "data._target_ 'mypkg.shapes.bars' lies outside zoo" in said("train", *words, capsys=capsys)
    monkeypatch.setenv("ZOO_PACKAGES", "mypkg")
    assert main("train", words) == 0 and main("evaluate", ["run=runs/mine/bars"]) == 0
    assert set(json.loads(Path("runs/mine/bars/metrics.json").read_text())["metrics"]) == {"accuracy", "error", "loss"}
    assert main("train", [*words, "name=mine/workers", "data.workers=2"]) == 0
    alone, workers = (Path(f"runs/mine/{name}/model.safetensors").read_bytes() for name in ("bars", "workers"))
    assert alone == workers
    resnet = "model={_target_: zoo.papers.resnet.CifarResNet, depth: 8, in_channels: 1, num_classes: 2}"
    assert main("train", [*words, "name=mine/resnet", "~model", "+" + resnet]) == 0
    assert main("evaluate", ["run=runs/mine/resnet"]) == 0  # whose paper draws pictures of images that can be shown


def test_an_adapter_on_a_model_of_ones_own(place, monkeypatch):
    monkeypatch.setenv("ZOO_PACKAGES", "mypkg")
    base = "{_target_: mypkg.net.Net, in_channels: 1, num_classes: 10}"
    assert main("train", ["paper=resnet", "name=base", "trainer=smoke", "~model", f"+model={base}"]) == 0
    adapted = f"+model={{_target_: zoo.papers.lora.adapted, base: {base}, rank: 2, alpha: 2, targets: ['layers.4']}}"
    words = ["paper=resnet", "name=tuned", "trainer=smoke", "~model", adapted, "init=runs/base/smoke", "init_skip=['*.lora.*']"]
    assert main("train", words) == 0 and main("evaluate", ["run=runs/tuned/smoke"]) == 0


# ---- whose code may be called ----


def test_a_package_is_allowed_as_a_whole_but_nothing_that_it_imports(place, monkeypatch, capsys):
    Path("mypkg/loose.py").write_text("from os import system\nfrom torch import load\nfrom .net import Net\nwidth = 3\n")
    monkeypatch.setenv("ZOO_PACKAGES", "mypkg")
    model = {"in_channels": 1, "num_classes": 2}
    assert type(call("model", {"_target_": "mypkg.loose.Net", **model})).__name__ == "Net"
    for name, told in {"system": "comes from posix", "load": "comes from torch", "width": "is a int", "nosuch": "cannot be imported"}.items():
        assert told in message(lambda name=name: call("model", {"_target_": f"mypkg.loose.{name}"}), ConfigError)
    remedy = message(lambda: call("model", {"_target_": "mypkg.net.Net", **model, "depth": 3}), ConfigError)
    assert remedy.endswith("unexpected keyword argument 'depth'; '~model.depth' leaves it out")
    assert "PYTHONPATH" in message(lambda: call("model", {"_target_": "elsewhere.Net"}), ConfigError)


@pytest.mark.parametrize("package", ["os", "subprocess", "torch", "numpy", "joblib"])
def test_no_word_allows_what_is_no_part_of_an_experiment(package, monkeypatch, place, capsys):
    monkeypatch.setenv("ZOO_PACKAGES", package)
    assert own_packages() == [package]
    assert "no part of an experiment" in said("train", "paper=resnet", f"model._target_={package}.load", capsys=capsys)


# ---- data ----


class Noisy:
    """Items that draw from all generators."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"noise": torch.randn(2, dtype=torch.double), "others": np.random.rand() + random.random(), "label": i}


def test_items_draw_by_epoch_and_item_and_leave_the_generators_of_the_run_alone():
    split = Items(Noisy(), seed=3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    plan = split.plan(7)
    first, second = split.fetch(plan.batch(0)), split.fetch(plan.batch(1))
    again = split.fetch({name: value.flip(0) for name, value in plan.batch(0).items()})
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist() and torch.equal(before[2], torch.get_rng_state())
    assert first["noise"].dtype == torch.float and first["others"].dtype == torch.float and torch.equal(first["label"], first["index"])
    for name in ("noise", "others"):
        assert torch.equal(again[name].flip(0), first[name])
        assert not set(first[name].flatten().tolist()) & set(second[name].flatten().tolist())
    assert sorted(first["label"].tolist()) == list(range(7))


def test_items_of_workers_and_of_evaluation():
    def batches(workers: int) -> list:
        split = Items(Noisy(), 3, workers)
        return list(islice(stream(split, split.plan(3), 0, torch.device("cpu")), 4))

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    once, twice = ([batch for _, _, batch in sweep(Items(Noisy()), 3, torch.device("cpu"))] for _ in range(2))
    assert [len(batch["label"]) for batch in once] == [3, 3, 1]
    assert all(torch.equal(a["noise"], b["noise"]) for a, b in zip(once, twice))


def test_a_function_of_data_gets_of_the_common_keys_what_it_names(place, monkeypatch):
    Path("mypkg/loose.py").write_text("seen = {}\ndef few(items): return items\ndef every(items, **others): seen.update(others); return items\n")
    monkeypatch.setenv("ZOO_PACKAGES", "mypkg")
    section = {"batch_size": 4, "num_classes": 3, "workers": 0, "items": Data(None, None, None, {"num_classes": 3})}
    built = lambda name, **more: build_data({"seed": 1, "data": {"_target_": f"mypkg.loose.{name}", **section, **more}})
    assert built("few") is section["items"]
    assert "data.num_classes is 2" in message(lambda: built("few", num_classes=2), ConfigError)
    assert "'~data.extra' leaves it out" in message(lambda: built("few", extra=1), ConfigError)
    built("every", extra=1)
    assert importlib.import_module("mypkg.loose").seen == {"batch_size": 4, "num_classes": 3, "workers": 0, "seed": 1, "extra": 1}
