"""zoo/__init__.pyi, which tells editors and type checkers what `import zoo` has, since presets load only when they are asked for.

python -m tests.stubs writes it anew.
"""

import importlib
import typing
from collections import defaultdict
from pathlib import Path

import zoo

FILE = Path(zoo.__file__).with_suffix(".pyi")
HEAD = '''# ruff: noqa: E501, I001
"""Made by python -m tests.stubs: the presets, and the class that each returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from zoo import hub as hub
from zoo.catalog import PAPERS as PAPERS, list_models as list_models
'''
CREATE = "@overload\ndef create_model(name: {}, weights: str | Path | None = None, skip: Sequence[str] = (), **kwargs: Any) -> {}: ..."


def stub() -> str:
    papers, presets, named = [], [], defaultdict(list)
    for key, paper in zoo.PAPERS.items():
        module = importlib.import_module(f"zoo.papers.{key}")
        papers += [f"from zoo.papers import {key} as _{key}"] if paper.presets else []
        presets += [f"from zoo.papers.{key} import {preset} as {preset}" for preset in paper.presets]
        for preset in paper.presets:
            made = typing.get_type_hints(getattr(module, preset))["return"].__name__
            assert hasattr(module, made), f"zoo.papers.{key} does not name {made}, which {preset} returns"
            named[f"_{key}.{made}"].append(preset)
    creating = [CREATE.format(f"Literal{names}", made) for made, names in named.items()] + [CREATE.format("str", "Any")]
    return HEAD + "\n".join([*papers, *presets, "", "__version__: str", "", *creating, ""])


if __name__ == "__main__":
    FILE.write_text(stub())
