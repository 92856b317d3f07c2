"""Files and configurations that want to run code: nothing of it runs, nothing is written where it does not belong (T8, T9).

Downloads that misbehave (T23) are in tests/test_download.py.
"""

import builtins
import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.faults.test_damage import rewritten
from tests.test_resume import last
from tests.toys import toy, without_curves
from zoo import hub, schema
from zoo.cli import main
from zoo.data import cache
from zoo.data.image_sets import unpickle_arrays
from zoo.errors import ConfigError, ZooError
from zoo.evaluation.command import evaluate_command, sample_command
from zoo.evaluation.features import extractor
from zoo.papers.lora.convert import from_peft
from zoo.papers.vit import ViT
from zoo.training import checkpoint as checkpoints
from zoo.training.first_stage import load_frozen
from zoo.training.init import read_weights
from zoo.training.loop import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    without_curves()
    folder = tmp_path_factory.mktemp("finished") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(toy("classifier", folder, "trainer.ema=0.9")) == 0
    return folder


@pytest.fixture
def victim(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# ---- T8: files ----


class Calls:
    """What unpickling it would call."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


class Item(Calls):
    """The same within what a state dict may hold."""


def payloads(marker: str) -> dict[str, object]:
    script = f"open({marker!r}, 'w').close()"
    return {
        "os.mkdir": Calls(os.mkdir, marker),
        "os.system": Calls(os.system, f"touch {marker}"),
        "exec": Calls(exec, script),
        "eval": Calls(eval, f"open({marker!r}, 'w').close()"),
        "subprocess": Calls(subprocess.Popen, ["touch", marker]),
        "open": Calls(builtins.open, marker, "w"),
        "in a state dict": OrderedDict(weight=torch.ones(2), more=Item(os.mkdir, marker)),
        "as a key": {("a", Item(os.mkdir, marker)): 1},
        "in a list": [torch.ones(2), [Item(os.system, f"touch {marker}")]],
        "getattr": Calls(getattr, Calls(__import__, "os"), "mkdir"),
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, marker))),
    }


def saved(payload: object, form: str) -> bytes:
    out = io.BytesIO()
    if form == "pickle":
        pickle.dump(payload, out, 2)
    elif form == "torch":
        torch.save(payload, out)
    elif form == "torch before 1.6":
        torch.save(payload, out, _use_new_zipfile_serialization=False)
    else:
        array = np.empty(1, dtype=object)
        array[0] = payload
        np.savez(out, **{"model.layers.1.weight": array}) if form == "npz" else np.save(out, array)
    return out.getvalue()


def in_checkpoint(name: str):
    """As a file of the newest checkpoint, with digests that are right."""

    def resume(victim: Path, content: bytes) -> None:
        path = last(victim)
        (victim / "model.safetensors").unlink()
        (path / name).write_bytes(content)
        files = json.loads((path / "manifest.json").read_text())["files"]
        facts = {"size": len(content), "sha256": checkpoints.digest(path / name)}
        rewritten(path, "", files=files | {name: facts})
        run(toy("classifier", victim, "trainer.ema=0.9", f"resume={path}"))

    return resume


def as_manifest(victim: Path, content: bytes) -> None:
    path = last(victim)
    (path / "manifest.json").write_bytes(content)
    checkpoints.load_checkpoint(path)


def as_weights(suffix: str):
    def start(victim: Path, content: bytes) -> None:
        file = victim.with_name(f"weights{suffix}")
        file.write_bytes(content)
        run(toy("classifier", victim.with_name("new"), f"init={file}"))

    return start


def evaluated(victim: Path, content: bytes) -> None:
    (victim / "ema.safetensors").write_bytes(content)
    evaluate_command([f"run={victim}", "model._target_=tests.toys.Mlp", "device=cpu"])


def evaluated_weights(victim: Path, content: bytes) -> None:
    victim.with_name("w.safetensors").write_bytes(content)
    evaluate_command(["paper=resnet", f"weights={victim.with_name('w.safetensors')}", "device=cpu"])


def from_hub(victim: Path, content: bytes) -> None:
    (victim / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (victim / "model.safetensors").write_bytes(content)
    (victim / "pytorch_model.bin").write_bytes(content)
    hub.from_pretrained(victim)


def as_adapter(victim: Path, content: bytes) -> None:
    (victim / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["qkv"]}))
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        (victim / name).write_bytes(content)
    from_peft(ViT(8, 4, depth=1, d_model=8, n_heads=2, in_channels=1, num_classes=3), victim)


def as_inception(victim: Path, content: bytes) -> None:
    victim.with_name("weights.pth").write_bytes(content)
    extractor(str(victim.with_name("weights.pth")), torch.device("cpu"))


def as_arrays(victim: Path, content: bytes) -> None:
    victim.with_name("a.npz").write_bytes(content)
    read_weights(str(victim.with_name("a.npz")))


def as_kept_statistics(victim: Path, content: bytes) -> None:
    """In the cache: a digest stands behind the content, which only a liar makes fit."""
    import hashlib

    cache.kept("key", lambda: {"mean": torch.ones(2)})
    file = next(path for path in cache.FOLDER.iterdir() if not path.name.startswith("."))
    file.write_bytes(content + hashlib.sha256(content).digest())
    cache.kept("key", lambda: {"mean": torch.ones(2)})


def as_first_stage(victim: Path, content: bytes) -> None:
    for name in ("model", "ema"):
        (victim / f"{name}.safetensors").write_bytes(content)
    load_frozen(str(victim))


DOORS = {
    "resume, training.pt": in_checkpoint("training.pt"),
    "resume, weights": in_checkpoint("weights.safetensors"),
    "resume, average": in_checkpoint("ema.safetensors"),
    "resume, manifest": as_manifest,
    "init, safetensors": as_weights(".safetensors"),
    "init, npz": as_weights(".npz"),
    "init, pt": as_weights(".pt"),
    "init, bin": as_weights(".bin"),
    "evaluate run=": evaluated,
    "evaluate weights=": evaluated_weights,
    "from_pretrained": from_hub,
    "from_peft": as_adapter,
    "features=": as_inception,
    "arrays": as_arrays,
    "CIFAR-10's files": lambda victim, content: unpickle_arrays(content)[b"data"],
    "kept statistics": as_kept_statistics,
    "first stage": as_first_stage,
}


FURTHER = {"CIFAR-10's files": (pickle.UnpicklingError, TypeError, KeyError)}  # whose bytes must be the published ones before they come here


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.fault)])
def test_no_file_runs_code(door, all_of_them, victim, tmp_path, monkeypatch, tally):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    marker, tried, refused = tmp_path / "executed", 0, 0
    for name, payload in payloads(str(marker)).items():
        for form in ("pickle", "torch", "torch before 1.6", "npz", "npy"):
            usual = name in ("os.mkdir", "in a state dict")
            if (form in ("torch before 1.6", "npy", "npz") and not usual) or not (all_of_them or usual):
                continue
            copy = tmp_path / "copy"
            shutil.copytree(victim, copy / "run")
            content, tried = saved(payload, form), tried + 1
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    DOORS[door](copy / "run", content)
                    refused += door == "kept statistics"  # computed anew
                except (ZooError, ValueError, *FURTHER.get(door, ())):
                    refused += 1
            assert not marker.exists(), f"{name} as {form} was executed"
            shutil.rmtree(copy)
    tally("T8", "files with code in them refused, and nothing executed", refused, tried)


# ---- T9: configurations ----

FOREIGN = [
    "os.system", "os.mkdir", "subprocess.Popen", "subprocess.run", "builtins.eval", "builtins.exec", "builtins.open", "runpy.run_path",
    "importlib.import_module", "logging.os.system", "shutil.copy", "shutil.rmtree", "urllib.request.urlretrieve", "pickle.load", "ctypes.CDLL",
    "pathlib.Path.touch", "codecs.open", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load", "numpy.load", "numpy.save",
    "numpy.lib.npyio.DataSource", "joblib.load", "tests.toys.Mlp", "hydra.utils.instantiate", "timm.create_model",
]  # fmt: skip
OURS = [
    "zoo.training.build.call", "zoo.training.checkpoint.write_atomically", "zoo.training.checkpoint.prune", "zoo.training.checkpoint.clean",
    "zoo.training.logging.write_csv", "zoo.training.outcome.write_weights", "zoo.run_directory.claim", "zoo.run_directory.drop_after",
    "zoo.cli.main", "zoo.cli.train", "zoo.config.run_hydra", "zoo.evaluation.command.evaluate_command", "zoo.data.download.provide",
    "zoo.data.download.unpack", "zoo.data.cache.kept", "zoo.evaluation.pictures.save_picture", "zoo.training.loop.run",
    "zoo.training.init.load_file", "zoo.papers.resnet.os.system", "zoo.os.system", "zoo.papers.lora.convert.save_file",
    "zoo.papers.lora.convert.to_peft", "zoo.training.first_stage.load_frozen", "zoo.data.image_sets.unpickle_arrays",
]  # fmt: skip


def arguments(marker: str) -> dict:
    """Of any of them."""
    inner = {"_target_": "os.system", "command": f"touch {marker}"}
    return {"command": f"touch {marker}", "path": marker, "file": marker, "where": "x", "values": inner, "args": ["touch", marker]}


def placed(cfg: dict, section: str, hostile: dict) -> dict:
    cfg = json.loads(json.dumps(cfg))
    cfg[section] = {"x": hostile} if section == "evaluation" else hostile
    return cfg


@pytest.mark.parametrize("section", ["model", "objective", "data", "evaluation"])
def test_no_configuration_of_a_run_runs_code(section, victim, tmp_path, tally):
    """Through the schema, as every command reads it, with many targets; through every command with some."""
    marker, good, tried = tmp_path / "executed", 0, 0
    cfg = yaml.safe_load((victim / "config.yaml").read_text())
    sound = {**cfg, "model": {**cfg["model"], "_target_": "zoo.papers.resnet.CifarResNet", "depth": 8, "num_classes": 10, "in_channels": 1}}
    sound["model"] = {key: sound["model"][key] for key in ("_target_", "depth", "num_classes", "in_channels")}
    schema.check(sound)
    for target in FOREIGN + OURS:
        for extra in ({}, arguments(str(marker))):
            tried += 1
            with pytest.raises(ConfigError):
                schema.check(placed(sound, section, {"_target_": target, **extra}))
            good += 1
    for target in ("os.system", "zoo.training.build.call"):
        (victim / "config.yaml").write_text(yaml.safe_dump(placed(sound, section, {"_target_": target, **arguments(str(marker))})))
        before = sorted(tmp_path.rglob("*"))
        for command in (lambda: evaluate_command([f"run={victim}"]), lambda: sample_command([f"run={victim}"]), lambda: load_frozen(str(victim))):
            tried += 1
            with pytest.raises(ConfigError):
                command()
            good += 1
        assert sorted(tmp_path.rglob("*")) == before
    assert not marker.exists()
    tally("T9", "run configurations with hostile targets refused, nothing executed or written", good, tried)


TAGS = [
    '!!python/object/apply:os.system ["touch MARKER"]', '!!python/object/new:os.system ["touch MARKER"]', "!!python/name:os.system",
    "!!python/module:os", '!!python/object/apply:subprocess.Popen [["touch", "MARKER"]]', '!!python/object/apply:os.mkdir ["MARKER"]',
]  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_no_yaml_tag_runs_code(tag, victim, tmp_path, tally):
    with open(victim / "config.yaml", "a") as file:
        file.write(f"more: {tag}\n".replace("MARKER", str(tmp_path / "executed")))
    for command in (evaluate_command, sample_command):
        with pytest.raises(ConfigError, match="is damaged"):
            command([f"run={victim}"])
    assert not (tmp_path / "executed").exists()
    tally("T9", "run configurations with YAML tags refused, nothing executed", 2, 2)


SECTIONS = ["model", "objective", "data", "evaluation.x"]
OVERRIDES = [
    *(f"{section}._target_={target}" for section, target in zip(SECTIONS * 7, FOREIGN) if target.split(".")[0] not in ("tests", "timm", "hydra")),
    "+hydra.callbacks.x={_target_: torch.load, f: MARKER}",
    "hydra.callbacks.x={_target_: builtins.open, file: MARKER, mode: w}",
    "++hydra.callbacks.x._target_=os.mkdir",
    "hydra.launcher._target_=os.system",
    "hydra.sweeper._target_=os.system",
    "hydra.job_logging={version: 1, handlers: {x: {'()': os.mkdir, path: MARKER}}, root: {handlers: [x]}}",
    "hydra.hydra_logging={version: 1, handlers: {x: {class: logging.FileHandler, filename: MARKER}}, root: {handlers: [x]}}",
    "hydra/job_logging=default",
    "hydra/hydra_logging=default",
    "hydra.searchpath=[file://FOLDER]",
    "hydra.output_subdir=MARKER",
    "hydra.job.chdir=true",
    "hydra.help.template=x",
]  # fmt: skip


@pytest.mark.parametrize("word", OVERRIDES)
def test_no_override_runs_code(word, tmp_path, monkeypatch, tally):
    """A command line is its writer's own, but what he copies from somewhere should not run code, either."""
    marker = tmp_path / "executed"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    word = word.replace("MARKER", str(marker)).replace("FOLDER", str(tmp_path))
    extra = [f"++{word.split('._target_')[0]}.command='touch {marker}'"] if "._target_" in word and not word.startswith(("hydra", "+")) else []
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main("train", ["paper=resnet", "trainer=smoke", word, *extra])
    assert not marker.exists()
    assert code == 2 and err.getvalue().count("\n") == 1, err.getvalue()
    tally("T9", "hostile overrides refused in one line, nothing executed or written", 1, 1)


HYDRA = {
    "callbacks": {"x": {"_target_": "builtins.open", "file": "MARKER", "mode": "w"}},
    "launcher": {"_target_": "os.system", "command": "touch MARKER"},
    "sweeper": {"_target_": "os.system", "command": "touch MARKER"},
    "job_logging": {"version": 1, "handlers": {"x": {"()": "os.mkdir", "path": "MARKER"}}, "root": {"handlers": ["x"]}},
    "hydra_logging": {"version": 1, "handlers": {"x": {"class": "logging.FileHandler", "filename": "MARKER"}}, "root": {"handlers": ["x"]}},
    "run": {"dir": "/tmp/elsewhere-MARKERNAME"},
}


@pytest.mark.parametrize("section", HYDRA)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_no_file_of_a_paper_runs_code(section, flags, tmp_path, monkeypatch, tally):
    """Somebody else's file, used by --config-dir."""
    marker, here = tmp_path / "executed", tmp_path / "here"
    (tmp_path / "own" / "paper").mkdir(parents=True)
    here.mkdir()
    text = json.dumps({section: HYDRA[section]}).replace("MARKERNAME", tmp_path.name).replace("MARKER", str(marker))
    (tmp_path / "own" / "paper" / "mine.yaml").write_text(f"# @package _global_\ndefaults: [/paper/resnet, _self_]\nhydra: {text}\n")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("zoo.cli._run", lambda cfg: 0)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main("train", [f"--config-dir={tmp_path / 'own'}", "paper=mine", *flags])
    assert not marker.exists() and not Path(f"/tmp/elsewhere-{tmp_path.name}").exists()
    assert code == 2 and err.getvalue().count("\n") == 1, (code, err.getvalue())
    tally("T9", "files of papers that set up Hydra otherwise refused in one line, nothing executed or written", 1, 1)
