"""Both stages of VQ-VAE: the autoencoder's loss (equation 3), then a prior over its codes (section 3.3); letters as in model.py and prior.py."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .model import VQVAE, EmaVectorQuantizer, Reconstruction, log_probability
from .prior import GatedPixelCNN


class VectorQuantization(nn.Module):
    """Stage one: L = -log p(x|z_q(x)) + ||sg[z_e(x)] - e||^2 + beta ||z_e(x) - sg[e]||^2   (equation 3, where -log p lacks its sign).

    Terms, each a mean over an image's own elements: `reconstruction`, nats a dimension where the model has scales, else the squared error
    divided by `variance`; `codebook`, only where the codebook learns by gradient; `commitment`. q is one-hot and the prior uniform
    meanwhile, so that their KL divergence is log K a code, a constant.

    Args:
        model: a `VQVAE`; images in [-1, 1].
        beta: weight of the commitment.
        variance: of the pixels, for models without scales.

    Raises:
        ValueError: if `variance` is not above 0.
    """

    forward_methods = ("encode", "decode")

    def __init__(self, model: VQVAE, beta: float = 0.25, variance: float = 1.0):
        super().__init__()
        if variance <= 0:
            raise ValueError(f"variance is {variance}: it must be above 0")
        self.model, self.variance = model, variance
        self.weights = {"commitment": beta}

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the data's images are not those that the model is made for."""
        check_images(self.model, facts)

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logs: `perplexity` of the codes of a micro-batch (K if all are equally frequent), and how many are `used`."""
        x = batch["image"]
        out = self.model(x)
        reconstruction = nats(x, out) / x[0].numel() if self.model.scales else squared_error(x, out) / x[0].numel() / self.variance
        terms = {"reconstruction": reconstruction.sum(), "commitment": len(x) * F.mse_loss(out.z, out.e.detach())}
        if out.e.requires_grad:
            terms["codebook"] = len(x) * F.mse_loss(out.e, out.z.detach())
        frequencies = self.frequencies(out.codes)
        return terms, {"perplexity": perplexity(frequencies), "used": (frequencies > 0).sum().to(x.dtype)}

    def count(self, batch: dict[str, Tensor], turn: str) -> dict[str, int]:
        return {"perplexity": 1, "used": 1}  # of a micro-batch: they don't add up over items

    def after_step(self, step: int) -> None:
        """The running means of the codebook, once an iteration."""
        if isinstance(self.model.quantizer, EmaVectorQuantizer):
            self.model.quantizer.update()

    def frequencies(self, codes: Tensor) -> Tensor:  # -> (K,), counts
        codes = codes.flatten()  # bincount would wait for the greatest of them
        return codes.new_zeros(self.model.codes).scatter_add(0, codes, torch.ones_like(codes))

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over items, and how often each of the K codes was chosen."""
        x = batch["image"]
        out = self.model(x)
        statistics = {"items": x.new_tensor(len(x)), "squared_error": squared_error(x, out).double().sum(),
                      "x": x.double().sum(), "x2": x.double().square().sum()}
        if self.model.scales:
            statistics["nats"] = nats(x, out).double().sum()
        return statistics | {f"code{k}": count for k, count in enumerate(self.frequencies(out.codes).double().unbind())}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """mse: of pixels between 0 and 1. unexplained: the share of their variance that the squared error is. bits_per_dim: a bound,
        (-log p(x|z_q) + N log K) / (dimensions ln 2), N the codes of an image. perplexity and used: of the K codes, over all items."""
        dimensions = statistics["items"] * math.prod(self.model.shape)
        mse = statistics["squared_error"] / dimensions
        variance = statistics["x2"] / dimensions - (statistics["x"] / dimensions) ** 2
        metrics = {"mse": mse / 4, "unexplained": mse / variance}
        if self.model.scales:
            rate = statistics["items"] * math.prod(self.model.grid) * math.log(self.model.codes)
            metrics["bits_per_dim"] = (statistics["nats"] + rate) / dimensions / math.log(2)
        frequencies = torch.tensor([statistics[f"code{k}"] for k in range(self.model.codes)])
        return metrics | {"perplexity": perplexity(frequencies).item(), "used": float((frequencies > 0).sum())}

    @torch.no_grad()
    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Figure 2: images, and below them their reconstructions."""
        x = batch["image"][:16]
        return {"reconstructions": mosaic(torch.stack([x, self.model.decode(self.model.encode(x))]))}


class CodePrior(nn.Module):
    """Stage two: a PixelCNN learns the codes of a finished first stage, which gives p(x) = sum_z p(x|z) p(z) a prior to draw from (3.3).

    loss = -mean over the codes of log p(z_i | z_1 ... z_(i-1)), in nats.

    Args:
        prior: a `GatedPixelCNN`; where it has classes, it is conditioned on the label.
        first_stage: a trained `VQVAE`; nothing here changes it.

    Raises:
        ValueError: if the prior is for another number of codes or another grid.
    """

    turns = ("prior",)
    forward_methods = ("encode", "decode", "generate")

    def __init__(self, prior: GatedPixelCNN, first_stage: VQVAE):
        super().__init__()
        if (prior.codes, prior.grid) != (first_stage.codes, first_stage.grid):
            raise ValueError(f"the prior is for {prior.codes} codes on a grid of {prior.grid}, but the first stage has {first_stage.codes} codes "
                             f"on {first_stage.grid}: set the prior's codes={first_stage.codes} and grid={list(first_stage.grid)}")
        self.prior, self.first_stage = prior, first_stage.requires_grad_(False)

    def train(self, mode: bool = True) -> "CodePrior":
        super().train(mode)
        self.first_stage.eval()  # always: its codebook stays as it is
        return self

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the data's images or classes are not those that the networks are made for."""
        check_images(self.first_stage, facts)
        classes = facts.get("num_classes", 0)
        if self.prior.classes not in (0, classes):
            raise ValueError(f"the prior is made for {self.prior.classes} classes and the data has {classes}: set the prior's classes={classes}")

    def code_nats(self, codes: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """-log p(z_i | z_1 ... z_(i-1)), (B, h, w G)."""
        logits = self.prior(codes, batch["label"] if self.prior.classes else None)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), codes, reduction="none")

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            codes = self.first_stage.encode(batch["image"])
        loss = self.code_nats(codes, batch).flatten(1).mean(1).sum()
        return {"loss": loss}, {"bits_per_code": loss.detach() / math.log(2)}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["image"]
        out = self.first_stage(x)
        statistics = {"items": x.new_tensor(len(x)), "code_nats": self.code_nats(out.codes, batch).double().sum()}
        return statistics | ({"nats": nats(x, out).double().sum()} if self.first_stage.scales else {})

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """bits_per_code (log2 K for a uniform prior), and with scales bits_per_dim, -(log p(x|z_q) + log p(z_q)) / (dimensions ln 2)."""
        items = statistics["items"]
        metrics = {"bits_per_code": statistics["code_nats"] / items / math.prod(self.first_stage.grid) / math.log(2)}
        if self.first_stage.scales:
            total = statistics["nats"] + statistics["code_nats"]
            metrics["bits_per_dim"] = total / items / math.prod(self.first_stage.shape) / math.log(2)
        return metrics

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, label: int | None = None, temperature: float = 1.0) -> Tensor:
        """n images in [0, 1]: codes by ancestral sampling, then E[x|z_q].

        Args:
            label: the class of all of them; without it each gets one at random, uniformly.
            temperature: divides the logits; above 0.

        Raises:
            ValueError: for a temperature not above 0, or a label that the prior doesn't know.
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if label is not None and not 0 <= label < self.prior.classes:
            raise ValueError(f"label {label} is not among the prior's classes, of which there are {self.prior.classes}")
        labels = torch.randint(max(self.prior.classes, 1), (n,), generator=generator, device=generator.device)
        labels = labels if label is None else torch.full_like(labels, label)
        pick = lambda logits: torch.multinomial((logits.float() / temperature).softmax(1), 1, generator=generator)[:, 0]
        codes = self.prior.generate(n, pick, labels if self.prior.classes else None)
        return (self.first_stage.decode(codes) + 1) / 2

    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Figure 3: samples, a row for each of the first ten classes."""
        if not self.prior.classes:
            return {}
        rows = [self.sample(10, generator, label) for label in range(min(10, self.prior.classes))]
        return {"classes": mosaic(2 * torch.stack(rows) - 1)}


def check_images(model: VQVAE, facts: dict[str, int]) -> None:
    for name, has in (("channels", model.shape[0]), ("image_size", model.shape[1])):
        if facts.get(name, has) != has:
            raise ValueError(f"the VQ-VAE is made for {name} {has} and the data has {facts[name]}: set its {name}={facts[name]}")


def nats(x: Tensor, out: Reconstruction) -> Tensor:  # -> -log p(x|z_q(x)), (B,)
    return -log_probability(x, out.location, out.log_scale).flatten(1).sum(1)


def squared_error(x: Tensor, out: Reconstruction) -> Tensor:  # -> (B,)
    return (x - out.pixels).square().flatten(1).sum(1)


def perplexity(frequencies: Tensor) -> Tensor:
    """e^entropy of counts (K,): from 1, one code does it all, to K."""
    shares = frequencies / frequencies.sum()
    return (-torch.xlogy(shares, shares).sum()).exp()


def mosaic(images: Tensor) -> Tensor:  # (rows, columns, C, H, W) in [-1, 1] -> (height, width, 3) uint8, small images enlarged
    picture = rearrange(images, "row column C H W -> (row H) (column W) C").add(1).mul(127.5).round().byte().cpu()
    scale = max(1, 32 // images.shape[-1])
    return picture.expand(-1, -1, 3).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
