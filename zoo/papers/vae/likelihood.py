"""Estimates of log p(x), the marginal likelihood that the bound bounds; letters as in model.py, K values of z for each item.

Both are functions (objective, data, generator, **params) -> metrics for the `evaluation` section of a configuration.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from .model import gaussian_log_density
from .objective import VariationalBound


def importance_sampled(objective: VariationalBound, data: Any, generator: torch.Generator, samples: int = 500, items: int | None = None,
                       batch_size: int = 100, chunk: int = 50) -> dict[str, float]:
    """log p(x) ~ log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x) (Rezende et al., 2014, arXiv:1401.4082, appendix E).

    Too low on average, the less so the larger K; K = 1 is the bound. Works for any width of z.

    Args:
        samples: K.
        items: how many held-out items, the first of the split; all by default.
        chunk: values of z at a time, for memory.
    """
    values = []
    for x in held_out(objective, data, generator, items, batch_size):
        mean, log_variance = (a[:, None] for a in objective.model.encode(x))

        def log_weights(k: int, x: Tensor = x, mean: Tensor = mean, log_variance: Tensor = log_variance) -> Tensor:  # (B, k)
            z = mean + (0.5 * log_variance).exp() * normal((len(x), k, objective.model.latent), mean, generator)
            return log_joint(objective, x, z) - gaussian_log_density(z, mean, log_variance)

        weights = torch.cat([log_weights(min(chunk, samples - done)).double() for done in range(0, samples, chunk)], 1)
        values.append(weights.logsumexp(1) - math.log(samples))
    return {"marginal_log_likelihood": torch.cat(values).mean().item()}


def posterior_sampled(objective: VariationalBound, data: Any, generator: torch.Generator, samples: int = 50, items: int = 1000,
                      warmup: int = 100, leapfrog: int = 4, batch_size: int = 100) -> dict[str, float]:
    """The paper's estimate, of figure 3 (appendix D): 1 / p(x) ~ 1/K sum_k g(z_k) / (p(z_k) p(x|z_k)), z_k ~ p(z|x).

    The z_k come from Hamiltonian Monte Carlo, K to fit the density g, a Gaussian here, and K more for the sum. As the mean of a reciprocal
    it is too high on average, and good for a z of less than five dimensions only, as the authors say.

    Args:
        samples, items, leapfrog: 50 values for each of 1000 items, 4 leapfrog steps each (appendix E).
        warmup: transitions before the first value, in which the step sizes are tuned.
    """
    values = []
    for x in held_out(objective, data, generator, items, batch_size):
        mean, log_variance = objective.model.encode(x)
        start = mean + (0.5 * log_variance).exp() * normal(mean.shape, mean, generator)
        target = lambda z, x=x: log_joint(objective, x, z[:, None])[:, 0]
        drawn = list(islice(hamiltonian(target, start, (0.5 * log_variance).exp(), generator, leapfrog, warmup), 2 * samples))
        fitted, fresh = torch.stack(drawn[:samples], 1).double(), torch.stack(drawn[samples:], 1)  # (B, K, Z) each
        ratios = fitted_gaussian(fitted, fresh.double()) - log_joint(objective, x, fresh).double()
        values.append(math.log(samples) - ratios.logsumexp(1))
    return {"posterior_sampled_log_likelihood": torch.cat(values).mean().item()}


def log_joint(objective: VariationalBound, x: Tensor, z: Tensor) -> Tensor:  # (B, C, H, W), (B, K, Z) -> log p(x|z) p(z), (B, K)
    return objective.model.log_likelihood(x, z) + gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z))


def fitted_gaussian(values: Tensor, z: Tensor) -> Tensor:
    """log g(z), (B, K), of the Gaussian with the mean and covariance of each item's `values`; (B, K, Z) both."""
    mean = values.mean(1, keepdim=True)
    covariance = (values - mean).mT @ (values - mean) / (values.shape[1] - 1)
    covariance = covariance + 1e-6 * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)  # a chain that stood still has none
    return torch.distributions.MultivariateNormal(mean, covariance[:, None]).log_prob(z)


def hamiltonian(log_density: Callable[[Tensor], Tensor], z: Tensor, scale: Tensor, generator: torch.Generator, leapfrog: int = 4,
                warmup: int = 100, wanted: float = 0.9) -> Iterator[Tensor]:
    """Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011), a chain for each item: (B, Z), for ever.

    The step sizes, one an item, are tuned in the first `warmup` transitions, whose values are not shown: every accepted proposal makes
    its own 3 % longer, every other so much shorter that it settles where the share `wanted` is accepted (appendix E: 90 %). Each
    transition takes it times U(0.5, 1): of one fixed length, a path may come back to where it began.

    Args:
        log_density: (B, Z) -> (B,), up to a constant.
        scale: (B, Z), about the deviations of the target; momenta have mass 1 / scale^2.
    """
    step = torch.full_like(z[:, :1], 0.3)

    def with_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = log_density(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    value, gradient = with_gradient(z)
    for transition in count():
        momentum = normal(z.shape, z, generator)  # in units of its deviation, 1 / scale
        jitter, threshold = torch.rand(2, len(z), 1, generator=generator, device=generator.device).to(z)
        h = step * (0.5 + 0.5 * jitter)
        start, place, proposed, slope = value - momentum.square().sum(1) / 2, z, value, gradient
        for _ in range(leapfrog):
            momentum = momentum + h / 2 * scale * slope
            place = place + h * scale * momentum
            proposed, slope = with_gradient(place)
            momentum = momentum + h / 2 * scale * slope
        end = proposed - momentum.square().sum(1) / 2
        accepted = threshold.log() < (end - start)[:, None]
        z, gradient = torch.where(accepted, place, z), torch.where(accepted, slope, gradient)
        value = torch.where(accepted[:, 0], proposed, value)
        if transition < warmup:
            step = step * torch.where(accepted, 1.03, 1.03 ** (-wanted / (1 - wanted)))
        else:
            yield z


def held_out(objective: VariationalBound, data: Any, generator: torch.Generator, items: int | None, batch_size: int) -> Iterator[Tensor]:
    """The test items (or, without any, the validation items) in batches, drawn or dequantised as in training: (B, C, H, W)."""
    split = data.valid if data.test is None else data.test
    left = len(split) if items is None else min(items, len(split))
    device = next(objective.parameters()).device
    pixels = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1)  # the same for every estimate of one run
    for [address] in split.sweeps(batch_size):
        if left <= 0:
            return
        image = split.fetch(address)["image"][:left].to(device)
        left -= len(image)
        yield objective.data({"image": image, **objective.draw(len(image), pixels)})


def normal(shape: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(like)
