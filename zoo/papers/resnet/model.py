"""Deep Residual Learning for Image Recognition (He et al., 2015, arXiv:1512.03385).

B batch, C channels, H x W pixels, sigma ReLU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

relu = partial(F.relu, inplace=True)  # batch norm needs its input for the backward pass, not its output: that may be overwritten


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution whose padding keeps H x W up to the stride; without bias, because batch norm follows (section 3.4)."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class SubsampleAndPad(nn.Module):
    """Shortcut A where the shape changes (sections 3.3 and 4.1), without parameters: every stride-th pixel of x, zeros as new channels."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C + new_channels, H / stride, W / stride)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(option: str | None, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """W_s of equation 2, by the options of section 4.1; None for a plain block, which has no shortcut at all.

    A: never a projection. B: a projection W_s (1x1 convolution, batch norm) only where the shape changes. C: a projection in every block.

    Raises:
        ValueError: if the option is none of these.
    """
    if option not in ("A", "B", "C", None):
        raise ValueError(
            f"unknown shortcut {option!r}: use 'A' (zero padding), 'B' (projection where the shape changes), "
            "'C' (projection in every block) or None (plain net)"
        )
    if option is None:
        return None
    changes_shape = stride != 1 or in_channels != out_channels
    if option == "C" or (option == "B" and changes_shape):
        return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    return SubsampleAndPad(out_channels - in_channels, stride) if changes_shape else nn.Identity()


def add_shortcut(residual: Tensor, shortcut: nn.Module | None, x: Tensor) -> Tensor:
    """y = sigma(F(x, {W_i}) + W_s x), equations 1 and 2; sigma(F(x, {W_i})) in a plain net."""
    if shortcut is not None:
        residual += shortcut(x)
    return relu(residual)


class BasicBlock(nn.Module):
    """F(x) = W_2 sigma(W_1 x), two 3x3 convolutions (figure 2; figure 5, left). Batch norm after every convolution, before sigma."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, shortcut: str | None = "B"):
        super().__init__()
        self.out_channels = width
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(shortcut, in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, width, H / stride, W / stride)
        residual = relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return add_shortcut(residual, self.shortcut, x)


class Bottleneck(nn.Module):
    """F(x) = W_3 sigma(W_2 sigma(W_1 x)): 1x1 narrows to `width`, 3x3, 1x1 widens to 4 width (section 4.1; figure 5, right).

    The stride lies on the first 1x1, as in the paper; `stride_on_3x3` moves it, which is called v1.5 and is not the paper's.
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1, shortcut: str | None = "B", stride_on_3x3: bool = False):
        super().__init__()
        self.out_channels = 4 * width
        stride1, stride2 = (1, stride) if stride_on_3x3 else (stride, 1)
        self.conv1 = conv(in_channels, width, 1, stride1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride2)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.out_channels, 1)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 4 width, H / stride, W / stride)
        residual = relu(self.bn1(self.conv1(x)))
        residual = relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return add_shortcut(residual, self.shortcut, x)


BottleneckV1_5 = partial(Bottleneck, stride_on_3x3=True)
Block = Callable[..., BasicBlock | Bottleneck]  # (in_channels, width, stride, shortcut) -> block


def make_stages(block: Block, depths: Sequence[int], in_channels: int, width: int, shortcut: str | None) -> nn.Sequential:
    """Stages of `depths` blocks; each after the first doubles the width and halves H x W in its first block (section 3.3)."""
    stages = []
    for stage, depth in enumerate(depths):
        blocks = []
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(in_channels, width * 2**stage, stride, shortcut))
            in_channels = blocks[-1].out_channels
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def init_he(network: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / n), n = k^2 C_in (section 3.4 names He et al., arXiv:1502.01852, equation 10).

    That paper derives the variance once from the forward signal ("fan in") and once from the gradients ("fan out"), finds either sufficient
    and prints the first; so do we. Batch norm starts at scale 1 and shift 0, and the linear layer as torch sets it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class ResNet(nn.Module):
    """The ImageNet networks (table 1): 7x7 convolution and max pooling, four stages, mean over pixels, linear layer.

    Args:
        block: BasicBlock, Bottleneck or BottleneckV1_5.
        depths: blocks in conv2_x, conv3_x, conv4_x and conv5_x.
        shortcut: 'A', 'B', 'C' (section 4.1), or None for the plain network.
        width: channels of the first stage (64 in the paper); later stages double it.

    Raises:
        ValueError: if the shortcut is unknown.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        shortcut: Literal["A", "B", "C"] | None = "B",
        width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, width, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = make_stages(block, depths, width, width, shortcut)
        self.fc = nn.Linear(self.stages[-1][-1].out_channels, num_classes)
        init_he(self)

    def feature_map(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H / 32, W / 32)
        x = relu(self.bn1(self.conv1(images)))
        return self.stages(F.max_pool2d(x, 3, stride=2, padding=1))

    def forward_features(self, images: Tensor) -> Tensor:  # -> (B, C)
        return self.feature_map(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:  # -> (B, num_classes) logits
        return self.fc(self.forward_features(images))

    def score_map(self, images: Tensor) -> Tensor:
        """The network as a convolution (section 3.4, multi-scale testing): the logits of each 224 x 224 window, 32 pixels apart, of images
        of at least that size. (B, 3, H, W) -> (B, num_classes, H / 32 - 6, W / 32 - 6)."""
        windows = F.avg_pool2d(self.feature_map(images), 7, stride=1)  # what a crop of 224 pixels is averaged over
        return F.conv2d(windows, self.fc.weight[:, :, None, None], self.fc.bias)


class CifarResNet(nn.Module):
    """The CIFAR-10 networks (section 4.2): one 3x3 convolution, three stages of n basic blocks, mean over pixels, linear layer.

    Args:
        depth: layers with weights, 6n + 2: the first convolution, 2n convolutions a stage, the linear layer.
        shortcut: 'A' (the paper's choice throughout section 4.2), 'B', 'C', or None for the plain network.
        width: channels of the first stage (16 in the paper); later stages double it.

    Raises:
        ValueError: if the depth is not 6n + 2 or the shortcut is unknown.
    """

    def __init__(
        self, depth: int, shortcut: Literal["A", "B", "C"] | None = "A", width: int = 16, num_classes: int = 10, in_channels: int = 3
    ):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth {depth} is not 6n + 2 with n >= 1: use 8, 14, 20, 26, 32, ...")
        self.conv1 = conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = make_stages(BasicBlock, (n, n, n), width, width, shortcut)
        self.fc = nn.Linear(self.stages[-1][-1].out_channels, num_classes)
        init_he(self)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 4 width)
        x = relu(self.bn1(self.conv1(images)))
        return self.stages(x).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:  # -> (B, num_classes) logits
        return self.fc(self.forward_features(images))


# Table 1. Parameters with shortcut B and 1000 classes: 11.7M, 21.8M, 25.6M, 44.5M, 60.2M.
def resnet18(**kwargs) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), **kwargs)


def resnet34(**kwargs) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), **kwargs)


def resnet50(**kwargs) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), **kwargs)


def resnet101(**kwargs) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3), **kwargs)


def resnet152(**kwargs) -> ResNet:
    return ResNet(Bottleneck, (3, 8, 36, 3), **kwargs)


# Departure: "v1.5", the stride on the 3x3, as in torchvision and most published weights. Same parameters.
def resnet50_v1_5(**kwargs) -> ResNet:
    return ResNet(BottleneckV1_5, (3, 4, 6, 3), **kwargs)


def resnet101_v1_5(**kwargs) -> ResNet:
    return ResNet(BottleneckV1_5, (3, 4, 23, 3), **kwargs)


def resnet152_v1_5(**kwargs) -> ResNet:
    return ResNet(BottleneckV1_5, (3, 8, 36, 3), **kwargs)


# The plain networks of table 2 and figure 4.
def plain18(**kwargs) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), shortcut=None, **kwargs)


def plain34(**kwargs) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), shortcut=None, **kwargs)


# Table 6 (CIFAR-10). Parameters: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M, 19.4M.
def resnet20(**kwargs) -> CifarResNet:
    return CifarResNet(20, **kwargs)


def resnet32(**kwargs) -> CifarResNet:
    return CifarResNet(32, **kwargs)


def resnet44(**kwargs) -> CifarResNet:
    return CifarResNet(44, **kwargs)


def resnet56(**kwargs) -> CifarResNet:
    return CifarResNet(56, **kwargs)


def resnet110(**kwargs) -> CifarResNet:
    return CifarResNet(110, **kwargs)


def resnet1202(**kwargs) -> CifarResNet:
    return CifarResNet(1202, **kwargs)


# The plain networks of figure 6, left.
def plain20(**kwargs) -> CifarResNet:
    return CifarResNet(20, shortcut=None, **kwargs)


def plain32(**kwargs) -> CifarResNet:
    return CifarResNet(32, shortcut=None, **kwargs)


def plain44(**kwargs) -> CifarResNet:
    return CifarResNet(44, shortcut=None, **kwargs)


def plain56(**kwargs) -> CifarResNet:
    return CifarResNet(56, shortcut=None, **kwargs)


def plain110(**kwargs) -> CifarResNet:
    return CifarResNet(110, shortcut=None, **kwargs)
