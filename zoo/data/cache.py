"""What took a long pass over data, kept for the next run in ~/.cache/paper-zoo/statistics."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.data.download import lock

FOLDER = Path("~/.cache/paper-zoo/statistics")


def kept(key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`compute()`, or what it gave for the same key before. Of several processes one computes and the others wait; a damaged file is
    computed anew; where nothing can be written, nothing is kept."""
    path = FOLDER.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    if not _writable(path.parent):
        return compute()
    with lock(path):
        with contextlib.suppress(SafetensorError, OSError):
            return load_file(path)
        tensors = compute()
        _write(path, tensors)
        return tensors


def _writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    fresh = path.with_suffix(".new")
    try:
        save_file(tensors, fresh)
        os.replace(fresh, path)
    except (SafetensorError, OSError):
        fresh.unlink(missing_ok=True)
