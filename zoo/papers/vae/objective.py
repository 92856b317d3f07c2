"""The variational bound of Auto-Encoding Variational Bayes (Kingma and Welling, 2013), algorithm 1; letters as in model.py."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn


class VariationalBound(nn.Module):
    """L(x) = -D_KL(q(z|x) || p(z)) + 1/L sum_l log p(x|z^(l)), z^(l) = mu + sigma epsilon^(l)   (equation 10), ascended.

    The paper's MAP criterion adds log p(theta), theta ~ N(0, I), once for the whole data set: with the mean bound over N items that is a
    weight decay of 1/N.

    Args:
        model: a `VAE`.
        samples: L; the paper uses 1 with batches of 100.
        pixels: what an image in [0, 1] stands for, where the paper is silent.
            sampled: each pixel is drawn to be 0 or 1, 1 with its brightness as probability, anew each time that the item is seen.
            threshold: 1 where it is brighter than 1/2, else 0.
            grey: as it is. Bernoulli log-likelihoods are linear in x, so that the bound is the mean of that of `sampled` over its
            drawings, for a q that sees the grey pixels; but a marginal likelihood of grey pixels means nothing.
            dequantised: (255 x + u) / 256, u ~ U(0, 1): a density of continuous data that 256 levels cannot drive to infinity.

    Raises:
        ValueError: for other values, or dequantised pixels with a Bernoulli decoder.
    """

    forward_methods = ("encode", "decode", "log_likelihood")

    def __init__(self, model: nn.Module, samples: int = 1,
                 pixels: Literal["sampled", "threshold", "grey", "dequantised"] = "sampled"):
        super().__init__()
        if pixels not in ("sampled", "threshold", "grey", "dequantised"):
            raise ValueError(f"pixels {pixels!r} is none of 'sampled', 'threshold', 'grey' and 'dequantised'")
        if pixels == "dequantised" and hasattr(model.decoder, "logits"):
            raise ValueError("pixels 'dequantised' are continuous: they need decoder='gaussian'")
        if samples < 1:
            raise ValueError(f"samples is {samples}: the bound needs at least one draw of z for each item")
        self.model, self.samples, self.pixels = model, samples, pixels

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the data's images are not those that the model is made for."""
        for name, has in zip(("channels", "image_size", "image_size"), self.model.shape):
            if facts.get(name, has) != has:
                raise ValueError(f"the VAE is made for {name} {has} and the data has {facts[name]}: set model.{name}={facts[name]}")

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Algorithm 1's epsilon, and u ~ U(0, 1) for pixels that are drawn."""
        on = {"generator": generator, "device": generator.device}
        noise = {"noise": torch.randn(batch_size, self.samples, self.model.latent, **on)}
        return noise | {"u": torch.rand(batch_size, *self.model.shape, **on)} if self.pixels in ("sampled", "dequantised") else noise

    def data(self, batch: dict[str, Tensor]) -> Tensor:  # (B, C, H, W)
        """What the model is to explain: the images as `pixels` says."""
        images = batch["image"]
        if self.pixels == "dequantised":
            return (255 * images + batch["u"]) / 256
        return images if self.pixels == "grey" else (images > batch.get("u", 0.5)).to(images.dtype)

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss is -L(x); logs are its two sides, in nats an item."""
        log_likelihood, kl = self.model(self.data(batch), batch["noise"])
        logs = {"log_likelihood": log_likelihood.detach().sum(), "kl": kl.detach().sum()}
        return {"loss": (kl - log_likelihood).sum()}, logs

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        log_likelihood, kl = (a.double() for a in self.model(self.data(batch), batch["noise"]))
        return {"log_likelihood": log_likelihood.sum(), "kl": kl.sum(), "items": kl.new_tensor(len(kl))}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`bound` = `log_likelihood` - `kl`, in nats an item."""
        log_likelihood, kl = (statistics[name] / statistics["items"] for name in ("log_likelihood", "kl"))
        return {"bound": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """z ~ N(0, I), then E[x|z], (n, C, H, W) in [0, 1], as the paper's figures show it: no noise of the pixels."""
        z = torch.randn(n, self.model.latent, generator=generator, device=generator.device)
        return self.model.decode(z)

    @torch.no_grad()
    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """`reconstructions`: images above E[x|mu]; and, where Z is 2, `manifold` (figure 4): E[x|z] for z = Phi^-1 of an even grid."""
        images = batch["image"][:16]
        drawn = self.data({**batch, **self.draw(len(batch["image"]), generator)})[:16]
        rows = torch.stack([images, drawn, self.model.decode(self.model.encode(drawn)[0])])
        made = {"reconstructions": mosaic(rows)}
        if self.model.latent == 2:
            z = torch.special.ndtri(torch.linspace(0.025, 0.975, 20, dtype=images.dtype, device=images.device))
            down, right = torch.meshgrid(-z, z, indexing="ij")
            made["manifold"] = mosaic(self.model.decode(torch.stack([right, down], -1).flatten(0, 1)).unflatten(0, (20, 20)))
        return made


def mosaic(images: Tensor) -> Tensor:  # (rows, columns, C, H, W) in [0, 1] -> (height, width, 3) uint8, small images enlarged
    picture = rearrange(images, "row column C H W -> (row H) (column W) C").mul(255).round().byte().cpu()
    scale = max(1, 32 // images.shape[-1])
    return picture.expand(-1, -1, 3).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
