"""Reference implementations of deep learning papers.

from zoo.papers.resnet import resnet50     # a paper's own module, or
from zoo import resnet50                   # any preset by its name, or
zoo.create_model("resnet50", num_classes=10)
"""

import importlib
from typing import Any

from zoo.catalog import PAPERS, find_preset, list_models

__version__ = "0.1.0"
__all__ = ["PAPERS", "create_model", "list_models"]


def create_model(name: str, **kwargs: Any) -> Any:
    """Builds a preset by name: `create_model("resnet50", num_classes=10)`.

    Raises:
        ValueError: if no paper defines it; names the nearest presets.
    """
    return getattr(importlib.import_module(f"zoo.papers.{find_preset(name).key}"), name)(**kwargs)


def __getattr__(name: str) -> Any:
    """`from zoo import resnet50` loads just that paper."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        paper = find_preset(name)
    except ValueError as error:
        raise AttributeError(str(error)) from None
    return getattr(importlib.import_module(f"zoo.papers.{paper.key}"), name)
