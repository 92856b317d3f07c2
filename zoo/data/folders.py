"""Labelled images in folders, one folder a class: ImageNet, Tiny ImageNet, yours."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.data.augment import ColourNoise
from zoo.data.base import Data, home, one_line, whole
from zoo.data.cache import kept
from zoo.data.image_files import AUGMENTATIONS, CROPS, Files, ImageFiles, TrainingView, View
from zoo.data.loader import sweep
from zoo.data.moments import Moments
from zoo.data.pixels import Arrays, Normalise, Normaliser, augmentations, hold_out, in_memory, mixing
from zoo.errors import ConfigError, ZooError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"


def images(
    seed: int,
    root: str,
    folder: str,
    image_size: int,
    resize: int | None = None,
    augment: Sequence[str] | None = None,
    scales: Sequence[int] = (256, 480),
    mixup: float = 0.0,
    cutmix: float = 0.0,
    normalise: Normalise = "standard",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    valid: int = 0,
    resident: bool = False,
    pad: int = 4,
    workers: int = 0,
) -> Data:
    """Images in <root>/<folder>/train/<class>/ and, of the same classes, in test/ or val/ beside it.

    Where there are both test/ and val/, the latter is the validation split; where there is only one, it is the test split, as with
    ImageNet, whose results are on val/. Files may lie deeper, as in Tiny ImageNet, whose val/val_annotations.txt is read, too.

    Args:
        resize: length of the shorter side before the middle is cut out; by default 256 / 224 of image_size.
        augment: at most one of the crops, and any of flip, colour (see ColourNoise), rand_augment, erase (see TrainingView); with
            `resident`, of pad_crop, flip and colour.
        scales: least and greatest length of the shorter side, for scale_crop.
        mixup, cutmix: see Mixing.
        mean, std: of the channels, for normalise=standard; with `resident` they are computed.
        valid: training items held out for validation.
        resident: decode everything at the start, resized and cut as for evaluation, and keep it on the device.

    normalise=pixel_mean and augment=[colour] need statistics of all training images: one pass over them, which is kept.
    """
    least = whole("data.image_size", image_size, 1)
    resize = whole("data.resize", resize, least) if resize is not None else least if resident else round(least * 256 / 224)
    classes, train, held, test = _splits(home(root) / folder, valid)
    view = View(resize, image_size)
    if resident:
        parts = tuple(files and decoded(files, view, workers) for files in (train, held, test))
        return in_memory(parts, classes, seed, normalise, augment, pad, valid, mixup, cutmix)

    augment = _checked(augmentations(augment, AUGMENTATIONS), scales, image_size)
    if not held:
        kept_back, out = hold_out(np.array(train[1]), valid)
        train, held = [([train[0][i] for i in index], [train[1][i] for i in index]) for index in (kept_back, out)]
    statistics = training_statistics(train, resize, workers) if normalise == "pixel_mean" or "colour" in augment else {}
    normaliser = _normaliser(normalise, mean, std, statistics)
    noise = ColourNoise(statistics["covariance"]) if "colour" in augment else None
    fill = (normaliser.mean.mean((1, 2)).expand(3) * 255).round().long().tolist()
    training_view = TrainingView(image_size, resize, augment, scales, fill)
    split = lambda files, *training: ImageFiles(files, view, normaliser, workers, *training)
    return Data(
        train=split(train, seed, training_view, noise, mixing(seed, len(classes), mixup, cutmix)),
        valid=split(held) if held[0] else None,
        test=split(test),
        facts={"num_classes": len(classes), "image_size": image_size, "channels": 3},
        classes=classes,
    )


def _splits(base: Path, valid: int) -> tuple[list[str], Files, Files | None, Files]:
    """The names of the classes, and the files of training, validation (None where it has no folder) and test."""
    classes, train = list_images(base / "train")
    others = [list_images(base / name, classes)[1] for name in ("test", "val") if (base / name).is_dir()]
    if not others:
        raise ZooError(f"{base} has neither a folder test nor a folder val beside train")
    if valid and len(others) == 2:
        raise ConfigError(f"data.valid must be 0: {base} has a validation split of its own")
    test, held = (*others, None)[:2]
    return classes, train, held, test


def _checked(augment: Sequence[str], scales: Sequence[int], image_size: int) -> Sequence[str]:
    crops = [name for name in augment if name in CROPS]
    if len(crops) > 1:
        raise ConfigError(f"data.augment has two crops, {crops[0]} and {crops[1]}: leave one out")
    whole_numbers = len(scales) == 2 and all(isinstance(side, int) for side in scales)
    if "scale_crop" in crops and not (whole_numbers and image_size <= scales[0] <= scales[1]):
        raise ConfigError(f"data.scales must be the least and the greatest shorter side, whole numbers from {image_size}, not {list(scales)}")
    return augment


def training_statistics(files: Files, resize: int, workers: int) -> dict[str, Tensor]:
    """Over the middle squares of resize x resize pixels: `mean` (3, resize, resize) and `covariance` (3, 3) of the channels, in [0, 1]."""

    def compute() -> dict[str, Tensor]:
        print(f"data: one pass over {len(files[0])} training images for their mean and covariance ...", file=sys.stderr, flush=True)
        split, moments = ImageFiles(files, View(resize, resize), workers=workers), Moments()
        for _, _, batch in sweep(split, 64, split.device):
            moments.add(batch["image"])
        return {"mean": moments.mean(), "covariance": moments.covariance()}

    listing = hashlib.sha256("\n".join(f"{os.path.basename(p)} {os.path.getsize(p)}" for p in files[0]).encode()).hexdigest()
    return kept(f"mean and covariance of images, shorter side {resize}, files {listing}", compute)


def list_images(folder: Path, classes: list[str] | None = None) -> tuple[list[str], Files]:
    """The names of the classes and all files, in a fixed order.

    Raises:
        ZooError: if there are none, a class is empty, or the classes aren't `classes`, those of the training images.
    """
    try:
        found = _annotated(folder, classes) if (folder / ANNOTATIONS).is_file() else _nested(folder)
    except (OSError, ValueError) as error:
        remedy = "a folder of files for each class belongs there, or ZOO_DATA, data.root and data.folder name another place"
        raise ZooError(f"no images found: {one_line(error)}; {remedy}") from error
    for name in sorted(found):
        if not found[name]:
            raise ZooError(f"{folder / name} holds no images")
    if not found:
        raise ZooError(f"{folder} holds no folders of images, one for each class")
    if classes is not None and sorted(found) != classes:
        name = min(set(found) ^ set(classes))
        raise ZooError(f"the class {name!r} is {'missing' if name in classes else 'not among the training images, but'} in {folder}")
    classes = sorted(found)
    return classes, ([p for name in classes for p in found[name]], [i for i, name in enumerate(classes) for _ in found[name]])


def _nested(folder: Path) -> dict[str, list[str]]:
    found = {}
    for entry in os.scandir(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            paths = (os.path.join(place, name) for place, _, names in os.walk(entry.path) for name in names)
            found[entry.name] = sorted(p for p in paths if p.lower().endswith(SUFFIXES))
    return found


def _annotated(folder: Path, classes: list[str] | None) -> dict[str, list[str]]:
    """Tiny ImageNet's val/: lines of a file name in images/, a class, and a box. Classes that training lacks are left out (subsets)."""
    found: dict[str, list[str]] = {}
    for line in (folder / ANNOTATIONS).read_text(encoding="utf-8").splitlines():
        name, label, *_ = line.split("\t")
        if classes is None or label in classes:
            found.setdefault(label, []).append(str(folder / "images" / name))
    return found


def decoded(files: Files, view: View, workers: int) -> Arrays:
    """All images and labels."""
    split = ImageFiles(files, view, workers=workers)
    images = [batch["image"] for _, _, batch in sweep(split, 256, split.device)]
    return torch.cat(images).numpy(), np.array(files[1])


def _normaliser(name: Normalise, mean: Sequence[float], std: Sequence[float], statistics: dict[str, Tensor]) -> Normaliser:
    if name == "pixel_mean":
        return Normaliser(statistics["mean"], torch.ones(1, 1, 1, dtype=torch.double))
    if name != "standard":
        return Normaliser.of(name, torch.empty(0))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"data.mean and data.std must be three numbers each, the latter above 0, not {list(mean)} and {list(std)}")
    return Normaliser(*(torch.tensor(values, dtype=torch.double)[:, None, None] for values in (mean, std)))
