"""What editors and type checkers see of the package: the presets of `import zoo`, and a public surface on which pyright finds nothing."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stubs

ROOT = Path(__file__).parents[1]


def test_the_stub_has_every_preset():
    """A new one comes by python -m tests.stubs."""
    assert stubs.FILE.read_text() == stubs.stub()


@pytest.mark.slow
def test_pyright_is_clean_on_what_users_import():
    """tests/typed_use.py, which is among that, says what types it expects, and where it expects a complaint."""
    if importlib.util.find_spec("pyright"):
        program = [sys.executable, "-m", "pyright"]
    elif found := shutil.which("pyright"):
        program = [found]
    else:
        pytest.skip("pyright is not installed")
    done = subprocess.run([*program, "--pythonpath", sys.executable, "--outputjson"], cwd=ROOT, capture_output=True, text=True)
    told = json.loads(done.stdout)
    found = [(one["file"], one["range"]["start"]["line"] + 1, one["message"]) for one in told["generalDiagnostics"]]
    assert not found and told["summary"]["filesAnalyzed"] >= 40
