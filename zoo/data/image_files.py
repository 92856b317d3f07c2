"""Images read from their files, each time anew, by worker processes. B batch, C channels, H height, W width.

PIL decodes; torchvision crops and resizes the bytes as tensors, which takes a third of the time that it takes with PIL's images.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.augment import ColourNoise, Mixing
from zoo.data.base import Address, Batch, Shuffled, one_line, send
from zoo.data.hashing import bits
from zoo.data.pixels import Normaliser, image_sweeps
from zoo.errors import ZooError

Files = tuple[list[str], list[int]]  # paths and labels
Place = tuple[int, int, bool]  # top and left of the crop within the middle square, and whether it is mirrored
CROPS = ("resized_crop", "scale_crop", "square_crop")
AUGMENTATIONS = (*CROPS, "flip", "colour", "rand_augment", "erase")


class ImageFiles:
    """A split of labelled image files.

    Args:
        view: of evaluation.
        training_view: of training; noise and mixing belong to training, too.
        normaliser: None leaves the images as bytes.
    """

    def __init__(
        self,
        files: Files,
        view: "View",
        normaliser: Normaliser | None = None,
        workers: int = 0,
        seed: int = 0,
        training_view: "TrainingView | None" = None,
        noise: ColourNoise | None = None,
        mixing: Mixing | None = None,
    ):
        paths, labels = files
        self.paths = np.array([os.fsencode(p) for p in paths])  # one array: a list would be copied to each worker, item by item
        self.labels = torch.tensor(labels)
        self.view, self.training_view, self.normaliser = view, training_view, normaliser
        self.workers, self.seed, self.noise, self.mixing = workers, seed, noise, mixing
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> "ImageFiles":
        self.device = device
        self.normaliser = self.normaliser and self.normaliser.to(device)
        self.noise = self.noise and self.noise.to(device)
        return self

    def seen_as(self, view: "View") -> "ImageFiles":
        """The same files in another view, for evaluation."""
        other = ImageFiles(([], []), view, self.normaliser, self.workers)
        other.paths, other.labels, other.device = self.paths, self.labels, self.device
        return other

    def plan(self, batch_size: int) -> Shuffled:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        return image_sweeps(len(self), batch_size if self.view.crop else 1)  # whole images differ in shape

    def load(self, address: Address) -> Batch:
        """The images as bytes. In training each has random numbers of its own, seeded by (seed, epoch, index)."""
        index = address["index"]
        batch = {"label": self.labels[index], "index": index}
        if "epoch" not in address:
            return {**batch, "image": torch.stack([self.view(read_image(self._path(i))) for i in index.tolist()])}
        if self.mixing:
            batch["mixing"] = self.mixing.draw(address)
        seeds = bits(self.seed, address["epoch"], index, 1)[:, 0].tolist()
        images, places, normals = zip(*(self._training_image(i, seed) for i, seed in zip(index.tolist(), seeds)))
        return {**batch, "image": torch.stack(images), "place": torch.tensor(places).T, "normal": torch.stack(normals)}

    def _path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def _training_image(self, index: int, seed: int) -> tuple[Tensor, Place, Tensor]:
        image = read_image(self._path(index))
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.default_generator.manual_seed(seed)
            image, place = self.training_view(image)
            return image, place, torch.randn(3)

    def finish(self, batch: Batch) -> Batch:
        if not self.normaliser:
            return batch
        drawn = {name: batch.pop(name) for name in ("mixing", "normal", "place") if name in batch}
        place = (*drawn["place"][:2], drawn["place"][2].bool()) if drawn and self.normaliser.is_image else None
        noise = self.noise(drawn["normal"]) if drawn and self.noise else None
        batch = {**batch, "image": self.normaliser(batch["image"], place, noise)}
        return self.mixing(batch, drawn["mixing"]) if "mixing" in drawn else batch

    def fetch(self, address: Address) -> Batch:
        return self.finish({name: send(value, self.device) for name, value in self.load(address).items()})


class View:
    """Evaluation: the shorter side resized to `resize`, then the middle of crop x crop pixels; the whole image where `crop` is None."""

    def __init__(self, resize: int, crop: int | None):
        self.resize, self.crop = resize, crop

    def __call__(self, image: Tensor) -> Tensor:  # (3, H, W) uint8 -> (3, crop, crop)
        from torchvision.transforms.v2 import functional

        image = functional.resize(image, [self.resize])
        return functional.center_crop(image, [self.crop]) if self.crop else image


class TrainingView:
    """Training: a crop, a mirror, distortions, drawn from torch's global generator.

    resized_crop: a part of 8 to 100 % of the area, resized (Szegedy et al. 2015). scale_crop: the shorter side resized to a length drawn
    from `scales`, then a part (Simonyan & Zisserman 2015; He et al. 2015). square_crop: the shorter side resized to `resize`, the middle
    square, a part of that (Krizhevsky et al. 2012). Without a crop, the view of evaluation. flip: half of the time. rand_augment
    (arXiv:1909.13719) and erase (arXiv:1708.04896; a quarter of the time) are torchvision's with its defaults; what is erased takes the
    colour `fill`.
    """

    def __init__(self, size: int, resize: int, augment: Sequence[str], scales: Sequence[int], fill: Sequence[int]):
        from torchvision.transforms import v2

        self.size, self.resize, self.scales, self.augment = size, resize, scales, augment
        self.cut: Callable[[Any], tuple[Tensor, int, int]] = getattr(self, f"_{next((a for a in augment if a in CROPS), 'middle')}")
        self.middle, self.resized = View(resize, size), v2.RandomResizedCrop(size)
        distortions = {"rand_augment": v2.RandAugment(), "erase": v2.RandomErasing(p=0.25, value=[float(byte) for byte in fill])}
        self.distortions = [distort for name, distort in distortions.items() if name in augment]

    def __call__(self, image: Tensor) -> tuple[Tensor, Place]:  # (3, H, W) uint8 -> (3, size, size)
        image, top, left = self.cut(image)
        flip = "flip" in self.augment and torch.rand(()).item() < 0.5
        if flip:
            image = image.flip(-1)
        for distort in self.distortions:
            image = distort(image)
        return image, (top, left, flip)

    def _middle(self, image: Tensor) -> tuple[Tensor, int, int]:
        return self.middle(image), *self._of_the_middle()

    def _resized_crop(self, image: Tensor) -> tuple[Tensor, int, int]:
        return self.resized(image), *self._of_the_middle()

    def _scale_crop(self, image: Tensor) -> tuple[Tensor, int, int]:
        from torchvision.transforms.v2 import functional

        side = int(torch.randint(self.scales[0], self.scales[1] + 1, ()))
        return self._part(functional.resize(image, [side]))[0], *self._of_the_middle()

    def _square_crop(self, image: Tensor) -> tuple[Tensor, int, int]:
        return self._part(View(self.resize, self.resize)(image))

    def _part(self, image: Tensor) -> tuple[Tensor, int, int]:
        """A random part of size x size pixels."""
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in image.shape[1:])
        return image[:, top : top + self.size, left : left + self.size], top, left

    def _of_the_middle(self) -> tuple[int, int]:
        """Which part of the mean image is subtracted from a crop that has no place in the middle square: its middle."""
        return (self.resize - self.size) // 2, (self.resize - self.size) // 2


def read_image(path: str) -> Tensor:
    """The image in a file as RGB, (3, H, W) uint8; ZooError with its path where it can't be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # channels last, which is also faster to resize
    except Exception as error:  # decoders raise all kinds
        raise ZooError(f"{path} cannot be read as an image ({type(error).__name__}: {one_line(error)}): repair or remove it") from error
