"""The diffusion process of DDPM (Ho, Jain, Abbeel, 2020): all that is known about it without a network (sections 2 and 3.3).

x_0 images in [-1, 1], eps standard normal noise, abar_t the product of alpha = 1 - beta over the steps up to t.
Steps count from 0, as in the released code: step t here is the paper's t + 1, and s = -1 stands for the image itself (abar = 1).
"""

import math

import torch
from torch import Tensor, nn


def discretized_log_likelihood(x: Tensor, mean: Tensor, sigma: Tensor | float) -> Tensor:
    """log p(x) of eq. 13, in nats, elementwise: the mass that N(mean, sigma^2) has in the bin of width 2/255 around x.

    The bins of 0 and 255 (x = -1 and 1) reach to infinity, so the probabilities of the 256 values sum to one.
    """
    log_cdf = torch.special.log_ndtr
    left, right = (x - mean - 1 / 255) / sigma, (x - mean + 1 / 255) / sigma
    # A bin above the mean is mirrored below it: near 1 the difference of two cdfs would round to 0.
    low, high = torch.where(x > mean, -right, left), torch.where(x > mean, -left, right)
    inner = log_cdf(high) + torch.log1p(-(log_cdf(low) - log_cdf(high)).exp())
    return torch.where(x < -0.999, log_cdf(right), torch.where(x > 0.999, log_cdf(-left), inner))


def per_item(table: Tensor, t: Tensor) -> Tensor:  # (T,), (B,) -> (B, 1, 1, 1)
    return table[t][:, None, None, None]


class Process(nn.Module):
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), beta rising linearly from `beta_start` to `beta_end` (eq. 2, section 4).

    What depends on t alone stands in tables (T,), computed in float64, since differences such as 1 - abar cancel.

    Raises:
        ValueError: for fewer than two steps, or a schedule that does not rise within (0, 1).
    """

    def __init__(self, steps: int, beta_start: float, beta_end: float):
        super().__init__()
        if steps < 2 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"{steps} steps of beta from {beta_start} to {beta_end}: needs at least 2 steps and 0 < start <= end < 1")
        self.steps = steps
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.double)
        self.abar = [*(1 - beta).cumprod(0).tolist(), 1.0]  # abar[-1] is that of the image
        c_0, c_t, variance = torch.tensor([self.posterior(t, t - 1) for t in range(steps)], dtype=torch.double).unbind(1)
        # At t = 0 the image is all but known and q's variance is 0: the released code takes that of one step earlier instead.
        variance[0], beta[0] = variance[1], variance[1]
        abar = torch.tensor(self.abar[:-1], dtype=torch.double)
        tables = {"scale": abar.sqrt(), "noise_scale": (1 - abar).sqrt(), "c_0": c_0, "c_t": c_t,
                  "log_small": variance.log(), "log_large": beta.log()}
        for name, table in tables.items():
            self.register_buffer(name, table.to(torch.get_default_dtype()), persistent=False)

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Eq. 4: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        return per_item(self.scale, t) * x + per_item(self.noise_scale, t) * eps

    def x0_from_noise(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Eq. 15, eq. 4 solved for the image: x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
        return (x_t - per_item(self.noise_scale, t) * eps) / per_item(self.scale, t)

    def posterior_mean(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Eq. 7: the mean c_0 x_0 + c_t x_t of q(x_{t-1} | x_t, x_0)."""
        return per_item(self.c_0, t) * x + per_item(self.c_t, t) * x_t

    def x0_from_mean(self, x_t: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """Eq. 7 solved for the image."""
        return (mean - per_item(self.c_t, t) * x_t) / per_item(self.c_0, t)

    def posterior(self, t: int, s: int) -> tuple[float, float, float]:
        """(c_0, c_t, variance) of q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, variance I), eq. 6 and 7; in the paper s = t - 1."""
        alpha = self.abar[t] / self.abar[s]
        beta = 1 - alpha
        c_0 = self.abar[s] ** 0.5 * beta / (1 - self.abar[t])
        c_t = alpha**0.5 * (1 - self.abar[s]) / (1 - self.abar[t])
        return c_0, c_t, beta * (1 - self.abar[s]) / (1 - self.abar[t])

    def ddim(self, t: int, s: int, eta: float) -> tuple[float, float, float]:
        """(c_0, c_t, sigma) of DDIM's step (Song et al., 2020, arXiv:2010.02502, eq. 12 and 16): x_s = c_0 x0_hat + c_t x_t + sigma z.

        Its noise is that which belongs to x0_hat, clipped or not.
        """
        sigma = eta * self.posterior(t, s)[2] ** 0.5
        c_t = ((1 - self.abar[s] - sigma**2) / (1 - self.abar[t])) ** 0.5
        return self.abar[s] ** 0.5 - c_t * self.abar[t] ** 0.5, c_t, sigma

    def step_kl(self, x: Tensor, x0_hat: Tensor, t: Tensor, log_variance: Tensor) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || N(posterior_mean(x0_hat, x_t), exp(log_variance))) for t > 0, L_{t-1} of eq. 5, in nats, elementwise.

        With a fixed sigma_t it is a constant plus beta_t^2 / (2 sigma_t^2 alpha_t (1 - abar_t)) (eps - eps_theta)^2, eq. 8 and 12.
        """
        log_ratio = per_item(self.log_small, t) - log_variance
        distance = (per_item(self.c_0, t) * (x - x0_hat)).square() * (-log_variance).exp()
        return (torch.expm1(log_ratio) - log_ratio + distance) / 2

    def prior_kl(self, x: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, I)), L_T of eq. 5, which has no parameters; in nats, elementwise."""
        abar = self.abar[self.steps - 1]
        return (abar * x.square() - abar - math.log1p(-abar)) / 2
