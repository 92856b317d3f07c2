"""The ResNet of the hybrids (section 3.1): group norm instead of batch norm, standardised convolutions (Kolesnikov et al., arXiv:1912.11370).

The paper names only these changes; the rest is as in the authors' code. B batch, C channels, H x W pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lecun_normal_(weight: Tensor) -> None:
    """Normal of variance 1 / fan_in, cut at two deviations, as flax has it: the cut alone would leave a deviation of 0.8796."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.fx.wrap  # see model.py
def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's "SAME": as much padding as ceil(H / stride) outputs need, the odd pixel at the bottom and on the right."""
    missing = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[:1:-1]]  # of W, then of H
    return F.pad(x, [part for m in missing for part in (m // 2, m - m // 2)], value=value)


class StdConv(nn.Conv2d):
    """Convolution by (w - mean) / (std + 1e-5), taken over each output's weights (Qiao et al., arXiv:1903.10520); "SAME" padding, no bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2 if stride == 1 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance.sqrt() + 1e-5)
        if self.stride[0] > 1:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Bottleneck(nn.Module):
    """ReLU(F(x) + W_s x), F: 1x1, 3x3 (with the stride), 1x1 convolution, each with group norm; W_s only where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = StdConv(in_channels, width, 1), norm(width)
        self.conv2, self.norm2 = StdConv(width, width, 3, stride), norm(width)
        self.conv3, self.norm3 = StdConv(width, 4 * width, 1), norm(4 * width)
        changes_shape = stride != 1 or in_channels != 4 * width
        self.shortcut = nn.Sequential(StdConv(in_channels, 4 * width, 1, stride), norm(4 * width)) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 4 width, ceil(H / stride), ceil(W / stride))
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        residual = self.norm3(self.conv3(residual))
        return F.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class ResNetStem(nn.Module):
    """7x7 convolution and max pooling to a quarter of the side, then stages of bottlenecks; each after the first halves it again.

    Args:
        depths: blocks of each stage, such as (3, 4, 9).

    Raises:
        ValueError: if there is no stage, or one without blocks.
    """

    def __init__(self, depths: Sequence[int], in_channels: int):
        super().__init__()
        if min(depths, default=0) < 1:
            raise ValueError(f"resnet {list(depths)} has no stage, or one without blocks: give the blocks of each stage, such as [3, 4, 9]")
        self.conv, self.norm = StdConv(in_channels, 64, 7, stride=2), norm(64)
        stages, channels = [], 64
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(channels, 64 * 2**stage, stride=2 if stage > 0 and index == 0 else 1))
                channels = 4 * 64 * 2**stage
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.out_channels, self.stride = channels, 2 ** (1 + len(depths))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun-normal convolutions; each block starts as its shortcut, since the scale of its last norm is 0."""
        for module in self.modules():
            if isinstance(module, StdConv):
                lecun_normal_(module.weight)
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, out_channels, H / stride, W / stride)
        x = F.relu(self.norm(self.conv(images)))
        x = F.max_pool2d(pad_same(x, 3, 2, value=-math.inf), 3, stride=2)
        return self.stages(x)
