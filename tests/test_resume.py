"""A run that stops anywhere goes on to the very same bits (CPU): by signal, by kill, by a damaged checkpoint; more of it in tests/faults."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.toys import KINDS, SHORT, STATEFUL, toy, without_curves
from zoo.errors import ConfigError, NoCheckpointError, NonFiniteError
from zoo.training import checkpoint as checkpoints
from zoo.training.loop import run

KEPT = ["trainer.ema=0.9", "trainer.save_every=1", "trainer.keep=100"]  # every checkpoint
KEYS = [*STATEFUL["classifier"], *KEPT]


def contents(path: Path) -> dict:
    """All tensors and values of a checkpoint, except the clock."""
    tensors, training, manifest = checkpoints.load_checkpoint(path)
    training.pop("seconds")
    return {"tensors": tensors, "training": training, "step": manifest["step"]}


def assert_identical(a, b, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_identical(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def last(folder: Path) -> Path:
    return checkpoints.steps(folder / "checkpoints")[-1]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> Path:
    """Each toy, uninterrupted, with every checkpoint kept."""
    without_curves()
    folder = tmp_path_factory.mktemp("whole")
    for name in KINDS:
        assert run(toy(name, folder / name, *STATEFUL[name], *KEPT)) == 0
    return folder


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("step", [1, 4])
def test_resuming_ends_bit_identical(whole_runs, tmp_path, name, step):
    folder = tmp_path / "run"
    shutil.copytree(whole_runs / name, folder)
    for path in checkpoints.steps(folder / "checkpoints"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    assert run(toy(name, folder, *STATEFUL[name], *KEPT)) == 0
    assert_identical(contents(last(folder)), contents(last(whole_runs / name)))
    for file in ("model.safetensors", "ema.safetensors"):
        assert (folder / file).read_bytes() == (whole_runs / name / file).read_bytes()


@pytest.mark.counts("T3", "twin runs with another random state that end otherwise, as they must")
def test_the_comparison_notices_another_random_state(whole_runs, tmp_path):
    """The twin of the test above: with the saved generator changed, dropout differs, and so must the end."""
    folder = tmp_path / "run"
    shutil.copytree(whole_runs / "classifier", folder)
    for path in checkpoints.steps(folder / "checkpoints"):
        if path.name > "step-00000003":
            shutil.rmtree(path)
    path = folder / "checkpoints" / "step-00000003"
    tensors, training, manifest = checkpoints.load_checkpoint(path)
    torch.manual_seed(999)
    training["random"][0]["torch"] = torch.get_rng_state()
    shutil.rmtree(path)
    checkpoints.save_checkpoint(folder / "checkpoints", 3, tensors, training, {})
    run(toy("classifier", folder, *KEYS))
    with pytest.raises(AssertionError):
        assert_identical(contents(last(folder)), contents(last(whole_runs / "classifier")))


def test_metrics_have_each_step_once_after_resuming(whole_runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole_runs / "classifier", folder)
    for path in checkpoints.steps(folder / "checkpoints"):
        if path.name > "step-00000002":
            shutil.rmtree(path)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # a line that a kill cut short
    run(toy("classifier", folder, *KEYS))
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "grad_norm" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_left_as_it_is(whole_runs, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole_runs / "classifier", folder)
    before, records = (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    assert run(toy("classifier", folder, *KEYS)) == 0
    assert (folder / "model.safetensors").read_bytes() == before
    assert (folder / "metrics.jsonl").read_bytes() == records
    assert "is finished" in capsys.readouterr().out


# ---- damage ----


@pytest.fixture
def damaged(whole_runs, tmp_path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(whole_runs / "classifier", folder)
    return folder


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damaged, capsys):
    newest = last(damaged)
    flip(newest / "weights.safetensors", 5000)
    chosen = checkpoints.newest_valid(damaged / "checkpoints")
    assert chosen.name == "step-00000005"
    assert "step-00000006/weights.safetensors is damaged" in capsys.readouterr().err
    assert (damaged / "checkpoints" / "step-00000006.corrupt").is_dir() and not newest.exists()


def test_without_any_usable_checkpoint_nothing_is_guessed(damaged):
    for path in checkpoints.steps(damaged / "checkpoints"):
        (path / "training.pt").unlink()
    with pytest.raises(NoCheckpointError, match="resume=never") as error:
        checkpoints.newest_valid(damaged / "checkpoints")
    assert error.value.exit_code == 3


def test_an_explicit_checkpoint_never_falls_back(damaged):
    path = last(damaged)
    flip(path / "training.pt", 999)
    with pytest.raises(NoCheckpointError, match="training.pt is damaged"):
        run(toy("classifier", damaged, *KEYS, f"resume={path}"))


def test_a_malicious_pickle_is_not_executed(damaged):
    import hashlib
    import pickle

    path, marker = last(damaged), damaged / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    content = pickle.dumps(Payload())
    (path / "training.pt").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception):  # noqa: B017  any refusal will do
        checkpoints.load_checkpoint(path)
    assert not marker.exists()


def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_else(damaged, monkeypatch):
    from zoo.errors import ZooError

    before = checkpoints.steps(damaged / "checkpoints")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(ZooError, match="step-00000007: No space left on device"):
        checkpoints.save_checkpoint(damaged / "checkpoints", 7, {"weights": {"w": torch.ones(3)}}, {}, {})
    assert checkpoints.steps(damaged / "checkpoints") == before and not list((damaged / "checkpoints").glob(".tmp-*"))


def test_going_back_to_an_older_checkpoint_abandons_the_later_ones(whole_runs, damaged):
    older = damaged / "checkpoints" / "step-00000003"
    assert run(toy("classifier", damaged, *KEYS, f"resume={older}")) == 0
    assert len(list((damaged / "checkpoints").glob("*.abandoned-*"))) == 3
    assert_identical(contents(last(damaged)), contents(last(whole_runs / "classifier")))


def test_a_reader_renames_nothing(damaged):
    newest = last(damaged)
    flip(newest / "training.pt", 4000)
    assert checkpoints.newest_valid(damaged / "checkpoints", set_aside=False).name == "step-00000005"
    assert newest.is_dir()


def test_the_last_step_is_judged_too(whole_runs):
    records = [json.loads(line) for line in (whole_runs / "classifier" / "metrics.jsonl").read_text().splitlines()]
    judged = {r["step"]: r["valid/accuracy"] for r in records if "valid/accuracy" in r}
    best = contents(last(whole_runs / "classifier"))["training"]["best"]
    assert sorted(judged) == [3, 6] and best["value"] == max(judged.values()) and judged[best["step"]] == best["value"]


# ---- another configuration, another number of micro-batches ----


def test_a_run_older_than_a_key_of_the_trainer_goes_on(tmp_path):
    """Its config.yaml lacks the key, which then has its default; another value is a change like any other."""
    import yaml

    from zoo.run_directory import claim, read_config

    cfg = toy("classifier", tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    old = {**cfg, "trainer": {key: value for key, value in cfg["trainer"].items() if key != "nonfinite"}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    assert read_config(tmp_path / "run")["trainer"]["nonfinite"] == "stop"
    claim(cfg)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(ConfigError, match="trainer.nonfinite 'stop' -> 'skip'"):
        claim(toy("classifier", tmp_path / "run", "trainer.nonfinite=skip"))


def test_a_directory_in_which_nothing_was_computed_yet_takes_any_configuration(tmp_path):
    from zoo.run_directory import claim, read_config

    claim(toy("classifier", tmp_path / "run"))
    claim(toy("classifier", tmp_path / "run", "optim.lr=0.5"))
    assert read_config(tmp_path / "run")["optim"]["lr"] == 0.5


def test_the_command_for_a_changed_configuration_starts_another_run(tmp_path, monkeypatch):
    """A directory that was named on the command line stays the same whatever the run's name."""
    from zoo.run_directory import claim

    folder = tmp_path / "run"
    claim(toy("classifier", folder))
    (folder / "checkpoints").mkdir()
    for given, ready in ((["name=mine"], "name=toy/classifier-lr-0.5"), ([f"run_dir={folder}"], f"run_dir={folder}-lr-0.5")):
        monkeypatch.setattr(sys, "argv", ["train.py", "paper=toy", "optim.lr=0.5", *given])
        with pytest.raises(ConfigError, match=re.escape(f"a new run: python train.py paper=toy optim.lr=0.5 {ready} (with init=")):
            claim(toy("classifier", folder, "optim.lr=0.5"))


def test_a_changed_configuration_is_refused_with_the_difference_and_a_command(damaged):
    with pytest.raises(ConfigError, match=r"optim.lr 0.001 -> 0.5.*name=toy/classifier-lr-0.5.*resume=never"):
        run(toy("classifier", damaged, *KEYS, "optim.lr=0.5"))


def test_how_a_run_runs_may_change_on_resume(damaged):
    shutil.rmtree(last(damaged))
    keys = [key for key in STATEFUL["classifier"] if "accumulate" not in key]
    assert run(toy("classifier", damaged, *keys, "trainer.ema=0.9", "trainer.accumulate=4", "trainer.log_every=3", "trainer.keep=1")) == 0


def test_resume_never_keeps_the_old_run_aside(damaged):
    assert run(toy("classifier", damaged, *KEYS, "resume=never")) == 0
    assert (damaged.with_name("run.old-1") / "config.yaml").is_file()


# ---- steps that are not finite ----


def exploding(folder: Path, at: str, *overrides: str) -> dict:
    return toy("classifier", folder, "model._target_=tests.toys.Exploding", f"model.at={at}", "trainer.ema=0.9", "trainer.save_every=1",
               "trainer.keep=100", "optim={name: sgd, lr: 0.1, momentum: 0.9}",
               "schedule={name: step, every: 1, gamma: 0.5}", *overrides)  # fmt: skip


def test_a_bad_step_stops_the_run_and_the_last_checkpoint_stays(tmp_path):
    with pytest.raises(NonFiniteError, match="steps 4 to 4") as error:
        run(exploding(tmp_path / "run", "[4]"))
    assert error.value.exit_code == 4
    assert last(tmp_path / "run").name == "step-00000003"


@pytest.mark.counts("T17", "bad steps, the first one too, that changed nothing: weights, velocities, statistics, averages, schedule")
def test_a_skipped_step_changes_nothing(tmp_path):
    """Weights, velocities, batch statistics, the average and the schedule stay as they were, at the very first step, too."""
    run(exploding(tmp_path / "run", "[1, 4, 5]", "trainer.nonfinite=skip", "trainer.log_every=100", "trainer.save_every=1"))
    states = {int(path.name[5:]): contents(path) for path in checkpoints.steps(tmp_path / "run" / "checkpoints")}
    for step in (4, 5):
        assert_identical(states[step]["tensors"], states[3]["tensors"])
        assert_identical(states[step]["training"]["players"], states[3]["training"]["players"])
    assert states[1]["training"]["players"]["model"]["updates"] == 0
    assert all(not state["momentum_buffer"].any() for state in states[1]["training"]["players"]["model"]["optimizer"].values())
    assert states[6]["training"]["players"]["model"]["updates"] == 3
    before, after = (states[step]["tensors"]["weights"]["model.layers.1.weight"] for step in (5, 6))
    assert not torch.equal(before, after)


# ---- signals and kills, through the front door ----


def command(name: str, folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "train.py", *KINDS[name], *SHORT, *STATEFUL[name], "trainer.ema=0.9", f"run_dir={folder}", *overrides]


def start(name: str, folder: Path, *overrides: str, ranks: int = 1) -> subprocess.Popen:
    root = Path(__file__).parent.parent
    words = command(name, folder, *overrides)
    if ranks > 1:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_first_step(process: subprocess.Popen) -> None:
    for line in process.stdout:
        if line.startswith("step "):
            threading.Thread(target=process.stdout.read, daemon=True).start()  # keep the pipe empty
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path, number, code):
    process = start("classifier", tmp_path / "run", "trainer.steps=100000", "trainer.save_every=null", "trainer.eval_every=null")
    wait_for_first_step(process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    step = int(last(tmp_path / "run").name[5:])
    assert step >= 1
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["step"] == step  # no step is lost


MANY = ["trainer.steps=120", "trainer.save_every=5", "trainer.eval_every=40", "trainer.log_every=10", "trainer.keep=3"]


def wait_for_a_save(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None:
        if any((folder / "checkpoints").glob(".tmp-*")):
            return


def killed_and_resumed(name: str, folder: Path, seconds: float, in_save: bool) -> Path:
    """Kills the run `seconds` after its first logged step, or in its first save after that, and lets the same command finish it."""
    process = start(name, folder, *MANY)
    wait_for_first_step(process)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if in_save:
            wait_for_a_save(process, folder)
    process.kill()
    process.wait()
    again = start(name, folder, *MANY)
    assert again.wait(timeout=300) == 0, again.stderr.read()
    return last(folder)


def test_a_kill_inside_a_save_loses_nothing(tmp_path):
    run(toy("game", tmp_path / "whole", *STATEFUL["game"], "trainer.ema=0.9", *MANY))
    end = killed_and_resumed("game", tmp_path / "killed", 0.2, in_save=True)
    assert_identical(contents(end), contents(last(tmp_path / "whole")))
