"""The Inception network of FID and Inception score: GoogLeNet v3 as Google released it on 2015-12-05 ("pool_3" and "softmax").

Szegedy et al., arXiv:1512.00567. The names are those of the published conversion to PyTorch. It differs from torchvision's network in the
pools of the mixed blocks, its 1008 classes and how images are resized; with any of these changed a distance is not the FID of the literature.
B batch, H x W pixels of the image.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
Unit = tuple  # (name, output channels, kernel, stride); the stride may be left out
Row = Sequence[Unit | tuple[Unit, Unit]]  # units one after another; a pair sees the same input, and its outputs are joined
Pool = Callable[[Tensor], Tensor]

average: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)  # torchvision counts the zeros around
largest: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU. Zeros around keep H x W where the stride is 1, unless `padded` is off."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = [side // 2 if padded and stride == 1 else 0 for side in kernel]
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Rows of units side by side, and last a pool followed by `pooled`, or by nothing; the channels of all outputs are joined."""

    def __init__(self, in_channels: int, rows: Sequence[Row], pool: Pool, pooled: Row = ()):
        super().__init__()
        self.rows, self.pool, self.pooled = [self._add(row, in_channels) for row in rows], pool, self._add(pooled, in_channels)

    def _add(self, row: Row, channels: int) -> list[list[str]]:
        """Makes a row's units; returns their names, step by step."""
        steps = []
        for step in row:
            units = step if isinstance(step[0], tuple) else (step,)
            for name, *shape in units:
                self.add_module(name, ConvUnit(channels, *shape))
            steps.append([name for name, *_ in units])
            channels = sum(out for _, out, *_ in units)
        return steps

    def _through(self, steps: list[list[str]], x: Tensor) -> Tensor:
        for names in steps:
            x = torch.cat([self.get_submodule(name)(x) for name in names], 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self._through(row, x) for row in self.rows), self._through(self.pooled, self.pool(x))], 1)


def mixed_5(in_channels: int, pooled: int) -> Mixed:  # 35 x 35, figure 5
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    rows = [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)], double]
    return Mixed(in_channels, rows, average, [("branch_pool", pooled, 1)])


def mixed_6a() -> Mixed:  # to 17 x 17, figure 10
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)]
    return Mixed(288, [[("branch3x3", 384, 3, 2)], double], halve)


def mixed_6(width: int) -> Mixed:  # 17 x 17, figure 6
    lie, stand, w = (1, 7), (7, 1), width
    single = [("branch7x7_1", w, 1), ("branch7x7_2", w, lie), ("branch7x7_3", 192, stand)]
    double = [("branch7x7dbl_1", w, 1), ("branch7x7dbl_2", w, stand), ("branch7x7dbl_3", w, lie), ("branch7x7dbl_4", w, stand)]
    rows = [[("branch1x1", 192, 1)], single, [*double, ("branch7x7dbl_5", 192, lie)]]
    return Mixed(768, rows, average, [("branch_pool", 192, 1)])


def mixed_7a() -> Mixed:  # to 8 x 8
    sevens = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, 3, 2)]
    return Mixed(768, [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)], sevens], halve)


def mixed_7(in_channels: int, pool: Pool) -> Mixed:  # 8 x 8, figure 7
    fork = lambda name, step: ((f"{name}_{step}a", 384, (1, 3)), (f"{name}_{step}b", 384, (3, 1)))
    single = [("branch3x3_1", 384, 1), fork("branch3x3", 2)]
    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl", 3)]
    return Mixed(in_channels, [[("branch1x1", 320, 1)], single, double], pool, [("branch_pool", 192, 1)])


class Inception(nn.Module):
    """uint8 images -> 2048 features, the mean of the last maps over pixels, and 1008 logits.

    The logits lack the bias of the last layer: so has the Inception score been computed since the code of Salimans et al. (2016).
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_5(192, 32), mixed_5(256, 64), mixed_5(288, 64)
        self.Mixed_6a = mixed_6a()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (mixed_6(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = mixed_7a()
        self.Mixed_7b, self.Mixed_7c = mixed_7(1280, average), mixed_7(2048, largest)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (B, 3, H, W) uint8 -> (B, 2048), (B, 1008)
        x = (resize(images.to(self.fc.weight.dtype), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features, F.linear(features, self.fc.weight)


def resize(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear as in TensorFlow 1: pixel i of the result is read at i H / side, never smoothed."""
    rows, columns = (_interpolation(length, side).to(images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _interpolation(length: int, side: int) -> Tensor:
    """The matrix (side, length) that reads a line at i length / side, between its two nearest pixels; the last one goes on for ever."""
    place = torch.arange(side, dtype=torch.double) * length / side
    low = place.long()
    share = (place - low)[:, None]
    return (1 - share) * F.one_hot(low, length) + share * F.one_hot((low + 1).clamp(max=length - 1), length)
