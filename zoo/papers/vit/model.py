"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2020, arXiv:2010.11929).

B batch, (C, H, W) image, P patch side, N = HW / P^2 patches, T tokens (N patches, and the class token before them where there is one),
L layers, D width, k heads of D / k.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .hybrid import ResNetStem, lecun_normal_

torch.fx.wrap("rearrange")  # traced as one call, as is what looks at shapes, so that torchvision's feature extraction takes the model


class Attention(nn.Module):
    """Multi-head self-attention MSA (appendix A): A = softmax(q k^T / sqrt(D_h)) in each of k heads (eq. 6), A v (eq. 7), one projection (eq. 8)."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)  # eq. 5
        self.out = nn.Linear(d_model, d_model)

    def heads(self, x: Tensor) -> Tensor:  # (B, T, D) -> (3, B, k, T, D / k): q, k, v
        return rearrange(self.qkv(x), "B T (three k d) -> three B k T d", three=3, k=self.n_heads)

    def maps(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, k, T, T), row: who attends, column: to what
        q, k, _ = self.heads(x)
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:  # (B, T, D) -> (B, T, D), or (B, first, D)
        q, k, v = self.heads(x)
        x = F.scaled_dot_product_attention(q[:, :, :first], k, v)
        return self.out(rearrange(x, "B k T d -> B T (k d)"))


class Mlp(nn.Module):
    """W_2 gelu(W_1 x) with 4 D hidden units (section 3.1, table 1)."""

    # Departure: gelu(x) = x Phi(x) by erf, as its paper defines it; the authors' code has flax's default, the tanh approximation.

    def __init__(self, d_model: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(d_model, 4 * d_model)
        self.fc2 = nn.Linear(4 * d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = self.dropout(F.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z (eq. 2), then MLP(LN(z')) + z' (eq. 3). Dropout after every dense layer but q, k and v (appendix B.1).

    With `first`, only so many tokens are computed, from all of them.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attention = Attention(d_model, n_heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = Mlp(d_model, dropout)

    def forward(self, z: Tensor, first: int | None = None) -> Tensor:  # (B, T, D) -> (B, T, D), or (B, first, D)
        z = self.dropout(self.attention(self.norm1(z), first)) + z[:, :first]
        return self.mlp(self.norm2(z)) + z


class Positions1D(nn.Module):
    """E_pos of eq. 1: one learned vector a token; patches are counted row by row, nothing tells that they lie in a plane."""

    def __init__(self, grid: tuple[int, int], d_model: int, class_token: bool):
        super().__init__()
        self.table = nn.Parameter(torch.empty(class_token + grid[0] * grid[1], d_model))

    def forward(self) -> Tensor:  # (T, D)
        return self.table

    @staticmethod
    def resize(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        return {"table": interpolate_positions(state["table"], grid)}


class Positions2D(nn.Module):
    """The 2-dimensional variant of appendix D.4: D / 2 numbers for the column (X) and D / 2 for the row (Y) of a patch, side by side.

    The paper doesn't say what the class token gets; here it is a vector of its own.
    """

    def __init__(self, grid: tuple[int, int], d_model: int, class_token: bool):
        super().__init__()
        self.x = nn.Parameter(torch.empty(grid[1], d_model // 2))
        self.y = nn.Parameter(torch.empty(grid[0], d_model // 2))
        self.token = nn.Parameter(torch.empty(1, d_model)) if class_token else None

    def forward(self) -> Tensor:  # (T, D)
        h, w = self.y.shape[0], self.x.shape[0]
        table = torch.cat([self.x.expand(h, w, -1), self.y[:, None].expand(h, w, -1)], -1).flatten(0, 1)
        return table if self.token is None else torch.cat([self.token, table])

    @staticmethod
    def resize(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        x, y = _resize(state["x"][None], (1, grid[1]))[0], _resize(state["y"][:, None], (grid[0], 1))[:, 0]
        return {**state, "x": x, "y": y}


def _resize(table: Tensor, grid: tuple[int, int]) -> Tensor:  # (h, w, D) -> (*grid, D), bilinear, corners stay corners
    return F.interpolate(table.permute(2, 0, 1)[None], grid, mode="bilinear", align_corners=True)[0].permute(1, 2, 0)


def interpolate_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A 1-D position table for another resolution (section 3.2): interpolated bilinearly over the plane of patches; the class position is kept.

    The corners of the old plane come to lie on those of the new one, as in the authors' code (`scipy.ndimage.zoom`).

    Args:
        table: (T, D), of a square grid of patches, with a class position before them or without.
        grid: rows and columns of patches wanted.

    Returns:
        (grid[0] * grid[1], D), or one row more where the table has a class position.

    Raises:
        ValueError: if the table is not that of a square grid.
    """
    side, first = math.isqrt(len(table)), 0
    if side**2 != len(table):
        side, first = math.isqrt(len(table) - 1), 1
    if side**2 + first != len(table):
        raise ValueError(f"a table of {len(table)} positions does not belong to a square grid of patches, so that it cannot be interpolated")
    patches = rearrange(table[first:], "(h w) D -> h w D", h=side)
    return torch.cat([table[:first], _resize(patches, grid).flatten(0, 1)])


class ViT(nn.Module):
    """Vision Transformer (figure 1): patches, a linear map of each, positions, L encoder blocks, layer norm, a linear head.

    Args:
        image_size: side of the images in pixels, or (height, width).
        patch_size: P; with `resnet`, in pixels of the feature map.
        depth: L.
        d_model: D.
        n_heads: k.
        pool: 'class' reads the image off the class token (eq. 4); 'mean' has no such token and averages the patches (appendix D.3).
        positions: '1d' (eq. 1), '2d' (appendix D.4) or None, which makes a patch's place unknowable.
        pretraining_head: a hidden layer tanh(W y + b) of width D before the linear head, as in pre-training (section 3.1).
        dropout: after the sum of patches and positions and after every dense layer but q, k and v (appendix B.1).
        resnet: blocks in each stage of a ResNet whose feature map is what is cut into patches (the hybrids of section 3.1), or None.

    Raises:
        ValueError: if patches don't divide the image, heads don't divide D, D is odd with 2-D positions, or an argument is out of range.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        depth: int = 12,
        d_model: int = 768,
        n_heads: int = 12,
        num_classes: int = 1000,
        in_channels: int = 3,
        pool: Literal["class", "mean"] = "class",
        positions: Literal["1d", "2d"] | None = "1d",
        pretraining_head: bool = False,
        dropout: float = 0.0,
        resnet: Sequence[int] | None = None,
    ):
        super().__init__()
        for name, value in (("patch_size", patch_size), ("depth", depth), ("d_model", d_model), ("n_heads", n_heads), ("in_channels", in_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} does not divide into n_heads {n_heads} heads of equal width")
        if pool not in ("class", "mean"):
            raise ValueError(f"unknown pool {pool!r}: use 'class' (class token) or 'mean' (average of the patches)")
        if positions not in ("1d", "2d", None):
            raise ValueError(f"unknown positions {positions!r}: use '1d', '2d' or None")
        if positions == "2d" and d_model % 2:
            raise ValueError(f"positions '2d' give half of d_model to each axis: {d_model} is odd")
        self.stem = ResNetStem(resnet, in_channels) if resnet is not None else None
        self.input_shape = (in_channels, *_pair(image_size))
        self.grid = _grid(self.input_shape[1:], patch_size * (self.stem.stride if self.stem else 1), patch_size)
        # E of eq. 1: a convolution whose stride is its kernel is one linear map for every patch.
        self.embedding = nn.Conv2d(self.stem.out_channels if self.stem else in_channels, d_model, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, d_model)) if pool == "class" else None
        kinds = {"1d": Positions1D, "2d": Positions2D}
        self.positions = kinds[positions](self.grid, d_model, pool == "class") if positions is not None else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(EncoderBlock(d_model, n_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.pre_logits = nn.Linear(d_model, d_model) if pretraining_head else None
        self.head = nn.Linear(d_model, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the authors' code (github.com/google-research/vision_transformer): LeCun-normal patch map and hidden layer of the head;
        Xavier-uniform dense layers, their biases 0 in attention and N(0, 1e-6^2) in the MLP; positions N(0, 0.02^2); class token and head 0.
        """
        for block in self.blocks:
            d_model = block.attention.out.in_features
            nn.init.uniform_(block.attention.qkv.weight, -math.sqrt(3 / d_model), math.sqrt(3 / d_model))  # q, k, v: three D x D maps, not one
            nn.init.xavier_uniform_(block.attention.out.weight)
            nn.init.zeros_(block.attention.qkv.bias)
            nn.init.zeros_(block.attention.out.bias)
            for layer in (block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
        for layer in (self.embedding, self.pre_logits):
            if layer is not None:
                lecun_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)
        for table in self.positions.parameters() if self.positions is not None else ():
            nn.init.normal_(table, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def tokens(self, images: Tensor) -> Tensor:
        """z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos (eq. 1): (B, C, H, W) -> (B, T, D).

        Raises:
            ValueError: if the images have another size or number of channels than the model was built for.
        """
        check_images(images, self.input_shape)
        if self.stem is not None:
            images = self.stem(images)
        z = self.embedding(images).flatten(2).mT
        if self.class_token is not None:
            z = torch.cat([self.class_token.expand(z.shape[0], -1, -1), z], 1)
        if self.positions is not None:
            z = z + self.positions()
        return self.dropout(z)

    def forward_features(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, D)
        """y (eq. 4): the class token after the last layer norm, or the mean of the patches after it; before any head, the hidden layer included."""
        z = self.tokens(images)
        *blocks, last = self.blocks
        for block in blocks:
            z = block(z)
        if self.class_token is not None:
            return self.norm(last(z, first=1)).squeeze(1)  # nothing reads the patches of the last layer
        return self.norm(last(z)).mean(1)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, num_classes) logits
        y = self.forward_features(images)
        if self.pre_logits is not None:
            y = torch.tanh(self.pre_logits(y))
        return self.head(y)

    def attention_maps(self, images: Tensor) -> Tensor:
        """Who attends to what, in all layers: (B, C, H, W) -> (B, L, k, T, T), rows add up to 1. Takes T^2 memory, unlike `forward`."""
        z, maps = self.tokens(images), []
        for block in self.blocks:
            maps.append(block.attention.maps(block.norm1(z)))
            z = block(z)
        return torch.stack(maps, 1)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model at another resolution -> one that loads here: its positions are interpolated (section 3.2).

        `model.load_state_dict(model.adapt_state(state))`. Everything but the positions is handed on as it is.

        Raises:
            ValueError: if the old positions are not those of a square image.
        """
        ours = {f"positions.{name}": value.shape for name, value in self.positions.state_dict().items()} if self.positions is not None else {}
        theirs = {name: value for name, value in state.items() if name.startswith("positions.")}
        if theirs.keys() != ours.keys() or all(theirs[name].shape == ours[name] for name in ours):
            return dict(state)  # nothing to do, or what load_state_dict should complain about
        resized = self.positions.resize({name.removeprefix("positions."): value for name, value in theirs.items()}, self.grid)
        return {**state, **{f"positions.{name}": value for name, value in resized.items()}}


@torch.fx.wrap
def check_images(images: Tensor, input_shape: tuple[int, ...]) -> None:
    if images.ndim != 4 or tuple(images.shape[1:]) != input_shape:
        wanted = ", ".join(map(str, input_shape))
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not fit this model, which takes (B, {wanted}): resize them, or build it with another "
            "image_size or in_channels (adapt_state fits weights to another size)"
        )


def _pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size must be one side or (height, width), not {image_size!r}")
    return sides


def _grid(size: tuple[int, int], stride: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of `stride` pixels."""
    for side in size:
        if side < 1 or side % stride:
            of = f"patch_size {patch_size}" + (f" x {stride // patch_size}, the stride of the ResNet" if stride != patch_size else "")
            raise ValueError(f"image_size {side} is not a multiple of {of}: use {max(side // stride, 1) * stride}, for instance")
    return size[0] // stride, size[1] // stride


# Table 1: B, L, H. Parameters at 224 pixels and 1000 classes: 86.6M (B/16), 88.2M, 304.3M, 306.5M, 632.0M; the paper prints 86M, 307M, 632M.
def vit_b16(**kwargs) -> ViT:
    return ViT(patch_size=16, depth=12, d_model=768, n_heads=12, **kwargs)


def vit_b32(**kwargs) -> ViT:
    return ViT(patch_size=32, depth=12, d_model=768, n_heads=12, **kwargs)


def vit_l16(**kwargs) -> ViT:
    return ViT(patch_size=16, depth=24, d_model=1024, n_heads=16, **kwargs)


def vit_l32(**kwargs) -> ViT:
    return ViT(patch_size=32, depth=24, d_model=1024, n_heads=16, **kwargs)


def vit_h14(**kwargs) -> ViT:
    return ViT(patch_size=14, depth=32, d_model=1280, n_heads=16, **kwargs)


# R50+ViT-B/16 (section 3.1 and figure 5): the fourth stage's blocks go to the third, so that patches of 1x1 stand for 16x16 pixels.
def vit_r50_b16(**kwargs) -> ViT:
    return ViT(patch_size=1, depth=12, d_model=768, n_heads=12, resnet=(3, 4, 9), **kwargs)


# Not in the paper: smaller sizes of DeiT (arXiv:2012.12877) and of the authors' later work (arXiv:2106.10270).
def vit_ti16(**kwargs) -> ViT:
    return ViT(patch_size=16, depth=12, d_model=192, n_heads=3, **kwargs)


def vit_s16(**kwargs) -> ViT:
    return ViT(patch_size=16, depth=12, d_model=384, n_heads=6, **kwargs)


def vit_s32(**kwargs) -> ViT:
    return ViT(patch_size=32, depth=12, d_model=384, n_heads=6, **kwargs)
