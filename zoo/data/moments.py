"""Mean image and covariance of the channels over training images."""

import torch
from torch import Tensor


class Moments:
    """Sums over bytes, exact in any order."""

    def __init__(self):
        self.images, self.sum, self.products = 0, None, None

    def add(self, images: Tensor) -> None:
        """(N, C, H, W) uint8."""
        pixels = images.movedim(1, 0).flatten(1).double()  # (C, pixels); products of bytes stay exact in float64
        sums, products = images.sum(0, dtype=torch.int64), pixels @ pixels.T
        self.sum = sums if self.sum is None else self.sum + sums
        self.products = products if self.products is None else self.products + products
        self.images += len(images)

    def mean(self) -> Tensor:
        """(C, H, W) in [0, 1]."""
        return self.sum.double() / (255 * self.images)

    def covariance(self) -> Tensor:
        """(C, C) of the channels over all pixels, in [0, 1]."""
        pixels = self.images * self.sum[0].numel()
        mean = self.sum.sum((1, 2)).double() / pixels
        return (self.products / pixels - mean.outer(mean)) / 255**2
