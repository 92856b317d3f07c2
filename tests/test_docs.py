"""Every command of README, the cards and docs/ runs, smoke-sized; what wants a GPU, a cluster or a download runs up to there."""

import contextlib
import glob
import importlib.util
import inspect
import itertools
import json
import pydoc
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from docs.estimates import built, untrained
from tests.documents import ROOT, commands, named, pages, words_of
from tests.helpers import offline  # noqa: F401
from zoo.cli import main
from zoo.config import compose, paper_configs
from zoo.errors import ZooError
from zoo.training.build import build_data

ELSEWHERE = {"docs/importing.md": "test_importing.py", "docs/own-models.md": "test_own_models.py"}
SLOW = ("zoo results", "run=runs/ddpm/quick", "run=runs/transformer/quick", "-m paper=bert/mrpc", "-m paper=lstm/continual")  # parts of commands
SMALL = 10_000_000  # parameters of what is trained here
FEWER = {"zoo.data.grammars.continual_reber": ["data.valid=200", "data.test=200"]}
PLACEHOLDERS = {"paper=...": "paper=resnet", "data.path=...": "data.path=corpus.txt", "<paper>": "resnet", "<name>": "peers",
                "runs/a": "runs/resnet/quick", "runs/b": "runs/vit/quick"}  # fmt: skip


def found() -> dict[tuple[str, ...], Path]:
    """Every command -> the page that has it first, but for those that another test runs."""
    seen: dict[tuple[str, ...], Path] = {}
    for page in pages():
        for command in commands(page.read_text()) if named(page) not in ELSEWHERE else ():
            for words in words_of(command):
                if "highway" not in " ".join(words):  # test_the_worked_example
                    seen.setdefault(tuple(filled(words, page)), page)
    return seen


def filled(words: list[str], page: Path) -> list[str]:
    """What stands for something else is filled in; `run=...` on a card is the quick run."""
    quick = f"run=runs/{page.parent.name if page.parent.parent.name == 'papers' else 'resnet'}/quick"
    words = [{**PLACEHOLDERS, "run=...": quick}.get(word, word) for word in words if word != "..."]
    return [*words, quick] if words == ["evaluate.py", "which=best"] else words


COMMANDS = found()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout without runs, which the commands share."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("zoo", "configs", "docs", "tests", "benchmarks", "train.py", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    (place / "lines.txt").write_text("4 May 1996\n")
    return place


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ZOO_DATA", str(folder / "data"))  # an empty folder, wherever the tests run
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return folder


def each_command():
    slow = lambda name: any(part in f"{name} " for part in SLOW)
    return [pytest.param(words, id=name, marks=[pytest.mark.slow] * slow(name)) for words in COMMANDS for name in [" ".join(words)]]


@pytest.mark.parametrize("words", each_command())
def test_a_command(words, place, monkeypatch, capsys):
    if COMMANDS[words] != ROOT / "README.md":
        monkeypatch.setattr("zoo.evaluation.pictures.curves", lambda folder: folder)  # the same picture each time, and half of the time
    run(list(words), COMMANDS[words], monkeypatch, capsys)


def run(words: list[str], page: Path, monkeypatch, capsys) -> None:
    """Classifies a command and runs it, or what of it can be run here."""
    match words:
        case ["python", "train.py", *rest] | ["python", "-m", "zoo", "train", *rest]:
            train(rest, page, monkeypatch, capsys)
        case ["python", "evaluate.py", *rest] | ["evaluate.py", *rest]:
            judge("evaluate", rest, capsys)
        case ["python", "-m", "zoo", "sample", *rest]:
            judge("sample", rest, capsys)
        case ["python", "-m", "zoo", "report", *rest]:
            for word in rest:
                if word.startswith("runs/"):
                    ensure(word.replace("*", "seed-0"))
            assert main("report", [path for word in rest for path in glob.glob(word) or [word]]) == 0
        case ["python", "-m", "zoo", ("list" | "results" | "gallery" | "info" | "plan") as command, *rest]:
            assert main(command, rest if rest or command in ("list", "results", "gallery") else ["--help"]) == 0
        case ["torchrun", *rest]:
            over_ranks(rest)
        case ["sbatch", *rest]:
            script = next(word for word in rest if word.endswith(".sbatch"))
            assert Path(script).is_file()
            start(compose(rest[rest.index(script) + 2 :]))
        case ["pytest", *rest]:
            has_tests(rest)
        case ["pip", "install", *rest]:
            extras_exist(rest)
        case ["python", "-m", "benchmarks", name, *rest]:
            assert name in (ROOT / "benchmarks" / "__main__.py").read_text()
            options_exist(f"benchmarks.{name}", rest)
        case ["python", "-m", module, *rest]:
            options_exist(module, rest)
        case ["python", script, *rest] if script.startswith("docs/"):
            assert Path(script).is_file() and not rest
        case ["mkdocs", "build", *rest]:
            assert set(rest) <= {"--strict"} and (ROOT / "mkdocs.yml").is_file()  # built in tests/test_pages.py
        case ["mkdir", name]:
            Path(name).mkdir(exist_ok=True)
        case ["cp", *_, target]:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(words, check=True)
        case ["eval", "$(python train.py -sc install=bash)"] | ["complete", "-r", "python"]:
            pass  # test_tab_completion
        case _:
            pytest.fail(f"{page}: what kind of command is {' '.join(words)}?")


# ---- training ----


def train(words: list[str], page: Path, monkeypatch, capsys) -> None:
    if not words:
        assert main("train", []) == 2 and "resnet" in capsys.readouterr().out
    elif {"--help", "--cfg"} & set(words):
        with contextlib.suppress(SystemExit):
            assert main("train", words) == 0
        assert "lr:" in (said := capsys.readouterr().out) or "python train.py paper=" in said
    elif "-m" in words:
        sweep(words, monkeypatch)
    else:
        code = train_one(words)
        assert code == 0 or (code == 2 and f"\n{capsys.readouterr().err}" in page.read_text())  # the page shows what is wrong with it


def train_one(words: list[str]) -> int:
    """A few steps, where data are at hand and the model is small; else everything up to the first step."""
    if len(words) > 1 and not any(word.startswith(("name=", "run_dir=")) for word in words):  # or it would be another run in the same directory
        words = [*words, f"run_dir=runs/{re.sub(r'[^a-z0-9]+', '-', ' '.join(words))}"]
    try:
        cfg = compose(words)
    except Exception:
        return main("train", words)
    if not at_hand(cfg):
        start(cfg)
        return 0
    for needed in re.findall(r'"(runs/[^"]+)"', json.dumps([cfg["init"], cfg["model"]])):
        ensure(needed)
    steps = cfg["trainer"]["keep"]
    short = [f"trainer.{key}={steps}" for key in ("steps", "log_every", "eval_every")]
    less = [*FEWER.get(cfg["data"]["_target_"], []), *(f"evaluation.{name}=null" for name in cfg["evaluation"])]
    return main("train", [*words, *short, "trainer.save_every=1", "trainer.draw_every=null", "trainer.device=cpu", *less])


def at_hand(cfg: dict) -> bool:
    """Whether the model is small, and its data need no download."""
    if sum(p.numel() for p in start(cfg).parameters()) >= SMALL:
        return False
    return builds(json.dumps([cfg["seed"], cfg["data"]]))


@cache
def builds(data: str) -> bool:
    seed, section = json.loads(data)
    try:
        build_data({"seed": seed, "data": section})
    except ZooError:
        return False
    return True


def start(cfg: dict) -> torch.nn.Module:
    """The networks and the objective of a configuration, without memory for their weights."""
    cfg = {**cfg, "model": {name: untrained(part) for name, part in cfg["model"].items()}}
    try:
        with torch.device("meta"):
            return built(cfg)
    except NotImplementedError:  # it computes with its constants while it is made
        return built(cfg)


def sweep(words: list[str], monkeypatch) -> None:
    """All of it is composed and checked; of each configuration one run is trained."""
    words = [re.sub(r"interval\((.*)\)", r"\1", word) for word in words if not word.startswith("hydra")]  # without another launcher or sweeper
    with monkeypatch.context() as patch:
        started: list[dict] = []
        patch.setattr("zoo.cli._run", lambda cfg: started.append(cfg) or 0)
        assert main("train", words) == 0
    assert len(started) > 1 and len({cfg["run_dir"] for cfg in started}) == len(started)
    for name in {cfg["name"] for cfg in started}:
        assert train_one([f"paper={name.removesuffix('/quick')}"]) == 0


def over_ranks(words: list[str]) -> None:
    """torchrun knows the options, and the ranks share a batch evenly."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words if "train.py" in words else [*words, *["3"] * (len(words) % 2), "train.py", "paper=resnet"])
    cfg = compose(options.training_script_args)
    ranks = int(options.nproc_per_node) * int(options.nnodes.split(":")[-1]) * cfg["trainer"]["accumulate"]
    assert options.training_script == "train.py" and cfg["data"]["batch_size"] % ranks == 0
    start(cfg)


# ---- after training ----


def paper_of(run: str) -> str:
    """runs/resnet/quick -> resnet; runs/resnet/cifar10_resnet20/seed-0 -> resnet/cifar10_resnet20."""
    key, row, *_ = run.removeprefix("runs/").split("/")
    name = key if row == "quick" else f"{key}/{row}"
    assert name in paper_configs(), f"{run} is no run of a configuration"
    return name


def ensure(run: str) -> None:
    """A finished run in this directory."""
    if not Path(run, "model.safetensors").exists():
        assert train_one([f"paper={paper_of(run)}", f"run_dir={run}"]) == 0


def judge(command: str, words: list[str], capsys) -> None:
    """evaluate or sample: of a run that is trained here; else up to where its weights are read."""
    given = dict(word.split("=", 1) for word in words)
    cfg = compose([f"paper={given['paper'] if 'paper' in given else paper_of(given['run'])}"])
    if "run" in given and at_hand(cfg):
        ensure(given["run"])
        assert main(command, words) == 0, capsys.readouterr().err
        return
    if "run" in given:
        Path(given["run"]).mkdir(parents=True, exist_ok=True)
        Path(given["run"], "config.yaml").write_text(yaml.safe_dump(cfg))
    with torch.device("meta"):
        assert main(command, words) in (2, 3)
    assert re.search("no checkpoint yet|keeps 0 checkpoint|no weights there", capsys.readouterr().err)
    objective = pydoc.locate(cfg["objective"]["_target_"])
    if command == "sample":
        options = {key for key in given if "." not in key} - {"run", "paper", "weights", "layout", "n", "text", "input", "seed"}
        assert options <= set(inspect.signature(getattr(objective, "translate", None) or objective.sample).parameters)


# ---- other programs ----

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def has_tests(words: list[str]) -> None:
    """The files are there, have such tests, and the marker is one of ours."""
    files = [ROOT / word for word in words if word.startswith("tests/")]
    text = "".join(inner.read_text() for file in files for inner in (sorted(file.rglob("*.py")) if file.is_dir() else [file]))
    options = dict(itertools.pairwise(words))
    declared = {marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    markers = set(re.findall(r"\w+", options.get("-m", ""))) - {"or", "not", "and"}
    assert markers <= declared
    assert not files or all(f"pytest.mark.{marker}" in text for marker in markers)
    assert "-k" not in options or re.search(rf"def test_\w*{options['-k']}", text)


def extras_exist(words: list[str]) -> None:
    for word in words:
        if ours := re.fullmatch(r"(?:\.|paper-zoo)(?:\[(.*)\])?", word):
            assert set((ours[1] or "test").split(",")) <= set(PROJECT["project"]["optional-dependencies"])
        else:
            assert re.fullmatch(r"-e|[a-z][a-z0-9-]+", word)


def options_exist(module: str, words: list[str]) -> None:
    """The module is there, and reads what the command line says."""
    spec = importlib.util.find_spec(module)
    text = Path(spec.origin).read_text()
    assert "__main__" in text or "def main" in text
    assert all(f'"{word}"' in text for word in words if word.startswith("--") and word != "--record")


def test_tab_completion(place):
    """In bash, by the page's own line."""
    line = next(command for command in commands((ROOT / "docs" / "configs.md").read_text()) if command.startswith("eval"))
    Path("bin").mkdir()
    Path("bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    Path("bin/python").chmod(0o755)
    script = f"""
      PATH=$PWD/bin:$PATH; {line}
      try() {{ COMP_LINE=$1 COMP_POINT=${{#1}} COMP_CWORD=$2; hydra_bash_completion; echo ${{COMPREPLY[@]}}; }}
      try 'python train.py paper=re' 2; try 'python train.py paper=vit optim.b' 3"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["paper=resnet", "optim.betas."], done.stderr
