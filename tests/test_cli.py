"""The front door: commands, run directories and exit codes; the light commands stay light (wrong command lines: tests/faults/test_overrides.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys import CLASSIFIER, SHORT
from zoo.cli import main
from zoo.config import compose, paper_configs

ROOT = Path(__file__).parent.parent


def command(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", "zoo", *words], cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=240)


def test_a_paper_or_a_key_without_its_first_word_is_understood(capsys):
    assert main("train", ["resnet"]) == 2 and "did you mean paper=resnet?" in capsys.readouterr().err
    assert main("train", ["paper=resnet", "steps=3"]) == 2 and "unknown key 'steps'; did you mean trainer.steps?" in capsys.readouterr().err
    assert main("train", ["paper=resnet", "depth=20"]) == 2 and "did you mean model.depth?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["paper=resnet", "trainer.stpes=3"], ["paper=resnt"], ["paper=resnet", "optim.lr=fast"]])
def test_a_wrong_command_line_through_a_process(words, tmp_path):
    done = command("train", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("name", paper_configs())
def test_every_paper_configuration_composes(name):
    cfg = compose([f"paper={name}"])
    assert cfg["name"] == (name if "/" in name else f"{name}/quick")
    assert cfg["run_dir"] == f"runs/{cfg['name']}"
    if "/" in name and "digits" not in name:
        assert cfg["expect"] is None or {"metric", "paper", "source"} <= set(cfg["expect"])


@pytest.mark.parametrize("name", paper_configs())
def test_every_configuration_begins_with_what_it_is_and_how_to_run_it(name):
    header = [line for line in (ROOT / "configs" / "paper" / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3 and any(f"paper={name}" in line for line in header)


def test_without_a_paper_the_papers_are_listed_and_the_code_is_2(capsys):
    assert main("train", []) == 2
    out = capsys.readouterr().out
    assert all(f"\n{key} " in "\n" + out for key in ("resnet", "lstm", "gan", "ddpm"))


def test_help_is_for_people(tmp_path):
    done = command("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "python train.py paper=resnet" in done.stdout and "trainer:" in done.stdout and not list(tmp_path.iterdir())


def test_multirun_names_each_run_by_what_differs(tmp_path, monkeypatch):
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.cli._run", lambda cfg: started.append((cfg["run_dir"], cfg["optim"]["lr"], cfg["seed"])) or 0)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert main("train", ["-m", "paper=resnet", "optim.lr=0.05,0.1", "seed=1,2", "trainer.steps=3"]) == 0
    base = "runs/resnet/quick"
    assert started == [(f"{base}/lr-{lr}_seed-{seed}", lr, seed) for lr in (0.05, 0.1) for seed in (1, 2)]


def test_light_commands_do_not_import_torch():
    code = "import sys; from zoo.cli import main; main('list', []); main('info', ['resnet50']); main('train', []); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checks_run_before_torch_is_imported():
    code = (
        "import sys; from zoo.cli import main\n"
        "assert main('train', ['paper=resnet', 'model.widht=3']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words, named", [
    (["info", "resnet5"], "resnet50"),
    (["info"], "info takes one name"),
    (["list", "all"], "list takes no arguments"),
    (["evaluate", "run=nowhere"], "nowhere"),
    (["evaluate", "rum=x"], "run="),
    (["evaluate", "paper=resnet"], "weights="),
    (["evaluate", "nonsense"], "nonsense"),
    (["sample", "run=nowhere"], "nowhere"),
])  # fmt: skip
def test_other_commands_answer_in_one_line(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words[0], words[1:]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and named in err


def test_a_fault_while_running_is_one_line_and_the_trace_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def fail(cfg):
        raise RuntimeError("something\nunforeseen")

    monkeypatch.setattr("zoo.cli._run", fail)
    assert main("train", ["paper=resnet"]) == 1
    err = capsys.readouterr().err
    assert err == "error: RuntimeError: something; the trace is in runs/resnet/quick/error.txt\n"
    assert "unforeseen" in (tmp_path / "runs/resnet/quick/error.txt").read_text()


def test_foreign_code_runs_only_when_the_command_line_names_it(tmp_path):
    from zoo.errors import ConfigError
    from zoo.evaluation.command import _overridden

    cfg = compose([*CLASSIFIER, *SHORT, f"run_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="lies outside zoo"):
        _overridden(cfg, [])
    assert _overridden(cfg, ["model._target_=tests.toys.Mlp"])["model"]["_target_"] == "tests.toys.Mlp"


def test_train_evaluate_and_where_everything_is(tmp_path):
    """The whole way through the front door, in a run directory of its own."""
    folder = tmp_path / "run"
    keys = ["trainer.steps=4", "trainer.log_every=2", "trainer.eval_every=2", "model.depth=8", "model.width=4"]
    done = command("train", "paper=resnet", f"run_dir={folder}", *keys)
    assert done.returncode == 0, done.stderr
    assert f"evaluate run={folder}" in done.stdout.replace("evaluate.py", "evaluate") and "accuracy" in done.stdout
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "metrics.csv", "model.safetensors", "pictures/curves.png"):
        assert (folder / name).is_file(), name
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("step" in record for record in records) and all("loss" in record for record in records if "lr" in record)
    done = command("evaluate", f"run={folder}")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "metrics.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(records[-1]["test/accuracy"]) and result["weights"].startswith("raw, final")
    assert (folder / "pictures" / "confusion.png").is_file()
    done = command("sample", f"run={folder}")
    assert done.returncode == 2 and "generates nothing" in done.stderr


def test_a_class_without_a_constructor_takes_its_base_classs_arguments():
    from zoo.signature import parameters

    assert set(parameters("zoo.papers.gan.AdversarialGame")) >= {"generator", "discriminator", "k", "saturating", "noise_bound", "max_norm"}
