"""Auto-Encoding Variational Bayes (Kingma and Welling, 2013, arXiv:1312.6114), section 3 and appendix C.

B items, L draws of z for each, Z width of z, X pixels of an image, C H W its channels, height and width.
A leading (...) is any number of axes: z may be (B, Z) or (B, L, Z).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gaussian_log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:  # (..., X) each -> (...)
    """log N(x; mean, sigma^2 I), in nats."""
    squares = (x - mean).square() * (-log_variance).exp()
    return -0.5 * (math.log(2 * math.pi) + log_variance + squares).sum(-1)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:  # (..., Z) each -> (...)
    """-D_KL = 1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2), appendix B; here D_KL(N(mu, sigma^2 I) || N(0, I)) in nats."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def wide(x: Tensor) -> Tensor:
    """At least fp32: a sum over pixels needs more than the 8 bits of bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GaussianMLP(nn.Module):
    """h = tanh(W3 x + b3), mu = W4 h + b4, log sigma^2 = W5 h + b5 (appendix C.2): the encoder q(z|x), or a decoder of continuous data.

    Args:
        unit_mean: mu = sigmoid(W4 h + b4), between 0 and 1, as the Frey Face decoder has it (section 5).
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, unit_mean: bool = False):
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.mean = nn.Linear(hidden, outputs)
        self.log_variance = nn.Linear(hidden, outputs)
        self.unit_mean = unit_mean

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (..., inputs) -> mu, log sigma^2, (..., outputs) each
        h = self.hidden(x).tanh()
        mean = self.mean(h)
        return wide(mean).sigmoid() if self.unit_mean else wide(mean), wide(self.log_variance(h))

    def log_density(self, x: Tensor, z: Tensor) -> Tensor:  # (..., outputs), (..., inputs) -> (...)
        """log p(x|z) of the decoder."""
        return gaussian_log_density(x, *self(z))

    def expectation(self, z: Tensor) -> Tensor:
        return self(z)[0]


class BernoulliMLP(nn.Module):
    """y = sigmoid(W2 tanh(W1 z + b1) + b2), the decoder of binary data (appendix C.1)."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.logits = nn.Linear(hidden, outputs)

    def forward(self, z: Tensor) -> Tensor:  # (..., inputs) -> logits of y, (..., outputs)
        return wide(self.logits(self.hidden(z).tanh()))

    def log_density(self, x: Tensor, z: Tensor) -> Tensor:  # (..., outputs), (..., inputs) -> (...)
        """log p(x|z) = sum_i x_i log y_i + (1 - x_i) log(1 - y_i) = sum_i x_i a_i - softplus(a_i), a the logits."""
        logits = self(z)
        return (x * logits - F.softplus(logits)).sum(-1)

    def expectation(self, z: Tensor) -> Tensor:
        return self(z).sigmoid()


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) by the decoder; the encoder's q(z|x) = N(mu, sigma^2 I) approximates p(z|x) (section 3).

    Args:
        image_size: side of the images, or (height, width).
        latent: Z, the paper's N_z.
        hidden: units of the one hidden layer of the encoder, and of that of the decoder.
        decoder: bernoulli (binary data) or gaussian (continuous data between 0 and 1).

    Raises:
        ValueError: for another decoder, or sizes below 1.
    """

    def __init__(self, image_size: int | tuple[int, int] = 28, channels: int = 1, latent: int = 20, hidden: int = 500,
                 decoder: Literal["bernoulli", "gaussian"] = "bernoulli"):
        super().__init__()
        if decoder not in ("bernoulli", "gaussian"):
            raise ValueError(f"decoder {decoder!r} is neither 'bernoulli' nor 'gaussian'")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width, channels, latent, hidden) < 1:
            raise ValueError(f"image_size {image_size}, channels {channels}, latent {latent} and hidden {hidden} must be at least 1")
        self.shape, self.latent = (channels, height, width), latent
        pixels = channels * height * width
        self.encoder = GaussianMLP(pixels, hidden, latent)
        self.decoder = BernoulliMLP(latent, hidden, pixels) if decoder == "bernoulli" else GaussianMLP(latent, hidden, pixels, unit_mean=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All parameters from N(0, 0.01) (section 5); 0.01 is read as the standard deviation."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, H, W) -> mu, log sigma^2, (B, Z) each
        if images.shape[1:] != self.shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])} do not fit a VAE of {self.shape}: set image_size and channels")
        return self.encoder(images.flatten(1))

    def decode(self, z: Tensor) -> Tensor:  # (B, Z) -> E[x|z], (B, C, H, W) in [0, 1]
        return self.decoder.expectation(z).unflatten(-1, self.shape)

    def log_likelihood(self, images: Tensor, z: Tensor) -> Tensor:  # (B, C, H, W), (B, L, Z) -> log p(x|z), (B, L)
        return self.decoder.log_density(images.flatten(1)[:, None], z)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The two sides of equation 10, in nats an item.

        Args:
            images: (B, C, H, W).
            noise: epsilon ~ N(0, I), (B, L, Z).

        Returns:
            the mean over the L draws of log p(x|z), z = mu + sigma epsilon; and D_KL(q(z|x) || p(z)); (B,) each.
        """
        mean, log_variance = self.encode(images)
        z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
        return self.log_likelihood(images, z).mean(1), kl_to_standard_normal(mean, log_variance)


def vae_mnist(image_size: int = 28, latent: int = 20, hidden: int = 500, **kwargs) -> VAE:
    """MNIST (figure 2, with N_z of 3, 5, 10, 20, 200; appendix A with 2); hidden=100, latent=3 is figure 3's."""
    return VAE(image_size, latent=latent, hidden=hidden, **kwargs)


def vae_frey(image_size: int | tuple[int, int] = (28, 20), latent: int = 20, hidden: int = 200, **kwargs) -> VAE:
    """Frey Face, 28x20 pixels of continuous brightness (figure 2, with N_z of 2, 5, 10, 20)."""
    return VAE(image_size, latent=latent, hidden=hidden, decoder="gaussian", **kwargs)
