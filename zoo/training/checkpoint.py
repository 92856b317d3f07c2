"""Checkpoints that survive a kill at any instant: a directory built aside, synced, described by a manifest, then renamed.

step-00001234/
    weights.safetensors   sub-networks: parameters and persistent buffers
    ema.safetensors       their average, where there is one
    training.pt           optimizers, schedules, scalers, random states of every rank, carry; plain types and tensors only
    manifest.json         format, step, size and sha256 of the files above, and of itself; written last
"""

import hashlib
import json
import os
import shutil
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from zoo.errors import NoCheckpointError, ZooError

FORMAT = 2  # 1 had no sha256 of the manifest itself


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], training: dict[str, Any], about: dict[str, Any]) -> Path:
    """Writes `folder/step-<step>` unless it exists already (a step directory is never written twice).

    Args:
        tensors: file stem -> state dict, for the safetensors files.
        training: what else is needed to go on; loadable with `weights_only=True`.
        about: further facts for the manifest.

    Raises:
        ZooError: if it cannot be written; earlier checkpoints stay as they are.
    """
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    building = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        building.mkdir(parents=True)
        with ThreadPoolExecutor() as beside:  # the disk and the digests work while the next file is put together
            torch.save(training, building / "training.pt")
            digests = {"training.pt": beside.submit(digest, building / "training.pt")}
            synced = [beside.submit(_sync, building / "training.pt")]
            for name, state in sorted(tensors.items()):
                file, content = building / f"{name}.safetensors", save(state)
                synced.append(beside.submit(_write, file, content))
                digests[file.name] = beside.submit(lambda content: hashlib.sha256(content).hexdigest(), content)
            for file in synced:
                file.result()
            files = {name: {"size": (building / name).stat().st_size, "sha256": found.result()} for name, found in sorted(digests.items())}
        manifest = {"format": FORMAT, "step": step, "torch": torch.__version__, **about, "files": files}
        _write(building / "manifest.json", json.dumps({**manifest, "sha256": _own_digest(manifest)}, indent=1).encode())
        _sync(building)
        building.rename(final)
        _sync(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(building, ignore_errors=True)
        raise ZooError(f"cannot save {final}: {_reason(error, folder)}; earlier checkpoints are untouched") from error
    return final


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """Verifies and reads one checkpoint: (tensors, training, manifest), on the CPU.

    Raises:
        NoCheckpointError: names the file that is missing or damaged.
    """
    manifest = verify(path)
    try:
        tensors = {(file := path / Path(name).name).stem: load_file(file) for name in manifest["files"] if name.endswith(".safetensors")}
        file = path / "training.pt"
        return tensors, torch.load(file, map_location="cpu", weights_only=True), manifest
    except Exception as error:  # each library has error classes of its own; the digest is right, so somebody made it this way
        raise NoCheckpointError(f"{file} was not written by this program and is not read: {str(error).splitlines()[0][:200]}") from error


def verify(path: Path) -> dict[str, Any]:
    """The manifest, once every file has the size and digest that it states; neither torch.save nor safetensors checks its contents."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files, form, step = manifest["files"], manifest["format"], manifest["step"]
        stated = manifest.pop("sha256") if form != 1 else None
        if stated and stated != _own_digest(manifest):
            raise NoCheckpointError(f"{path / 'manifest.json'} is damaged: it differs from its own digest")
        if form not in (1, FORMAT):
            raise ZooError(f"{path / 'manifest.json'} has format {form}, but this version reads 1 to {FORMAT}: use the version that wrote it")
        if path.name.startswith("step-") and path.name != f"step-{step:08d}":
            raise NoCheckpointError(f"{path / 'manifest.json'} is of step {step}: the directory has another one's name")
        for name, facts in files.items():
            file = path / Path(name).name
            if file.stat().st_size != facts["size"] or digest(file) != facts["sha256"]:
                raise NoCheckpointError(f"{file} is damaged: it differs from its digest in the manifest")
        if "training.pt" not in files or "weights.safetensors" not in files:
            raise NoCheckpointError(f"{path / 'manifest.json'} is damaged: it does not list training.pt and weights.safetensors")
    except FileNotFoundError as error:
        raise NoCheckpointError(f"{error.filename or path} is missing") from None
    except OSError as error:  # no damage: nothing is set aside for a lack of permission or a disk that does not answer
        raise ZooError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NoCheckpointError(f"{path / 'manifest.json'} is damaged: it is no manifest") from None
    return manifest


def newest_valid(folder: Path, set_aside: bool = True) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named. None where none was ever written.

    Args:
        set_aside: rename damaged ones to *.corrupt; not for readers of a run that may still be training.

    Raises:
        NoCheckpointError: if there were checkpoints, but none can be used.
    """
    candidates = steps(folder)
    for path in reversed(candidates):
        try:
            verify(path)
            return path
        except NoCheckpointError as error:
            print(f"warning: {error}", file=sys.stderr)
            if set_aside:
                path.rename(next(p for n in range(1000) if not (p := path.with_name(f"{path.name}.corrupt{n or ''}")).exists()))
    if candidates:
        raise NoCheckpointError(f"no usable checkpoint in {folder}: resume=never starts afresh")
    return None


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first by step."""
    return sorted(p for p in folder.glob("step-" + "[0-9]" * 8) if p.is_dir())


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    for path in steps(folder)[:-keep]:
        if path.name != f"step-{best or 0:08d}" or best is None:
            doomed = path.rename(path.with_name(f".tmp-{uuid.uuid4().hex}"))  # never half a checkpoint under a valid name
            shutil.rmtree(doomed, ignore_errors=True)  # what is left goes at the next start


def abandon_after(folder: Path, step: int) -> None:
    """Renames checkpoints of later steps: a run that goes back to an earlier one takes another way from there."""
    for path in steps(folder):
        if int(path.name.removeprefix("step-")) > step:
            path.rename(path.with_name(f"{path.name}.abandoned-{uuid.uuid4().hex[:8]}"))


def clean(folder: Path) -> None:
    """Removes what a kill in the middle of a save left behind."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _own_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(file: Path, content: bytes) -> None:
    """Replaces a file whole or not at all."""
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        _write(aside, content)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _write(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception, folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    if shutil.disk_usage(folder).free < 2**20:
        return "no space left on the disk"
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
