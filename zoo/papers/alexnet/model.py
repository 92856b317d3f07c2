"""ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky, Sutskever, Hinton, NIPS 2012).

B batch, C channels, H x W pixels, N kernels of a layer.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

relu = partial(F.relu, inplace=True)  # its gradient needs its output only: the input may be overwritten
overlapping_max_pool = partial(F.max_pool2d, kernel_size=3, stride=2)  # z = 3, s = 2 (section 3.4)

PIXEL_RANGE = 255.0
"""The paper trains on raw pixels, 0 to 255, minus their mean (section 2), and its initialisation, rates and the constants of the
normalisation are made for that. Ours run from 0 to 1 (`data.normalise=pixel_mean`): the networks of the paper multiply them by this."""

SMALLEST = 63
"""Side in pixels that leaves one pixel of the last map of AlexNet: 63 -> 15 -> 7 -> 3 -> 1."""

ACTIVATIONS = {"relu": relu, "tanh": torch.tanh}


def local_response_norm(a: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Section 3.3, over maps i of the N that a layer has: (B, N, H, W) -> the same.

        b^i = a^i / (k + alpha sum_{j = max(0, i - n/2)}^{min(N - 1, i + n/2)} (a^j)^2)^beta

    torch's own divides alpha by n. The sum over neighbours is a product with a band matrix, as a 1x1 convolution, which is faster.
    """
    i = torch.arange(a.shape[1], device=a.device)
    band = ((i[:, None] - i).abs() <= n // 2).to(a.dtype)  # (N, N): is j among the neighbours of i?
    squares = (alpha**0.5 * a).square()  # alpha (a^j)^2 in this order, lest half precision overflow at a = 256
    return a * (k + F.conv2d(squares, band[:, :, None, None])).pow(-beta)


@torch.fx.wrap  # traced as one call: its branches look at shapes
def check_images(images: Tensor, channels: int, side: int | None = None) -> None:
    """ValueError unless images are (B, channels, side, side); without a side, any from SMALLEST pixels."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"images are {tuple(images.shape)}, but this network takes (B, {channels}, H, W): in_channels must be theirs")
    height, width = images.shape[2:]
    if side and (height, width) != (side, side):
        raise ValueError(f"images are {height}x{width} pixels, but this network takes {side}x{side}: crop or resize them, or set image_size")
    if not side and min(height, width) < SMALLEST:
        raise ValueError(f"images are {height}x{width} pixels, but AlexNet's strides need {SMALLEST}: enlarge them, or take CifarNet")


def check_classes(num_classes: int) -> None:
    """ValueError unless there is something to choose from."""
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least 2")


class AlexNet(nn.Module):
    """The paper's network (section 3.5, figure 2): two towers, one for each GPU of 2012, here the two groups of a convolution.

    Args:
        image_size: side of the images in pixels, at least 63.
        widths: kernels of the five convolutions, both towers together; even numbers.
        hidden: neurons of the sixth and the seventh layer.
        pixel_range: the images are multiplied by it, see PIXEL_RANGE; 1 for images whose pixels run from 0 to 255 already.

    Raises:
        ValueError: for an image_size, widths or num_classes out of range, and in forward for images of another shape.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        widths: Sequence[int] = (96, 256, 384, 384, 256),
        hidden: int = 4096,
        pixel_range: float = PIXEL_RANGE,
    ):
        super().__init__()
        check_classes(num_classes)
        if image_size < SMALLEST:
            raise ValueError(f"image_size is {image_size}, but AlexNet's strides need {SMALLEST} pixels: enlarge the images, or take CifarNet")
        if len(widths) != 5 or any(width % 2 for width in widths):
            raise ValueError(f"widths are {list(widths)}, but five even numbers are needed: one for each convolution, half of it for each tower")
        self.in_channels, self.image_size, self.pixel_range = in_channels, image_size, pixel_range
        w1, w2, w3, w4, w5 = widths
        # The paper prints images of 224 pixels and, in figure 2, maps of 55: without padding they would have floor((224 - 11) / 4) + 1 = 54.
        # With 2 pixels of it they have floor((224 + 4 - 11) / 4) + 1 = 55. Others keep the padding away and take images of 227 pixels.
        self.conv1 = nn.Conv2d(in_channels, w1, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(w1, w2, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(w2, w3, 3, padding=1)  # the one convolution that sees the maps of both towers
        self.conv4 = nn.Conv2d(w3, w4, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(w4, w5, 3, padding=1, groups=2)
        side = (image_size + 4 - 11) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        self.fc6 = nn.Linear(w5 * side**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.5)  # of what the hidden neurons put out (section 4.2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights ~ N(0, 0.01^2); biases 1 in the 2nd, 4th and 5th convolution and in the hidden linear layers, 0 in the others (section 5)."""
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, 1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, C, image_size, image_size) -> (B, hidden)
        check_images(images, self.in_channels, self.image_size)
        x = overlapping_max_pool(local_response_norm(relu(self.conv1(self.pixel_range * images))))
        x = overlapping_max_pool(local_response_norm(relu(self.conv2(x))))
        x = relu(self.conv3(x))
        x = relu(self.conv4(x))
        x = overlapping_max_pool(relu(self.conv5(x)))
        x = self.dropout(relu(self.fc6(x.flatten(1))))
        return self.dropout(relu(self.fc7(x)))

    def forward(self, images: Tensor) -> Tensor:  # -> (B, num_classes) logits
        return self.fc8(self.forward_features(images))


class OneTowerAlexNet(nn.Module):
    """The network of "One weird trick for parallelizing convolutional neural networks" (Krizhevsky, 2014, arXiv:1404.5997) as torchvision has it.

    One tower, narrower, no response normalization, dropout before the linear layers instead of behind them, pixels as they come, and
    torch's own initialisation.

    Args:
        widths: kernels of the five convolutions. The 2014 paper prints 384 for the fourth, its code has 256, and so has torchvision.
        hidden: neurons of the sixth and the seventh layer.

    Raises:
        ValueError: for num_classes below 2, and in forward for images of another number of channels or with a side below 63 pixels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 192, 384, 256, 256),
        hidden: int = 4096,
    ):
        super().__init__()
        check_classes(num_classes)
        if len(widths) != 5:
            raise ValueError(f"widths are {list(widths)}, but five numbers are needed, one for each convolution")
        self.in_channels = in_channels
        w1, w2, w3, w4, w5 = widths
        self.conv1 = nn.Conv2d(in_channels, w1, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(w1, w2, 5, padding=2)
        self.conv3 = nn.Conv2d(w2, w3, 3, padding=1)
        self.conv4 = nn.Conv2d(w3, w4, 3, padding=1)
        self.conv5 = nn.Conv2d(w4, w5, 3, padding=1)
        self.fc6 = nn.Linear(w5 * 6 * 6, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, C, H, W), any size from 63 pixels -> (B, hidden)
        check_images(images, self.in_channels)
        x = overlapping_max_pool(relu(self.conv1(images)))
        x = overlapping_max_pool(relu(self.conv2(x)))
        x = relu(self.conv3(x))
        x = relu(self.conv4(x))
        x = overlapping_max_pool(relu(self.conv5(x)))
        x = F.adaptive_avg_pool2d(x, 6)  # nothing changes at 224 pixels; other sizes are averaged to 6x6 maps
        x = relu(self.fc6(self.dropout(x.flatten(1))))
        return relu(self.fc7(self.dropout(x)))

    def forward(self, images: Tensor) -> Tensor:  # -> (B, num_classes) logits
        return self.fc8(self.forward_features(images))


class LocallyConnected(nn.Module):
    """A 3x3 convolution with padding 1 whose kernels and biases are not shared: every position has its own.

    weight (H W, 9 in_channels, out_channels), bias (H W, 1, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, side: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side**2, 9 * in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(side**2, 1, out_channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, out_channels, H, W)
        patches = F.unfold(x, 3, padding=1).permute(2, 0, 1)  # (H W, B, 9 C)
        return torch.baddbmm(self.bias, patches, self.weight).permute(1, 2, 0).unflatten(2, x.shape[2:])


class CifarNet(nn.Module):
    """The four-layer network of sections 3.1 (figure 1: ReLU against tanh) and 3.3 (with and without response normalization).

    The paper leaves its description to "the code and parameter files" of the author's cuda-convnet. This is their
    layers-conv-local-13pct, with lrn layers-conv-local-11pct: two convolutions, two locally connected layers, linear layer.

    Args:
        activation: of the four layers, 'relu' or 'tanh'.
        lrn: response normalization after the activations of both convolutions, before pooling.
        image_size: side of the images in pixels, at least 8.
        widths: kernels of the four layers.
        pixel_range: the images are multiplied by it, see PIXEL_RANGE; 1 for images whose pixels run from 0 to 255 already.

    Raises:
        ValueError: for an activation, image_size, widths or num_classes out of range, and in forward for images of another shape.
    """

    def __init__(
        self,
        activation: Literal["relu", "tanh"] = "relu",
        lrn: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (64, 64, 32, 32),
        pixel_range: float = PIXEL_RANGE,
    ):
        super().__init__()
        check_classes(num_classes)
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: use 'relu' or 'tanh'")
        if image_size < 8:
            raise ValueError(f"image_size is {image_size}, but two poolings and two layers of 3x3 need 8 pixels: enlarge the images")
        if len(widths) != 4:
            raise ValueError(f"widths are {list(widths)}, but four numbers are needed, one for each layer")
        self.activation, self.lrn = ACTIVATIONS[activation], lrn
        self.in_channels, self.image_size, self.pixel_range = in_channels, image_size, pixel_range
        w1, w2, w3, w4 = widths
        side = image_size // 4
        self.conv1 = nn.Conv2d(in_channels, w1, 5, padding=2)
        self.conv2 = nn.Conv2d(w1, w2, 5, padding=2)
        self.local3 = LocallyConnected(w2, w3, side)
        self.local4 = LocallyConnected(w3, w4, side)
        self.fc = nn.Linear(w4 * side**2, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights with the deviations of the parameter files, biases 0."""
        for name, std in {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc": 0.01}.items():
            layer = getattr(self, name)
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def convolve(self, layer: nn.Conv2d, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, H / 2, W / 2)
        x = self.activation(layer(x))
        return overlapping_max_pool(local_response_norm(x) if self.lrn else x, ceil_mode=True)  # cuda-convnet pools up to the edge

    def forward_features(self, images: Tensor) -> Tensor:  # (B, C, image_size, image_size) -> (B, widths[3] (image_size / 4)^2)
        check_images(images, self.in_channels, self.image_size)
        x = self.convolve(self.conv1, self.pixel_range * images)
        x = self.convolve(self.conv2, x)
        x = self.activation(self.local3(x))
        return self.activation(self.local4(x)).flatten(1)

    def forward(self, images: Tensor) -> Tensor:  # -> (B, num_classes) logits
        return self.fc(self.forward_features(images))


# Parameters with 1000 classes: 60,965,224 ("60 million", section 1).
def alexnet(**kwargs) -> AlexNet:
    return AlexNet(**kwargs)


# Departure: torchvision's network, not the paper's. 61,100,840 parameters.
def alexnet_one_tower(**kwargs) -> OneTowerAlexNet:
    return OneTowerAlexNet(**kwargs)


# Figure 1, solid line and dashed line; section 3.3 with lrn=True. 1,901,386 parameters.
def cifar_relu(**kwargs) -> CifarNet:
    return CifarNet("relu", **kwargs)


def cifar_tanh(**kwargs) -> CifarNet:
    return CifarNet("tanh", **kwargs)
