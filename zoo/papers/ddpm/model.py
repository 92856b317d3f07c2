"""The U-Net of Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020, arXiv:2006.11239), section 4 and appendix B.

B batch, C channels of a feature map, H W its height and width, t diffusion step (int64, 0 .. T-1; the paper counts 1 .. T).
Where the paper is silent, the released code (github.com/hojonathanho/diffusion) decides.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def time_embedding(t: Tensor, width: int) -> Tensor:  # (B,) -> (B, width), float32
    """[sin(t f), cos(t f)] with f_i = 10000^(-i / (width/2 - 1)): the Transformer's position embedding of the step (section 4)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class ResBlock(nn.Module):
    """shortcut(x) + conv2(dropout(swish(GN(h)))), where h = conv1(swish(GN(x))) + W swish(temb), added at every position."""

    def __init__(self, c_in: int, c_out: int, c_time: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_proj = nn.Linear(c_time, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:  # (B, c_in, H, W), (B, c_time) -> (B, c_out, H, W)
        h = self.conv1(F.silu(self.norm1(x))) + self.time_proj(F.silu(temb))[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(C)) v) over the H W positions, one head; q, k, v are 1x1 convolutions of GN(x)."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        q, k, v = self.qkv(rearrange(self.norm(x), "B C H W -> B 1 (H W) C")).chunk(3, -1)
        attended = self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + rearrange(attended, "B 1 (H W) C -> B C H W", H=x.shape[2])


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2. TensorFlow's SAME padding of an even side adds one row below and one column to the right."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H/2, W/2)
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, 2H, 2W)
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownLevel(nn.Module):
    """The residual blocks of one resolution, each followed by attention where `attend`; then, but for the last level, a downsample."""

    def __init__(self, c_ins: list[int], c_out: int, c_time: int, groups: int, dropout: float, attend: bool, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(c_in, c_out, c_time, groups, dropout) for c_in in c_ins)
        self.attentions = nn.ModuleList(Attention(c_out, groups) if attend else nn.Identity() for _ in c_ins)
        self.downsample = None if last else Downsample(c_out)

    def forward(self, x: Tensor, temb: Tensor) -> list[Tensor]:
        """Returns every map that the way up will see again; the last one goes on."""
        outputs = []
        for block, attention in zip(self.blocks, self.attentions):
            x = attention(block(x, temb))
            outputs.append(x)
        return outputs if self.downsample is None else [*outputs, self.downsample(x)]


class UpLevel(nn.Module):
    """The same on the way up: each block sees the concatenation of its input and of the map that the way down left there."""

    def __init__(self, c_ins: list[int], c_out: int, c_time: int, groups: int, dropout: float, attend: bool, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(c_in, c_out, c_time, groups, dropout) for c_in in c_ins)
        self.attentions = nn.ModuleList(Attention(c_out, groups) if attend else nn.Identity() for _ in c_ins)
        self.upsample = None if last else Upsample(c_out)

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
        """`skips`: one map a block; the first block takes the last."""
        for block, attention, skip in zip(self.blocks, self.attentions, reversed(skips)):
            x = attention(block(torch.cat([x, skip], 1), temb))
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, c_time: int, groups: int, dropout: float):
        super().__init__()
        self.block1 = ResBlock(channels, channels, c_time, groups, dropout)
        self.attention = Attention(channels, groups)
        self.block2 = ResBlock(channels, channels, c_time, groups, dropout)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x, temb)), temb)


class UNet(nn.Module):
    """epsilon_theta(x_t, t): predicts the noise in x_t. A PixelCNN++ backbone with group norm and attention (appendix B).

    With `num_classes` it is epsilon_theta(x_t, t, c) of classifier-free guidance (Ho, Salimans, 2022, arXiv:2207.12598): a vector for each
    class, and one for the null class (no class told), whose number is `num_classes`, is added to the embedding of the step.

    Args:
        image_size: side of the images. It decides which levels attend; images of other sides (multiples of 2^(levels - 1)) work too.
        width: channels of the first level; level i has `width * multipliers[i]`, half the resolution of level i - 1.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: the resolutions (sides of the feature map) at which every block is followed by self-attention.
        groups: groups of each group norm; 32 in the paper.
        out_channels: as many as `channels` by default; twice as many where the variance is learned, too.
        num_classes: null: unconditional, as in the paper.

    Raises:
        ValueError: if the side cannot be halved between the levels, or the groups don't divide the width.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 128, multipliers: tuple[int, ...] = (1, 2, 2, 2),
                 blocks: int = 2, attention: tuple[int, ...] = (16,), dropout: float = 0.0, groups: int = 32,
                 out_channels: int | None = None, num_classes: int | None = None):
        super().__init__()
        self.side_multiple = 2 ** (len(multipliers) - 1)
        if image_size % self.side_multiple:
            raise ValueError(f"image_size {image_size} is not a multiple of {self.side_multiple}: {len(multipliers)} levels halve it "
                             f"{len(multipliers) - 1} times")
        if width % groups or width % 2 or width < 4:
            raise ValueError(f"width {width} must be even, at least 4 and a multiple of groups {groups}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes {num_classes} must be at least 1; null stands for a network without classes")
        self.image_size, self.channels, self.width, self.num_classes = image_size, channels, width, num_classes
        self.out_channels = channels if out_channels is None else out_channels
        c_time = 4 * width
        widths = [width * m for m in multipliers]
        attends = [image_size // 2**i in attention for i in range(len(widths))]
        shared = (c_time, groups, dropout)

        self.time = nn.Sequential(nn.Linear(width, c_time), nn.SiLU(), nn.Linear(c_time, c_time))
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, c_time)  # the last one is the null class
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        skips = [width]  # channels of the maps which the way up takes back, last first
        self.down = nn.ModuleList()
        for c, attend in zip(widths, attends):
            last = len(self.down) == len(widths) - 1
            self.down.append(DownLevel([skips[-1]] + [c] * (blocks - 1), c, *shared, attend, last))
            skips += [c] * (blocks if last else blocks + 1)
        self.middle = Middle(widths[-1], *shared)
        self.up = nn.ModuleList()
        c_below = widths[-1]
        for c, attend in zip(reversed(widths), reversed(attends)):
            c_ins = [c_h + skips.pop() for c_h in [c_below] + [c] * blocks]
            self.up.append(UpLevel(c_ins, c, *shared, attend, last=not skips))
            c_below = c
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], self.out_channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The released code: U(+-sqrt(6 / (fan_in + fan_out))), biases 0, and 1e-5 times that before each residual sum and at the end.

        The vectors of the classes, which the paper hasn't got, are standard normal, torch's default.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.xavier_uniform_(module.conv2.weight, gain=1e-5)
            elif isinstance(module, Attention):
                for projection in module.qkv.weight.chunk(3):  # each has its own fans
                    nn.init.xavier_uniform_(projection)
                nn.init.xavier_uniform_(module.proj.weight, gain=1e-5)
        nn.init.xavier_uniform_(self.conv_out.weight, gain=1e-5)

    def forward_features(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, channels, H, W), (B,), (B,) -> (B, width of level 0, H, W). Without labels a network of classes takes the null class."""
        if x.shape[1] != self.channels or x.shape[2] % self.side_multiple or x.shape[3] % self.side_multiple:
            raise ValueError(f"images of shape {tuple(x.shape[1:])} do not fit a U-Net for {self.channels} channels "
                             f"and sides that are multiples of {self.side_multiple}")
        temb = self.time(time_embedding(t, self.width).to(x.dtype))
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(torch.full_like(t, self.num_classes) if label is None else label)
        elif label is not None:
            raise ValueError("labels need a network of classes: build it with num_classes")
        skips = [self.conv_in(x)]
        for level in self.down:
            skips += level(skips[-1], temb)
        h = self.middle(skips[-1], temb)
        for level in self.up:
            above = len(skips) - len(level.blocks)
            h = level(h, skips[above:], temb)
            skips = skips[:above]
        return h

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:  # -> (B, out_channels, H, W): the predicted noise
        return self.conv_out(F.silu(self.norm_out(self.forward_features(x, t, label))))


def unet_cifar10(image_size: int = 32, dropout: float = 0.1, **kwargs) -> UNet:
    """35.7M parameters (appendix B)."""
    return UNet(image_size, width=128, multipliers=(1, 2, 2, 2), dropout=dropout, **kwargs)


def unet_256(image_size: int = 256, width: int = 128, **kwargs) -> UNet:
    """114M parameters: LSUN and CelebA-HQ at 256 pixels (appendix B). The larger bedroom model (256M) has more filters: width=192."""
    return UNet(image_size, width=width, multipliers=(1, 1, 2, 2, 4, 4), **kwargs)


def unet_small(image_size: int = 8, channels: int = 1, width: int = 16, multipliers: tuple[int, ...] = (1, 2), blocks: int = 1,
               attention: tuple[int, ...] = (4,), **kwargs) -> UNet:
    """The same network for digits; not in the paper. With groups of 4 channels: a group norm of single channels would erase their means."""
    return UNet(image_size, channels, width, multipliers, blocks, attention, groups=width // 4, **kwargs)
