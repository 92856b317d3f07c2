"""Wheel and sdist: what is in them, and that an environment outside the repository trains, evaluates and imports with the installed package."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import zoo
from zoo.config import paper_configs

ROOT = Path(__file__).parents[1]
BASE = {  # what the package needs in any case; a new one wants a reason in pyproject.toml
    "torch", "torchvision", "einops", "hydra-core", "wandb", "numpy", "scikit-learn", "scipy", "safetensors", "huggingface-hub", "tokenizers",
    "sacrebleu", "matplotlib", "pillow",
}  # fmt: skip
CODE = """
import sys, torch, zoo
from zoo import vit_ti16
from zoo.papers.resnet import resnet50

assert zoo.__file__.startswith(sys.prefix), zoo.__file__
assert resnet50(num_classes=3).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
assert zoo.create_model("resnet20", weights="digits")(torch.rand(2, 1, 8, 8)).shape == (2, 10)
"""


def test_the_base_is_as_small_as_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", text)[0] for text in project["dependencies"]}
    assert needed == BASE


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a wheel and an sdist."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True)
    return folder


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.mark.slow
def test_the_wheel_has_what_runs_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    found = names(wheel)
    assert {"zoo/py.typed", "zoo/__init__.pyi", "zoo/configs/train.yaml", "zoo/papers/resnet/README.md"} <= found
    assert {f"zoo/configs/paper/{name}.yaml" for name in paper_configs()} <= found
    assert {f"zoo/weights/{preset}-{name}.safetensors" for preset, of in zoo.hub.shipped().items() for name in of} <= found
    known = r"zoo/.*\.(py|pyi|yaml|md|css|json|safetensors)|zoo/py\.typed|paper_zoo-[\d.]+\.dist-info/.*"
    assert all(re.fullmatch(known, name) for name in found) and not any("__pycache__" in name or "test" in name for name in found)
    assert wheel.stat().st_size < 4_000_000


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel_and_has_the_tests(built, tmp_path):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    found = names(sdist)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        left_out = {name for name in tracked.stdout.splitlines() if name not in found and (ROOT / name).exists()}
        assert left_out <= {".ci/run", ".gitignore"}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, sdist]
    subprocess.run(pip, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    assert names(again) == names(wheel) and sdist.stat().st_size < 8_000_000


@pytest.mark.slow
def test_an_environment_elsewhere_trains_and_imports(built, tmp_path):
    """Empty but for the package; all others are lent to it by this one."""
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    lent = sorted((tmp_path / "env").glob("lib/python*/site-packages"))[0] / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ZOO_DATA")}

    def call(*words: str | Path) -> str:
        program = tmp_path / "env" / "bin" / words[0]
        done = subprocess.run([program, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert "cifar10_resnet56" in call("zoo", "list") and "resnet50" in call("zoo", "info", "resnet50")
    words = ["train", "paper=resnet", "trainer.steps=20", "trainer.device=cpu"]
    assert "evaluate run=runs/resnet/quick" in call("zoo", *words).replace("-m zoo ", "")
    assert "is finished" in call("python", "-m", "zoo", *words)
    call("zoo", "evaluate", "run=runs/resnet/quick", "device=cpu")
    assert json.loads((tmp_path / "runs/resnet/quick/metrics.json").read_text())["step"] == 20
    call("zoo", "export", "run=runs/resnet/quick", "to=mine")
    call("python", "-c", CODE + 'zoo.hub.from_pretrained("mine")')
