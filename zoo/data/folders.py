"""Labelled images in folders, one folder a class: ImageNet, Tiny ImageNet, yours.

Worker processes decode and crop them, unless the set is small enough to live on the device. B batch, C channels, H height, W width.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Address, Batch, Data, Shuffled, home, one_line, send, whole
from zoo.data.hashing import bits
from zoo.data.loader import sweep
from zoo.data.pixels import Arrays, Normalise, Normaliser, augmentations, hold_out, image_sweeps, in_memory
from zoo.errors import ConfigError, ZooError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
ANNOTATIONS = "val_annotations.txt"
Files = tuple[list[str], list[int]]  # paths and labels


class ImageFiles:
    """A split whose images are read from their files, each time anew.

    Args:
        normaliser: None leaves the images as bytes.
        augment: any of resized_crop (a random part of 8 to 100 % of the area, resized) and flip; without the former the crop is the one
            of evaluation: the shorter side resized to `resize`, then the middle.
    """

    def __init__(
        self,
        files: Files,
        normaliser: Normaliser | None,
        image_size: int,
        resize: int,
        workers: int = 0,
        augment: Sequence[str] = (),
        seed: int = 0,
    ):
        paths, labels = files
        self.paths = np.array([os.fsencode(p) for p in paths])  # one array: a list would be copied to each worker, item by item
        self.labels = torch.tensor(labels)
        self.normaliser, self.seed, self.workers = normaliser, seed, workers
        self.train_transform, self.eval_transform = transforms(image_size, resize, augment), transforms(image_size, resize, ())
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> "ImageFiles":
        self.device = device
        if self.normaliser:
            self.normaliser = self.normaliser.to(device)
        return self

    def plan(self, batch_size: int) -> Shuffled:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        return image_sweeps(len(self), batch_size)

    def load(self, address: Address) -> Batch:
        """The images as bytes. In training each has random numbers of its own, seeded by (seed, epoch, index)."""
        index = address["index"]
        seeds = bits(self.seed, address["epoch"], index, 1)[:, 0].tolist() if "epoch" in address else [None] * len(index)
        images = [self._image(i, seed) for i, seed in zip(index.tolist(), seeds)]
        return {"image": torch.stack(images), "label": self.labels[index], "index": index}

    def _image(self, index: int, seed: int | None) -> Tensor:
        image = read_image(os.fsdecode(self.paths[index]))
        if seed is None:
            return self.eval_transform(image)
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.default_generator.manual_seed(seed)
            return self.train_transform(image)

    def finish(self, batch: Batch) -> Batch:
        return {**batch, "image": self.normaliser(batch["image"])} if self.normaliser else batch

    def fetch(self, address: Address) -> Batch:
        return self.finish({name: send(value, self.device) for name, value in self.load(address).items()})


def transforms(image_size: int, resize: int, augment: Sequence[str]) -> Any:
    """A PIL image -> uint8 (C, H, W)."""
    from torchvision.transforms import v2

    place = [v2.RandomResizedCrop(image_size)] if "resized_crop" in augment else [v2.Resize(resize), v2.CenterCrop(image_size)]
    return v2.Compose([*place, *([v2.RandomHorizontalFlip()] if "flip" in augment else []), v2.PILToTensor()])


def read_image(path: str) -> Any:
    """The PIL image in a file, as RGB; ZooError with its path where it can't be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise all kinds
        raise ZooError(f"{path} cannot be read as an image ({type(error).__name__}: {one_line(error)}): repair or remove it") from error


def images(
    seed: int,
    root: str,
    folder: str,
    image_size: int,
    resize: int | None = None,
    augment: Sequence[str] | None = None,
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
        augment: any of resized_crop and flip; with `resident`, of pad_crop and flip.
        mean, std: of the channels, for normalise=standard; with `resident` they are computed.
        valid: training items held out for validation.
        resident: decode everything at the start, resized and cut as for evaluation, and keep it on the device.
    """
    least = whole("data.image_size", image_size, 1)
    resize = whole("data.resize", resize, least) if resize is not None else least if resident else round(least * 256 / 224)
    base = home(root) / folder
    classes, train = list_images(base / "train")
    others = [list_images(base / name, classes)[1] for name in ("test", "val") if (base / name).is_dir()]
    if not others:
        raise ZooError(f"{base} has neither a folder test nor a folder val beside train")
    if valid and len(others) == 2:
        raise ConfigError(f"data.valid must be 0: {base} has a validation split of its own")
    test, held = (*others, None)[:2]
    if resident:
        decode = lambda files: files and decoded(files, image_size, resize, workers)
        return in_memory(decode(train), decode(test), classes, seed, normalise, augment, pad, valid, decode(held))

    augment = augmentations(augment, ("resized_crop", "flip"))
    if not held:
        kept, out = hold_out(np.array(train[1]), valid)
        train, held = [([files[0][i] for i in index], [files[1][i] for i in index]) for files, index in ((train, kept), (train, out))]
    split = lambda files, *training: ImageFiles(files, _normaliser(normalise, mean, std), image_size, resize, workers, *training)
    return Data(
        train=split(train, augment, seed),
        valid=split(held) if held[0] else None,
        test=split(test),
        facts={"num_classes": len(classes), "image_size": image_size, "channels": 3},
        classes=classes,
    )


def list_images(folder: Path, classes: list[str] | None = None) -> tuple[list[str], Files]:
    """The names of the classes and all files, in a fixed order.

    Raises:
        ZooError: if there are none, a class is empty, or the classes aren't `classes`, those of the training images.
    """
    try:
        found = _annotated(folder, classes) if (folder / ANNOTATIONS).is_file() else _nested(folder)
    except (OSError, ValueError) as error:
        raise ZooError(f"no images found: {one_line(error)} (data.root, data.folder)") from error
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


def decoded(files: Files, image_size: int, resize: int, workers: int) -> Arrays:
    """All images and labels."""
    split = ImageFiles(files, None, image_size, resize, workers)
    images = [batch["image"] for _, _, batch in sweep(split, 256, split.device)]
    return torch.cat(images).numpy(), np.array(files[1])


def _normaliser(name: Normalise, mean: Sequence[float], std: Sequence[float]) -> Normaliser:
    if name == "pixel_mean":
        raise ConfigError("data.normalise=pixel_mean needs all images at hand: data.resident=true")
    if name != "standard":
        return Normaliser.of(name, torch.empty(0))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"data.mean and data.std must be three numbers each, the latter above 0, not {list(mean)} and {list(std)}")
    return Normaliser(*(torch.tensor(values, dtype=torch.double)[:, None, None] for values in (mean, std)))
