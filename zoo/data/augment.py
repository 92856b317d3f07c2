"""Augmentation of whole batches where the data lives: crops and mirrors, colour noise, mixtures of two images.

Every random number comes in from outside. B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.base import Address, Batch
from zoo.data.hashing import MIX, uniform
from zoo.errors import ConfigError


def crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int = 0, size: int | None = None) -> Tensor:
    """(B, C, H, W) images, each padded by `pad` zeros on all sides, cut to (B, C, size, size) at its own (top, left) and mirrored where
    `flip`: one gather. Without `size` the cut has H x W pixels."""
    B, C, H, W = images.shape
    height, width = (size, size) if size else (H, W)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    rows = top[:, None] + torch.arange(height, device=images.device)
    places = rows[:, :, None] * (W + 2 * pad) + columns[:, None, :]
    padded = (F.pad(images, [pad] * 4) if pad else images).flatten(2)
    return padded.gather(2, places.view(B, 1, height * width).expand(B, C, height * width)).view(B, C, height, width)


class ColourNoise:
    """AlexNet's noise (Krizhevsky et al. 2012, section 4.1): to every pixel of an image [p_1 ... p_C] [a_1 l_1 ... a_C l_C]^T is added, where
    p_i and l_i are eigenvectors and eigenvalues of the covariance of the channels over all pixels of the training images (in [0, 1]) and
    a_i ~ N(0, 0.1^2) is drawn anew each time an image is shown.

    Args:
        covariance: (C, C).
    """

    deviation = 0.1

    def __init__(self, covariance: Tensor):
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
        self.directions = eigenvectors * eigenvalues  # columns p_i l_i

    def to(self, device: torch.device) -> "ColourNoise":
        self.directions = self.directions.to(device)
        return self

    def __call__(self, normal: Tensor) -> Tensor:  # (B, C) standard normal -> (B, C, 1, 1)
        noise = self.deviation * normal.to(self.directions) @ self.directions.T
        return noise[:, :, None, None]


class Mixing:
    """mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899): an image and its label give way to mixtures with another's.

    mixup blends the two images with weights s and 1 - s, CutMix pastes a box of 1 - s of the area; s ~ Beta(alpha, alpha), and the
    labels are mixed as the pixels are. With both, each pair takes one of them by the toss of a coin.

    Neighbours in the shuffled batch are the pairs, 0 with 1, 2 with 3, both ways; torchvision's MixUp and CutMix take the batch rolled by one
    and one s for all. Pairs stay together however the batch is shared out to ranks.

    Args:
        num_classes: K.
        mixup, cutmix: their alphas; 0 switches one off.
    """

    def __init__(self, seed: int, num_classes: int, mixup: float, cutmix: float):
        self.seed, self.num_classes, self.mixup, self.cutmix = seed, num_classes, mixup, cutmix

    def draw(self, address: Address) -> Tensor:
        """(B, 4) float64: s, the box's centre (as shares of H and W), 1 for CutMix or 0 for mixup; the same for both of a pair."""
        index, epoch = address["index"], address["epoch"]
        if len(index) % 2:
            raise ConfigError(f"data.mixup and data.cutmix mix pairs: data.batch_size must give each rank an even number, not {len(index)} images")
        share, row, column, coin = uniform(self.seed, epoch[::2], index[::2], 4, MIX).unbind(1)
        cut = torch.full_like(coin, float(self.cutmix > 0)) if not (self.mixup and self.cutmix) else (coin < 0.5).double()
        share = torch.where(cut > 0, _beta(self.cutmix, share), _beta(self.mixup, share))
        return torch.stack([share, row, column, cut], 1).repeat_interleave(2, 0)

    def __call__(self, batch: Batch, drawn: Tensor) -> Batch:
        """Mixes `image`; adds `target`, the mixed labels (B, K). `label` stays that of the first image."""
        images, label = batch["image"], batch["label"]
        weight = self._weight(drawn, *images.shape[2:]).to(images.dtype)
        one_hot = F.one_hot(label, self.num_classes).to(images.dtype)
        mixed = torch.lerp(_partner(images), images, weight)
        target = torch.lerp(_partner(one_hot), one_hot, weight.mean((1, 2, 3))[:, None])
        return {**batch, "image": mixed, "target": target}

    def _weight(self, drawn: Tensor, H: int, W: int) -> Tensor:
        """(B, 1, H, W): the part that each pixel keeps of its own image."""
        share, row, column, cut = drawn[:, :, None].unbind(1)  # (B, 1) each
        half = (1 - share).sqrt() / 2
        inside = lambda centre, n: _between(torch.arange(n, device=drawn.device), ((centre - half) * n).round(), ((centre + half) * n).round())
        box = inside(row, H)[:, None, :, None] & inside(column, W)[:, None, None, :]
        return torch.where((cut > 0)[..., None, None], (~box).to(drawn.dtype), share[..., None, None])


def _between(positions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (positions >= low) & (positions < high)


def _partner(rows: Tensor) -> Tensor:
    """Rows 1, 0, 3, 2, ..."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _beta(alpha: float, uniform: Tensor) -> Tensor:
    """Beta(alpha, alpha) from uniform numbers, by the inverse of its distribution function; uniform itself where alpha is 0."""
    if not alpha:
        return uniform
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy()))
