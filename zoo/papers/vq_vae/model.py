"""Neural Discrete Representation Learning (van den Oord, Vinyals, Kavukcuoglu, 2017, arXiv:1711.00937), section 3 and appendix A.1.

B images, C H W their channels, height and width, h w those of the grid of latents, G codes a position; K codes of width D in the codebook;
M = B h w G vectors to quantise. Where the paper is silent, Sonnet's vqvae.py, of the same authors' house, decides.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SEARCH_BYTES, SEARCH_BYTES_CPU = 2**26, 2**20  # what a part of the matrix of distances may take; a CPU is faster within its cache


class VectorQuantizer(nn.Module):
    """z_q = e_k, k = argmin_j ||z_e - e_j||^2 (equations 1 and 2), with a codebook that learns by gradient.

    Args:
        codes: K.
        width: D.
    """

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, width))
        nn.init.uniform_(self.codebook, -1 / codes, 1 / codes)  # as Sonnet 1: codes far from the encoder's first outputs would stay unused

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:  # (M, D) -> (M,) int64
        """argmin_j ||z - e_j||^2 = argmin_j ||e_j||^2 - 2 z e_j, never with more than SEARCH_BYTES of distances (or one row) at a time."""
        norms = self.codebook.square().sum(1)
        limit = SEARCH_BYTES_CPU if z.device.type == "cpu" else SEARCH_BYTES
        rows = max(1, limit // (len(norms) * z.element_size()))
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([torch.addmm(norms, part, self.codebook.T, alpha=-2).argmin(1) for part in z.split(rows)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (M, D) -> e_k (M, D), k (M,)
        codes = self.nearest(z)
        return F.embedding(codes, self.codebook), codes


class EmaVectorQuantizer(VectorQuantizer):
    """The codebook as the running mean of the vectors that chose each code (appendix A.1), in place of the gradient:

    N_i <- gamma N_i + (1 - gamma) n_i,  m_i <- gamma m_i + (1 - gamma) sum_j z_ij,  e_i = m_i / N_i.

    In training `forward` adds n_i and the sums up, and `update` takes them in, once an iteration: so it does not matter in how many
    micro-batches and on how many ranks the batch was seen. Where nothing was added, as after a step that was undone, it changes nothing.

    N_i is smoothed as Sonnet does: (N_i + eps) / (n + K eps) n, n the sum of all N_i, so that a code that nobody chooses doesn't divide by 0.

    Args:
        decay: gamma.
        revive: codes with an N_i below this are given half of the vectors of one of the most used codes; 0 leaves them dead.
    """

    def __init__(self, codes: int, width: int, decay: float = 0.99, revive: float = 0.0, eps: float = 1e-5):
        super().__init__(codes, width)
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}: running means need one between 0 and 1")
        initial = self.codebook.detach()
        del self.codebook
        self.decay, self.revive, self.eps = decay, revive, eps
        self.register_buffer("codebook", initial)
        self.register_buffer("usage", torch.ones(codes))  # N
        self.register_buffer("total", initial.clone())  # m
        self.register_buffer("new_usage", torch.zeros(codes))  # n, since the last update
        self.register_buffer("new_total", torch.zeros(codes, width))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        quantized, codes = super().forward(z)
        if self.training:
            self.new_usage.index_add_(0, codes, torch.ones_like(z[:, 0]))
            self.new_total.index_add_(0, codes, z.detach())
        return quantized, codes

    @torch.no_grad()
    def update(self) -> None:
        """Takes in what all ranks have seen since the last call; each rank must call it."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for statistic in (self.new_usage, self.new_total):
                torch.distributed.all_reduce(statistic)
        seen = self.new_usage.sum() > 0  # a tensor: asking the device for its value would stall it
        share = (1 - self.decay) * seen.to(self.usage.dtype)
        self.usage.lerp_(self.new_usage, share)
        self.total.lerp_(self.new_total, share)
        self.new_usage.zero_()
        self.new_total.zero_()
        if self.revive:
            self._split(seen)
        n = self.usage.sum()
        smoothed = (self.usage + self.eps) / (n + len(self.usage) * self.eps) * n
        self.codebook.copy_(self.total / smoothed[:, None])

    def _split(self, seen: Tensor) -> None:
        # Departure: dead codes are not in the paper. As in Linde, Buzo and Gray (1980), a much used code is split in two, 1 % apart.
        order = self.usage.argsort()
        dead, used = order[: len(order) // 2], order.flip(0)[: len(order) // 2]
        usage, total = self.usage[used], self.total[used]
        split = seen & (self.usage[dead] < self.revive) & (usage > 2 * self.revive)
        for buffer, halves in ((self.usage, (usage / 2, usage / 2)), (self.total, (1.01 * total / 2, 0.99 * total / 2))):
            for codes, half in zip((dead, used), halves):
                where = split.view(-1, *[1] * (buffer.ndim - 1))
                buffer[codes] = torch.where(where, half, buffer[codes])


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))) (section 4.1)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.proj = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, h, w) -> the same
        return x + self.proj(F.relu(self.conv(F.relu(x))))


def residual_stack(channels: int, hidden: int) -> list[nn.Module]:
    return [ResidualBlock(channels, hidden), ResidualBlock(channels, hidden), nn.ReLU()]


def log_probability(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """log p(x) in nats, elementwise, of pixels with 256 levels from -1 to 1: the mass that a logistic distribution has in x +- 1/255.

    With s = e^log_scale, a = (x - location + 1/255) / s and b = (x - location - 1/255) / s, it is
    log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - e^(b - a)).
    The bins of -1 and 1 reach to infinity, so that the 256 probabilities sum to one.
    """
    a, b = (x - location + 1 / 255) / log_scale.exp(), (x - location - 1 / 255) / log_scale.exp()
    inner = F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(b - a))
    return torch.where(x < -0.999, F.logsigmoid(a), torch.where(x > 0.999, F.logsigmoid(-b), inner))


def expectation(location: Tensor, log_scale: Tensor) -> Tensor:
    """E[x] of such a pixel, but for its rounding to levels: -1 + the integral of P(x > t) = sigmoid((location - t) / s) over t in (-1, 1)."""
    s = log_scale.exp()
    return (s * (F.softplus((location + 1) / s) - F.softplus((location - 1) / s)) - 1).clamp(-1, 1)  # it rounds


class Reconstruction(NamedTuple):
    """What one pass gives: p(x|z_q(x)), and both sides of the quantiser."""

    pixels: Tensor  # E[x|z_q(x)], (B, C, H, W), in [-1, 1] where there are scales
    location: Tensor  # (B, C, H, W)
    log_scale: Tensor | None  # the same shape
    z: Tensor  # (M, D), z_e(x)
    e: Tensor  # (M, D), z_q(x)
    codes: Tensor  # (B, h, w G) int64


class VQVAE(nn.Module):
    """Encoder, codebook, decoder (section 4.1): strided 4x4 convolutions and two residual blocks, and their mirror image.

    Args:
        image_size: side of the images.
        codes, code_width: K and D.
        codes_per_position: G; they share the codebook, and stand side by side in the grid of codes.
        hidden, residual_hidden: channels, and channels within a residual block.
        halvings: convolutions of stride 2.
        sonnet: its encoder, with half the channels before the last halving and a 3x3 convolution after it; so its decoder.
        decay: of the codebook's running means; None for a codebook that learns by gradient, with the second term of equation 3.
        revive: see `EmaVectorQuantizer`.
        scales: whether the decoder gives a scale for each pixel, too, and with it a likelihood.

    Raises:
        ValueError: if the side cannot be halved that often, or for numbers out of range.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, codes: int = 512, code_width: int = 64, codes_per_position: int = 1,
                 hidden: int = 256, residual_hidden: int = 256, halvings: int = 2, sonnet: bool = False,
                 decay: float | None = 0.99, revive: float = 0.0, scales: bool = True):
        super().__init__()
        if min(image_size, channels, codes, code_width, codes_per_position, hidden // 2, residual_hidden, halvings) < 1:
            raise ValueError("image_size, channels, codes, code_width, codes_per_position, residual_hidden and halvings must be at least 1, "
                             "and hidden at least 2")
        if image_size % 2**halvings:
            raise ValueError(f"image_size {image_size} is not a multiple of {2**halvings}: {halvings} convolutions halve it")
        if decay is None and revive:
            raise ValueError("revive needs a decay: only running means know which codes are dead")
        self.shape, self.codes, self.codes_per_position, self.scales = (channels, image_size, image_size), codes, codes_per_position, scales
        side, latent = image_size // 2**halvings, codes_per_position * code_width
        self.grid = (side, side * codes_per_position)  # of the codes of an image: h, w G
        widths = [channels] + [hidden // 2 if sonnet else hidden] * (halvings - 1) + [hidden]
        down = [layer for c, d in pairwise(widths) for layer in (nn.Conv2d(c, d, 4, 2, 1), nn.ReLU())]
        middle = [nn.Conv2d(hidden, hidden, 3, padding=1)] if sonnet else []
        self.encoder = nn.Sequential(*down, *middle, *residual_stack(hidden, residual_hidden), nn.Conv2d(hidden, latent, 1))
        self.quantizer = VectorQuantizer(codes, code_width) if decay is None else EmaVectorQuantizer(codes, code_width, decay, revive)
        widths[0] = channels * (2 if scales else 1)
        up = [layer for c, d in pairwise(reversed(widths)) for layer in (nn.ReLU(), nn.ConvTranspose2d(c, d, 4, 2, 1))]
        self.decoder = nn.Sequential(nn.Conv2d(latent, hidden, 3, padding=1), *residual_stack(hidden, residual_hidden)[:-1], *up)

    def latents(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> z_e(x), (B, h, w G, D)
        if images.shape[1:] != self.shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} do not fit a VQ-VAE of {self.shape}: set image_size and channels")
        z = rearrange(self.encoder(images), "B (G D) h w -> B h (w G) D", G=self.codes_per_position)
        return z.to(self.quantizer.codebook.dtype)  # under autocast: fewer bits would choose other codes

    def reconstruct(self, e: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # z_q(x), (B, h, w G, D) -> the first three of Reconstruction
        out = self.decoder(rearrange(e, "B h (w G) D -> B (G D) h w", G=self.codes_per_position)).to(e.dtype)
        if not self.scales:
            return out, out, None
        location, log_scale = out.chunk(2, 1)
        log_scale = log_scale.clamp(min=-7)  # s of a ninth of a grey level; smaller ones would only make gradients explode
        return expectation(location, log_scale), location, log_scale

    def forward(self, images: Tensor) -> Reconstruction:
        """Equation 3's three terms are functions of what this returns.

        The gradient of the reconstruction skips the quantiser: it arrives at z as it left z_q (section 3.2, "straight-through").
        """
        z = self.latents(images)
        e, codes = self.quantizer(z.flatten(0, 2))
        return Reconstruction(*self.reconstruct(z + (e.view_as(z) - z).detach()), z.flatten(0, 2), e, codes.view(z.shape[:3]))

    def encode(self, images: Tensor) -> Tensor:  # (B, C, H, W) in [-1, 1] -> codes (B, h, w G) int64
        z = self.latents(images)
        return self.quantizer.nearest(z.flatten(0, 2)).view(z.shape[:3])

    def decode(self, codes: Tensor) -> Tensor:  # (B, h, w G) -> E[x|z_q], (B, C, H, W) in [-1, 1]
        return self.reconstruct(F.embedding(codes, self.quantizer.codebook))[0].clamp(-1, 1)


def vqvae_cifar10(image_size: int = 32, codes_per_position: int = 10, **kwargs) -> VQVAE:
    """CIFAR-10: 8x8x10 latents of 512 codes (sections 3.2 and 4.1)."""
    return VQVAE(image_size, codes_per_position=codes_per_position, **kwargs)


def vqvae_imagenet(image_size: int = 128, **kwargs) -> VQVAE:
    """ImageNet at 128 pixels: 32x32 latents of 512 codes (section 4.2)."""
    return VQVAE(image_size, **kwargs)


def vqvae_dmlab(image_size: int = 84, **kwargs) -> VQVAE:
    """DeepMind Lab at 84 pixels: 21x21 latents of 512 codes (section 4.2)."""
    return VQVAE(image_size, **kwargs)


def vqvae_sonnet(image_size: int = 32, hidden: int = 128, residual_hidden: int = 32, scales: bool = False, **kwargs) -> VQVAE:
    """The sizes of Sonnet's example: CIFAR-10 as 8x8 latents of 512 codes of width 64, squared error."""
    return VQVAE(image_size, hidden=hidden, residual_hidden=residual_hidden, sonnet=True, scales=scales, **kwargs)
