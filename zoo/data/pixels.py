"""Image sets that live on the device as a whole.

Batches are cut, cropped, flipped and normalised on the device; no worker processes, no copy but that of a few integers an item.
B batch, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.data.augment import ColourNoise, Mixing, crop
from zoo.data.base import Address, Batch, Data, Shuffled, choice, send, whole
from zoo.data.hashing import uniform
from zoo.data.moments import Moments
from zoo.errors import ConfigError

Normalise = Literal["unit", "symmetric", "standard", "pixel_mean"]
AUGMENTATIONS = ("pad_crop", "flip", "colour")
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels (N,)


class Normaliser:
    """Bytes -> (x / 255 - mean) / std.

    unit: [0, 1]; symmetric: [-1, 1]; standard: mean 0 and standard deviation 1 of each channel over the training images; pixel_mean:
    [0, 1] less the mean of the training images at each pixel.

    Args:
        mean, std: (C or 1, 1, 1), or a mean image (C, H, W).
    """

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, name: Normalise, images: Tensor) -> "Normaliser":
        """With the statistics of uint8 images (N, C, H, W)."""
        choice("data.normalise", name, get_args(Normalise))
        zero, one = torch.zeros(1, 1, 1, dtype=torch.double), torch.ones(1, 1, 1, dtype=torch.double)
        if name == "symmetric":
            return cls(one / 2, one / 2)
        if name == "standard":
            values = torch.arange(256, dtype=torch.double) / 255
            shares = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
            shares /= shares.sum(1, keepdim=True)
            mean = (shares @ values)[:, None]
            variance = (shares * (values - mean).square()).sum(1, keepdim=True)
            return cls(mean[..., None], variance.sqrt()[..., None])
        return cls(images.sum(0, dtype=torch.int64).double() / (255 * len(images)) if name == "pixel_mean" else zero, one)

    @property
    def is_image(self) -> bool:
        """Whether the mean is one of each pixel."""
        return self.mean.shape[1] > 1

    def to(self, device: torch.device) -> "Normaliser":
        dtype = torch.float if device.type == "mps" else torch.double  # Metal has no double
        return Normaliser(self.mean.to(device, dtype), self.std.to(device, dtype))

    def __call__(self, images: Tensor, place: Sequence[Tensor] | None = None, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) uint8 -> float.

        Args:
            place: top, left and flip (B,) of the cut that each image is, where a larger mean image is to be cut likewise.
            noise: (B, C, 1, 1), added to values in [0, 1].
        """
        dtype = torch.get_default_dtype()
        values = images.to(dtype).div_(255)
        if noise is not None:
            values += noise.to(dtype)
        return values.sub_(self._mean_of(images, place).to(dtype)).div_(self.std.to(dtype))

    def inverse(self, values: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> [0, 1]."""
        return values.mul(self.std.to(values)).add_(self._mean_of(values, None).to(values)).clamp_(0, 1)

    def _mean_of(self, images: Tensor, place: Sequence[Tensor] | None) -> Tensor:
        """The mean image's cut at `place`, else its middle; its mean over pixels where the images are larger than it."""
        mean, (H, W) = self.mean, images.shape[-2:]
        if place is not None:
            return crop(mean.expand(len(images), *mean.shape), *place, size=H)
        rows, columns = mean.shape[1:]
        if not self.is_image or (rows, columns) == (H, W):
            return mean
        top, left = (rows - H) // 2, (columns - W) // 2
        if min(top, left) < 0:
            return mean.mean((1, 2), keepdim=True)
        return mean[:, top : top + H, left : left + W]


class Images:
    """A split of labelled images on the device.

    Args:
        images: uint8 (N, C, H, W).
        augment: any of pad_crop (`pad` pixels of zeros around the normalised image, then a crop of the old size at a random place) and
            flip (left-right, half of the time); in training only, like the noise and the mixing.
    """

    workers = 0

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        normaliser: Normaliser,
        augment: Sequence[str] = (),
        pad: int = 0,
        seed: int = 0,
        noise: ColourNoise | None = None,
        mixing: Mixing | None = None,
    ):
        self.images, self.labels, self.normaliser = images, labels.long(), normaliser
        self.augment, self.pad, self.seed = tuple(augment), pad if "pad_crop" in augment else 0, seed
        self.noise, self.mixing = noise, mixing

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Images":
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.normaliser = self.normaliser.to(device)
        self.noise = self.noise and self.noise.to(device)
        return self

    def plan(self, batch_size: int) -> Shuffled:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        return image_sweeps(len(self), batch_size)

    def fetch(self, address: Address) -> Batch:
        if "epoch" in address:
            batch = self._augmented(address)
            return self.mixing(batch, send(self.mixing.draw(address), self.images.device)) if self.mixing else batch
        index = send(address["index"], self.images.device)
        return {"image": self.normaliser(self.images[index]), "label": self.labels[index], "index": index}

    def _augmented(self, address: Address) -> Batch:
        """One uniform number an item each for the row and the column of the crop and for the flip, then one a channel for the noise."""
        device, channels = self.images.device, self.images.shape[1]
        drawn = uniform(self.seed, address["epoch"], address["index"], 3 + channels if self.noise else 3)
        row, column, coin = drawn[:, :3].unbind(1)
        places = 2 * self.pad + 1
        flip = (coin < 0.5) & ("flip" in self.augment)
        numbers = torch.stack([address["index"], (row * places).long(), (column * places).long(), flip.long()])
        index, top, left, flip = send(numbers, device)
        noise = self.noise and self.noise(send(torch.special.ndtri(drawn[:, 3:] + 2.0**-54), device))  # 0 would become minus infinity
        image = self.normaliser(self.images[index], noise=noise)
        if self.pad or "flip" in self.augment:
            image = crop(image, top, left, flip.bool(), self.pad)
        return {"image": image, "label": self.labels[index], "index": index}


def image_sweeps(items: int, batch_size: int) -> list[list[Address]]:
    """One address a sequence, since images carry no state; the last one may be shorter."""
    return [[{"index": index}] for index in torch.arange(items).split(whole("data.batch_size", batch_size, 1))]


def hold_out(labels: np.ndarray, valid: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation items: stratified, in ascending order, the same for every seed of a run."""
    items, classes = np.arange(len(labels)), len(np.unique(labels))
    if whole("data.valid", valid, 0) == 0:
        return items, items[:0]
    if not classes <= valid <= len(labels) - classes:
        raise ConfigError(f"data.valid must be 0, or from {classes} to {len(labels) - classes} of the {len(labels)} items, not {valid}")
    from sklearn.model_selection import train_test_split

    train, held = train_test_split(items, test_size=valid, stratify=labels, random_state=0)
    return np.sort(train), np.sort(held)


def in_memory(
    parts: tuple[Arrays, Arrays | None, Arrays],
    classes: list[str],
    seed: int,
    normalise: Normalise = "unit",
    augment: Sequence[str] | None = None,
    pad: int = 4,
    valid: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Data:
    """The data set of training, validation and test arrays; without validation ones, `valid` of the training items.

    Args:
        normalise: see Normaliser.
        augment: any of pad_crop, by `pad` pixels, flip, and colour (see ColourNoise).
        mixup, cutmix: see Mixing.
    """
    train, held, test = parts
    augment = augmentations(augment, AUGMENTATIONS)
    whole("data.pad", pad, 1 if "pad_crop" in augment else 0)
    if not held:
        kept, out = hold_out(train[1], valid)
        train, held = [tuple(array[index] for array in train) for index in (kept, out)]
    train, held, test = [tuple(torch.tensor(array) for array in part) for part in (train, held, test)]
    normaliser = Normaliser.of(normalise, train[0])
    noise = ColourNoise(covariance_of(train[0])) if "colour" in augment else None
    return Data(
        train=Images(*train, normaliser, augment, pad, seed, noise, mixing(seed, len(classes), mixup, cutmix)),
        valid=Images(*held, normaliser) if len(held[0]) else None,
        test=Images(*test, normaliser),
        facts={"num_classes": len(classes), "image_size": train[0].shape[-1], "channels": train[0].shape[1]},
        classes=classes,
    )


def mixing(seed: int, num_classes: int, mixup: float, cutmix: float) -> Mixing | None:
    """What `data.mixup` and `data.cutmix` ask for, checked."""
    for key, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigError(f"data.{key} must be a number from 0, not {value!r}")
    return Mixing(seed, num_classes, mixup, cutmix) if mixup or cutmix else None


def covariance_of(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (C, C), of the channels over all pixels, in [0, 1]."""
    moments = Moments()
    for part in images.split(1024):
        moments.add(part)
    return moments.covariance()


def augmentations(names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names of `data.augment`, checked."""
    if isinstance(names, str):
        raise ConfigError(f"data.augment must be a list such as [{names}], not {names!r}")
    return tuple(choice("data.augment", name, known) for name in names or ())
