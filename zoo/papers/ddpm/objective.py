"""The diffusion process of DDPM (Ho, Jain, Abbeel, 2020): losses, the variational bound, sampling (sections 2 and 3, algorithms 1 and 2).

x_0 images in [-1, 1], eps standard normal noise, abar_t the product of alpha = 1 - beta over the steps up to t.
Steps count from 0, as in the released code: step t here is the paper's t + 1, and s = -1 stands for the image itself (abar = 1).
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def discretized_log_likelihood(x: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """log p(x) of eq. 13, in nats, elementwise: the mass that N(mean, sigma^2) has in the bin of width 2/255 around x.

    The bins of 0 and 255 (x = -1 and 1) reach to infinity, so the probabilities of the 256 values sum to one.
    """
    log_cdf = torch.special.log_ndtr
    left, right = (x - mean - 1 / 255) / sigma, (x - mean + 1 / 255) / sigma
    # A bin above the mean is mirrored below it: near 1 the difference of two cdfs would round to 0.
    low, high = torch.where(x > mean, -right, left), torch.where(x > mean, -left, right)
    inner = log_cdf(high) + torch.log1p(-(log_cdf(low) - log_cdf(high)).exp())
    return torch.where(x < -0.999, log_cdf(right), torch.where(x > 0.999, log_cdf(-left), inner))


def bits_per_dim(nats: Tensor) -> Tensor:  # (B, C, H, W) -> (B,)
    return nats.flatten(1).mean(1) / math.log(2)


def per_item(table: Tensor, t: Tensor) -> Tensor:  # (T,), (B,) -> (B, 1, 1, 1)
    return table[t][:, None, None, None]


class Diffusion(nn.Module):
    """L_simple (eq. 14) or the variational bound (eq. 5) of a network that predicts the noise, and two samplers.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)                                                eq. 4
    p(x_{t-1} | x_t) = N(mu_t, sigma_t^2 I), mu_t the mean of q(x_{t-1} | x_t, x_0 = x0_hat)          eq. 1, 7

    Args:
        model: `model(x_t, t) -> eps_theta`, with the attributes `channels` and `image_size`.
        loss: "simple", the mean over dimensions of (eps - eps_theta)^2, or "bound", the term L_t in bits a dimension.
        variance: sigma_t^2: "fixed_large" is beta_t, "fixed_small" the variance of q(x_{t-1} | x_t, x_0) (section 3.2).
        clip: whether x0_hat is clipped to [-1, 1] in sampling and evaluation, as in the released code; in training it never is.

    Raises:
        ValueError: for an unknown loss or variance, or a schedule that does not rise within (0, 1).
    """

    def __init__(self, model: nn.Module, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
                 loss: Literal["simple", "bound"] = "simple", variance: Literal["fixed_large", "fixed_small"] = "fixed_large",
                 clip: bool = True):
        super().__init__()
        if loss not in ("simple", "bound"):
            raise ValueError(f"loss {loss!r} is neither 'simple' nor 'bound'")
        if variance not in ("fixed_large", "fixed_small"):
            raise ValueError(f"variance {variance!r} is neither 'fixed_large' nor 'fixed_small'")
        if steps < 2 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"{steps} steps of beta from {beta_start} to {beta_end}: needs at least 2 steps and 0 < start <= end < 1")
        self.model = model
        self.steps, self.loss, self.variance, self.clip = steps, loss, variance, clip
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.double)
        self.abar = [*(1 - beta).cumprod(0).tolist(), 1.0]  # abar[-1] is that of the image
        for name, table in self.tables().items():
            self.register_buffer(name, table.to(torch.get_default_dtype()), persistent=False)

    def shape(self) -> tuple[int, int, int]:
        return self.model.channels, self.model.image_size, self.model.image_size

    # The process

    def posterior(self, t: int, s: int) -> tuple[float, float, float]:
        """(c_0, c_t, variance) of q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, variance I), eq. 6 and 7; in the paper s = t - 1."""
        alpha = self.abar[t] / self.abar[s]
        beta = 1 - alpha
        c_0 = self.abar[s] ** 0.5 * beta / (1 - self.abar[t])
        c_t = alpha**0.5 * (1 - self.abar[s]) / (1 - self.abar[t])
        return c_0, c_t, beta * (1 - self.abar[s]) / (1 - self.abar[t])

    def ancestral(self, t: int, s: int) -> tuple[float, float, float]:
        """(c_0, c_t, sigma) of p(x_s | x_t): x_s = c_0 x0_hat + c_t x_t + sigma z, with a variance of section 3.2."""
        c_0, c_t, variance = self.posterior(t, s)
        if self.variance == "fixed_large":
            variance = 1 - self.abar[t] / self.abar[s]
        return c_0, c_t, variance**0.5

    def ddim(self, t: int, s: int, eta: float) -> tuple[float, float, float]:
        """The same for DDIM (Song et al., 2020, arXiv:2010.02502, eq. 12 and 16), with the eps that belongs to the clipped x0_hat."""
        sigma = eta * self.posterior(t, s)[2] ** 0.5
        c_t = ((1 - self.abar[s] - sigma**2) / (1 - self.abar[t])) ** 0.5
        return self.abar[s] ** 0.5 - c_t * self.abar[t] ** 0.5, c_t, sigma

    def tables(self) -> dict[str, Tensor]:
        """What depends on t alone, in float64, since 1 - abar and the KL of nearly equal variances cancel.

        For t > 0, KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = kl_constant_t + kl_weight_t (x_0 - x0_hat)^2, in nats a dimension.
        """
        q = torch.tensor([self.posterior(t, t - 1) for t in range(1, self.steps)], dtype=torch.double)
        p = torch.tensor([self.ancestral(t, t - 1) for t in range(1, self.steps)], dtype=torch.double)
        p_variance = p[:, 2].square()
        ratio = q[:, 2] / p_variance
        constant, weight = (ratio - 1 - ratio.log()) / 2, q[:, 0].square() / p_variance / 2
        abar = torch.tensor(self.abar[:-1], dtype=torch.double)
        return {"scale": abar.sqrt(), "noise_scale": (1 - abar).sqrt(),
                "kl_constant": F.pad(constant, (1, 0)), "kl_weight": F.pad(weight, (1, 0))}

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Eq. 4: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        return per_item(self.scale, t) * x + per_item(self.noise_scale, t) * eps

    def predict_x0(self, x_t: Tensor, t: Tensor, eps: Tensor, clip: bool) -> Tensor:
        """Eq. 15, eq. 4 solved for the image: x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
        x0_hat = (x_t - per_item(self.noise_scale, t) * eps) / per_item(self.scale, t)
        return x0_hat.clamp(-1, 1) if clip else x0_hat

    # The bound, in bits a dimension

    def prior_term(self, x: Tensor) -> Tensor:
        """L_T of eq. 5, KL(q(x_T | x_0) || N(0, I)): has no parameters; (B,)."""
        abar = self.abar[self.steps - 1]
        return bits_per_dim((abar * x.square() - abar - math.log1p(-abar)) / 2)

    def bound_term(self, x: Tensor, t: Tensor, x0_hat: Tensor) -> Tensor:
        """L_t of eq. 5: for t > 0 a KL, for t = 0 the decoder of eq. 13; (B,).

        The KL is a constant plus beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)) (eps - eps_theta)^2, eq. 12, written for x_0.
        """
        kl = per_item(self.kl_constant, t) + per_item(self.kl_weight, t) * (x - x0_hat).square()
        last = (t == 0)[:, None, None, None]
        # At t = 0 the mean is x0_hat; sigma is the released code's: that of one step earlier, where q's is not 0.
        # Where t > 0 the decoder's value is not used, but a far-off mean would make its gradient infinite.
        decoder = -discretized_log_likelihood(x, torch.where(last, x0_hat, x), self.posterior(1, 0)[2] ** 0.5)
        return bits_per_dim(torch.where(last, decoder, kl))

    def bound_at(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One sample of L_t for the images x; (B,)."""
        x_t = self.diffuse(x, t, noise)
        return self.bound_term(x, t, self.predict_x0(x_t, t, self.model(x_t, t), self.clip))

    # Training (algorithm 1) and evaluation

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Algorithm 1, lines 3 and 4: a step and the noise for each item."""
        return {"t": torch.randint(self.steps, (batch_size,), generator=generator, device=generator.device),
                "noise": torch.randn((batch_size, *self.shape()), generator=generator, device=generator.device)}

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eq. 14, (eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t))^2, or one term of eq. 5; the other one is logged."""
        x, t, noise = batch["image"], batch["t"], batch["noise"]
        x_t = self.diffuse(x, t, noise)
        eps = self.model(x_t, t)
        simple = (noise - eps).square().flatten(1).mean(1)
        bound = self.bound_term(x, t, self.predict_x0(x_t, t, eps, clip=False))
        terms = {"loss": (simple if self.loss == "simple" else bound).sum()}
        logs = {"simple": simple.sum(), "bits_per_dim_estimate": (self.steps * bound + self.prior_term(x)).sum()}
        return terms, {name: value.detach() for name, value in logs.items()}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over items of L_simple and of L_0 + T [t > 0] L_t + L_T, which is the bound on average over the t of draw()."""
        x, t, noise = batch["image"], batch["t"], batch["noise"]
        x_t = self.diffuse(x, t, noise)
        eps = self.model(x_t, t)
        simple = (noise - eps).square().flatten(1).mean(1)
        term = self.bound_term(x, t, self.predict_x0(x_t, t, eps, self.clip))
        bound = self.bound_at(x, torch.zeros_like(t), noise) + self.steps * torch.where(t > 0, term, 0) + self.prior_term(x)
        return {"simple": simple.double().sum(), "bound": bound.double().sum(), "items": torch.tensor(len(t), dtype=torch.double)}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        return {"simple": statistics["simple"] / statistics["items"], "bits_per_dim_estimate": statistics["bound"] / statistics["items"]}

    # Sampling (algorithm 2)

    @torch.no_grad()
    def trajectory(self, n: int, generator: torch.Generator, method: str = "ancestral", steps: int | None = None,
                   eta: float = 0.0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Algorithm 2 as (t, x_t, x0_hat), t falling from T - 1 to 0. The last x0_hat is the sample: there c_0 = 1, c_t = 0 and z = 0.

        Args:
            method, steps, eta: see `sample`.
        """
        steps = self.steps if steps is None else steps
        if method not in ("ancestral", "ddim"):
            raise ValueError(f"method {method!r} is neither 'ancestral' nor 'ddim'")
        if not 1 <= steps <= self.steps or not 0 <= eta <= 1:
            raise ValueError(f"steps {steps} must lie in 1 .. {self.steps}, eta {eta} in 0 .. 1")

        def normal() -> Tensor:
            return torch.randn((n, *self.shape()), generator=generator, device=generator.device).to(self.scale)

        times = [self.steps * i // steps - 1 for i in range(steps, 0, -1)]
        x_t = normal()
        for t, s in zip(times, [*times[1:], -1]):
            items_t = torch.full((n,), t, device=x_t.device)
            x0_hat = self.predict_x0(x_t, items_t, self.model(x_t, items_t), self.clip)
            yield t, x_t, x0_hat
            if s >= 0:
                c_0, c_t, sigma = self.ancestral(t, s) if method == "ancestral" else self.ddim(t, s, eta)
                x_t = c_0 * x0_hat + c_t * x_t + sigma * normal()

    def sample(self, n: int, generator: torch.Generator, method: Literal["ancestral", "ddim"] = "ancestral", steps: int | None = None,
               eta: float = 0.0, batch_size: int = 256) -> Tensor:
        """n images in [0, 1], made `batch_size` at a time and without dropout.

        Args:
            steps: how many of the T steps are taken, evenly spaced, by either method; all of them by default.
            eta: of "ddim" only: 0 is deterministic given the first noise, 1 is "ancestral" with variance "fixed_small".

        Raises:
            ValueError: for an unknown method, or steps or eta out of range.
        """
        training = self.training
        self.eval()
        images = []
        for start in range(0, n, batch_size):
            ((_, _, x_0),) = deque(self.trajectory(min(batch_size, n - start), generator, method, steps, eta), maxlen=1)
            images.append(x_0)
        self.train(training)
        return ((torch.cat(images) + 1) / 2).clamp(0, 1)

    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Progressive generation (figure 6): for each of four samples a row of x_t and one of x0_hat; t falls from left to right."""
        shown = {round(i * (self.steps - 1) / 11) for i in range(12)}
        columns = [torch.stack([x_t, x0_hat], 1) for t, x_t, x0_hat in self.trajectory(4, generator) if t in shown]
        tiles = F.pad(torch.stack(columns), (0, 1, 0, 1))
        strip = rearrange(tiles, "column item row C H W -> (item row H) (column W) C")
        strip = ((strip + 1) * 127.5).round().clamp(0, 255).byte().cpu().expand(-1, -1, 3)
        scale = max(1, 32 // self.model.image_size)
        return {"progressive": strip.repeat_interleave(scale, 0).repeat_interleave(scale, 1)}
