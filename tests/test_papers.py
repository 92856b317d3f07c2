"""What every paper must keep: its catalogue record, its independence, its parameter names, its card."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from zoo.catalog import PAPERS, list_models
from zoo.config import paper_configs

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent.name for path in (ROOT / "zoo" / "papers").glob("*/model.py"))
GOLDEN = Path(__file__).parent / "golden" / "state_dict_keys.json"


def test_the_catalogue_names_every_paper():
    assert sorted(PAPERS) == FOLDERS
    assert all(set(paper.builds_on) <= set(PAPERS) for paper in PAPERS.values())


@pytest.mark.parametrize("preset", list_models())
def test_presets_have_the_parameters_that_the_catalogue_states(preset):
    with torch.device("meta"):
        model = zoo.create_model(preset)
    assert sum(p.numel() for p in model.parameters()) == zoo.catalog.find_preset(preset).presets[preset]


def test_parameter_names_are_api():
    """A rename breaks everybody's checkpoints: it needs a converter and a line in UPGRADING.md, then `python -m tests.golden`."""
    from tests.golden import state_dict_keys

    assert state_dict_keys() == json.loads(GOLDEN.read_text())


FILES = sorted(str(f.relative_to(ROOT)) for name in ("model.py", "objective.py") for f in (ROOT / "zoo" / "papers").glob(f"*/{name}"))


@pytest.mark.parametrize("name", FILES)
def test_papers_import_only_torch_and_einops(name):
    file = ROOT / name
    key = file.parent.name
    allowed = {*sys.stdlib_module_names, "torch", "einops"}
    siblings = {f"{paper}.model" for paper in PAPERS[key].builds_on}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert (node.level == 0 and node.module.split(".")[0] in allowed) or (node.level == 2 and node.module in siblings) or node.level == 1


@pytest.mark.parametrize("key", FOLDERS)
def test_a_folder_copied_elsewhere_imports(key, tmp_path):
    for name in (key, *PAPERS[key].builds_on):  # what builds on another paper goes with it, side by side in a package
        shutil.copytree(ROOT / "zoo" / "papers" / name, tmp_path / "mine" / name)
    code = f"import sys; import mine.{key}; assert not any(m == 'zoo' or m.startswith('zoo.') for m in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("key", FOLDERS)
def test_every_card_says_what_it_must(key):
    card = (ROOT / "zoo" / "papers" / key / "README.md").read_text()
    for needed in ("**Claim", "**Results", "**Departures", f"paper={key}", f"from zoo.papers.{key} import"):
        assert needed in card, needed
    for row in (name for name in paper_configs() if name.startswith(f"{key}/")):
        assert row.split("/")[1] in card, row


@pytest.mark.parametrize("key", FOLDERS)
def test_every_departure_in_the_code_is_in_the_card(key):
    folder = ROOT / "zoo" / "papers" / key
    departures = sum(file.read_text().count("# Departure:") for file in folder.glob("*.py"))
    section = (folder / "README.md").read_text().split("**Departures")[1]
    assert departures == 0 or not section.lower().lstrip("*. ").startswith("none.")


def test_models_come_by_name():
    from zoo import resnet20

    assert resnet20 is importlib.import_module("zoo.papers.resnet").resnet20
    assert "resnet50" in zoo.list_models("resnet*")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        zoo.create_model("resnet_50")
    with pytest.raises(ImportError):
        from zoo import resnet51  # noqa: F401


def test_the_readme_table_is_the_catalogue():
    from docs.tables import papers_table

    assert papers_table() in (ROOT / "README.md").read_text()
