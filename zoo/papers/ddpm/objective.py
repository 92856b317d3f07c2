"""DDPM (Ho, Jain, Abbeel, 2020): losses, the variational bound, sampling (sections 2 to 4, algorithms 1 and 2).

x_0 images in [-1, 1], x_t as diffused by `Process`, x0_hat the image as the network sees it in x_t; t counts from 0, the paper's t - 1.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import figures
from .process import Process, discretized_log_likelihood, per_item


def bits_per_dim(nats: Tensor) -> Tensor:  # (B, C, H, W) -> (B,)
    return nats.flatten(1).mean(1) / math.log(2)


class Diffusion(Process):
    """A process with a network that undoes it: the reverse process p(x_{t-1} | x_t) = N(mu_theta(x_t, t), Sigma_theta(x_t, t)) of eq. 1,
    how it is trained, judged and sampled.

    mu_theta is the mean of q(x_{t-1} | x_t, x_0 = x0_hat), eq. 7, whatever the network predicts. The rows of table 2 are combinations of
    `prediction`, `variance` and `loss`; the defaults are the last row.

    Args:
        model: `model(x_t, t) -> (B, out_channels, H, W)`, with the attributes `channels`, `out_channels`, `image_size` and `num_classes`.
            Where that isn't None, `model(x_t, t, label)`; the label `num_classes` is the null class.
        prediction: "epsilon", the noise (eq. 11); "mean", mu~ of eq. 7; or "x0", the image (section 3.2).
        variance: Sigma: "fixed_large" is beta_t I, "fixed_small" has the variance of q(x_{t-1} | x_t, x_0) (section 3.2); "learned" is
            diagonal, its logarithm the second half of the network's output channels.
        loss: "simple", the mean over dimensions of the squared error of the prediction (eq. 14), or "bound", L_t of eq. 5 in bits a dimension.
        clip: whether x0_hat is clipped to [-1, 1] in sampling and evaluation, as in the released code (not with "mean"); in training never.
        p_uncond: the share of training items whose class is replaced by the null class (classifier-free guidance, algorithm 1).

    Raises:
        ValueError: for an unknown choice, a network whose outputs don't fit it, or a schedule that does not rise within (0, 1).
    """

    def __init__(self, model: nn.Module, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
                 loss: Literal["simple", "bound"] = "simple", variance: Literal["fixed_large", "fixed_small", "learned"] = "fixed_large",
                 clip: bool = True, prediction: Literal["epsilon", "mean", "x0"] = "epsilon", p_uncond: float = 0.1):
        super().__init__(steps, beta_start, beta_end)
        _one_of("loss", loss, ("simple", "bound"))
        _one_of("variance", variance, ("fixed_large", "fixed_small", "learned"))
        _one_of("prediction", prediction, ("epsilon", "mean", "x0"))
        if variance == "learned" and loss == "simple":
            raise ValueError("loss 'simple' says nothing about a learned variance: take loss=bound")
        outputs = model.channels * (2 if variance == "learned" else 1)
        if model.out_channels != outputs:
            raise ValueError(f"variance {variance!r} needs {outputs} output channels, the network has {model.out_channels}: "
                             f"set model.out_channels={outputs}")
        if not 0 <= p_uncond <= 1:
            raise ValueError(f"p_uncond {p_uncond} must lie in 0 .. 1")
        self.model = model
        self.loss, self.variance, self.clip, self.prediction, self.p_uncond = loss, variance, clip, prediction, p_uncond

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the data's images or classes are not those that the network is made for."""
        for name in ("channels", "image_size", "num_classes"):
            has = getattr(self.model, name)
            if has is not None and facts.get(name, has) != has:
                raise ValueError(f"the network is made for {name} {has} and the data has {facts[name]}: set model.{name}={facts[name]}")

    # What the network says

    def network(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, guidance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Its prediction (B, C, H, W), and log Sigma (B, C, H, W) or, where that is fixed, (B, 1, 1, 1).

        With guidance w: (1 + w) predicted(x_t, t, c) - w predicted(x_t, t) (Ho, Salimans, 2022, arXiv:2207.12598, eq. 6). All three kinds of
        prediction are linear in one another given x_t, so that this is their equation for the noise.
        """
        if self.model.num_classes is None:
            output = self.model(x_t, t)
        elif not guidance:
            output = self.model(x_t, t, label)
        else:
            both = torch.cat([label, torch.full_like(label, self.model.num_classes)])
            output, unconditional = self.model(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        output = output.to(x_t.dtype)  # lower under autocast
        predicted, log_variance = output.split(self.model.channels, 1) if self.variance == "learned" else (output, self.fixed_log_variance(t))
        if guidance:
            predicted = (1 + guidance) * predicted - guidance * unconditional[:, : self.model.channels]
        return predicted, log_variance

    def fixed_log_variance(self, t: Tensor) -> Tensor:  # (B,) -> (B, 1, 1, 1)
        return per_item(self.log_large if self.variance == "fixed_large" else self.log_small, t)

    def target(self, x: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should have predicted."""
        if self.prediction == "epsilon":
            return noise
        return self.posterior_mean(x, x_t, t) if self.prediction == "mean" else x

    def predict_x0(self, predicted: Tensor, x_t: Tensor, t: Tensor, clip: bool) -> Tensor:
        """x0_hat, the image that belongs to a prediction."""
        if self.prediction == "epsilon":
            x0_hat = self.x0_from_noise(x_t, t, predicted)
        else:
            x0_hat = self.x0_from_mean(x_t, t, predicted) if self.prediction == "mean" else predicted
        return x0_hat.clamp(-1, 1) if clip else x0_hat

    def denoise(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, guidance: float = 0.0) -> tuple[Tensor, Tensor]:
        """(x0_hat, log Sigma) for sampling and for the bound."""
        predicted, log_variance = self.network(x_t, t, label, guidance)
        return self.predict_x0(predicted, x_t, t, self.clip), log_variance

    # The bound of eq. 5, in bits a dimension

    def prior_term(self, x: Tensor) -> Tensor:  # -> (B,)
        """L_T."""
        return bits_per_dim(self.prior_kl(x))

    def bound_term(self, x: Tensor, t: Tensor, x0_hat: Tensor, log_variance: Tensor) -> Tensor:  # -> (B,)
        """The paper's L_t: for t > 0 a KL, for t = 0 the decoder of eq. 13, whose mean is x0_hat."""
        last = (t == 0)[:, None, None, None]
        # Where t > 0 the decoder's value is not used, but a far-off mean or variance would make its gradient infinite.
        decoder = -discretized_log_likelihood(x, torch.where(last, x0_hat, x), torch.where(last, log_variance / 2, 0).exp())
        return bits_per_dim(torch.where(last, decoder, self.step_kl(x, x0_hat, t, log_variance)))

    @torch.no_grad()
    def bound_terms(self, x: Tensor, generator: torch.Generator, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All terms, each with one draw of the noise an image: L_0 ... L_{T-1}, L_T (T + 1, B), and the squared errors of x0_hat (T, B)."""
        terms, errors = [], []
        for t in range(self.steps):
            items_t = torch.full((len(x),), t, device=x.device)
            x_t = self.diffuse(x, items_t, torch.randn(x.shape, generator=generator, device=generator.device).to(x))
            x0_hat, log_variance = self.denoise(x_t, items_t, label)
            terms.append(self.bound_term(x, items_t, x0_hat, log_variance))
            errors.append((x - x0_hat).square().flatten(1).mean(1))
        return torch.stack([*terms, self.prior_term(x)]), torch.stack(errors)

    # Training (algorithm 1) and evaluation

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Algorithm 1, lines 3 and 4: a step and the noise for each item; and whether it loses its class."""
        noise = {"t": torch.randint(self.steps, (batch_size,), generator=generator, device=generator.device),
                 "noise": torch.randn((batch_size, *self.shape()), generator=generator, device=generator.device)}
        if self.model.num_classes is not None:
            noise["drop"] = torch.rand(batch_size, generator=generator, device=generator.device) < self.p_uncond
        return noise

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eq. 14, (eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t))^2, or one term of eq. 5; the other one is logged."""
        x, t, noise, label = batch["image"], batch["t"], batch["noise"], batch.get("label")
        if self.model.num_classes is not None:
            label = torch.where(batch["drop"], self.model.num_classes, label)
        x_t = self.diffuse(x, t, noise)
        predicted, log_variance = self.network(x_t, t, label)
        simple = (self.target(x, x_t, t, noise) - predicted).square().flatten(1).mean(1)
        bound = self.bound_term(x, t, self.predict_x0(predicted, x_t, t, clip=False), log_variance)
        terms = {"loss": (simple if self.loss == "simple" else bound).sum()}
        logs = {"simple": simple.sum(), "bits_per_dim_estimate": (self.steps * bound + self.prior_term(x)).sum()}
        return terms, {name: value.detach() for name, value in logs.items()}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over items of L_simple and of L_0 + T [t > 0] L_t + L_T, which is the bound on average over the t of draw()."""
        x, t, noise, label = batch["image"], batch["t"], batch["noise"], batch.get("label")
        x_t = self.diffuse(x, t, noise)
        predicted, log_variance = self.network(x_t, t, label)
        simple = (self.target(x, x_t, t, noise) - predicted).square().flatten(1).mean(1)
        term = self.bound_term(x, t, self.predict_x0(predicted, x_t, t, self.clip), log_variance)
        zero = torch.zeros_like(t)
        first = self.bound_term(x, zero, *self.denoise(self.diffuse(x, zero, noise), zero, label))
        bound = first + self.steps * torch.where(t > 0, term, 0) + self.prior_term(x)
        return {"simple": simple.double().sum(), "bound": bound.double().sum(), "items": torch.tensor(len(t), dtype=torch.double)}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        return {"simple": statistics["simple"] / statistics["items"], "bits_per_dim_estimate": statistics["bound"] / statistics["items"]}

    # Sampling (algorithm 2)

    def shape(self) -> tuple[int, int, int]:
        return self.model.channels, self.model.image_size, self.model.image_size

    def normal(self, n: int, generator: torch.Generator) -> Tensor:  # -> (n, C, H, W)
        return torch.randn((n, *self.shape()), generator=generator, device=generator.device).to(self.scale)

    def ancestral(self, t: int, s: int, log_variance: Tensor) -> tuple[float, float, float | Tensor]:
        """(c_0, c_t, sigma) of p(x_s | x_t): x_s = c_0 x0_hat + c_t x_t + sigma z. `log_variance` counts where it is learned."""
        c_0, c_t, variance = self.posterior(t, s)
        if self.variance == "learned":
            return c_0, c_t, (log_variance / 2).exp()
        if self.variance == "fixed_large":
            variance = 1 - self.abar[t] / self.abar[s]
        return c_0, c_t, variance**0.5

    @torch.no_grad()
    def trajectory(self, x_t: Tensor, generator: torch.Generator, method: str = "ancestral", steps: int | None = None, eta: float = 0.0,
                   label: Tensor | None = None, guidance: float = 0.0, start: int | None = None,
                   known: tuple[Tensor, Tensor] | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Algorithm 2 as (t, x_t, x0_hat), t falling. The last x0_hat is the sample: there c_0 = 1, c_t = 0 and z = 0.

        Args:
            x_t: (B, C, H, W), noise, or images diffused up to step `start`, which is T - 1 by default.
            method, steps, eta, guidance: see `sample`; the steps are taken from those up to `start`.
            label: (B,), a class each; without them a network of classes takes the null class.
            known: images and a mask, both broadcastable to x_t: where the mask is true, x_t is always the diffused image.

        Raises:
            ValueError: see `sample`.
        """
        start = self.steps - 1 if start is None else start
        self._check_start(start)
        steps = start + 1 if steps is None else steps
        self._check_sampling(method, steps, eta, label, guidance, start)
        times = [(start + 1) * i // steps - 1 for i in range(steps, 0, -1)]
        for t, s in zip(times, [*times[1:], -1]):
            items_t = torch.full((len(x_t),), t, device=x_t.device)
            if known is not None:
                image, mask = known
                x_t = torch.where(mask, self.diffuse(image, items_t, self.normal(len(x_t), generator)), x_t)
            x0_hat, log_variance = self.denoise(x_t, items_t, label, guidance)
            yield t, x_t, x0_hat
            if s >= 0:
                c_0, c_t, sigma = self.ddim(t, s, eta) if method == "ddim" else self.ancestral(t, s, log_variance)
                x_t = c_0 * x0_hat + c_t * x_t + sigma * self.normal(len(x_t), generator)

    def _check_sampling(self, method: str, steps: int, eta: float, label: Tensor | None, guidance: float, start: int) -> None:
        _one_of("method", method, ("ancestral", "ddim"))
        if not 1 <= steps <= start + 1 or not 0 <= eta <= 1:
            raise ValueError(f"steps {steps} must lie in 1 .. {start + 1}, eta {eta} in 0 .. 1")
        if self.variance == "learned" and method == "ancestral" and steps <= start:
            raise ValueError(f"a learned variance is that of single steps: take all {start + 1} of them, or method=ddim")
        if guidance and (label is None or self.model.num_classes is None or not self.p_uncond):
            raise ValueError("guidance needs a network of classes that also learned to do without: model.num_classes, objective.p_uncond above 0")
        if not guidance >= -1:
            raise ValueError(f"guidance {guidance} must be at least -1, which leaves the class out")

    def _check_start(self, start: int) -> None:
        if not 0 <= start < self.steps:
            raise ValueError(f"step {start} to start from must lie in 0 .. {self.steps - 1}")

    def decode(self, x_t: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
        """The end of a trajectory with these options: (B, C, H, W), without dropout."""
        training = self.training
        self.eval()
        try:
            ((_, _, x_0),) = deque(self.trajectory(x_t, generator, **options), maxlen=1)
        finally:
            self.train(training)
        return x_0

    def sample(self, n: int, generator: torch.Generator, method: Literal["ancestral", "ddim"] = "ancestral", steps: int | None = None,
               eta: float = 0.0, label: int | None = None, guidance: float = 0.0, batch_size: int = 256) -> Tensor:
        """n images in [0, 1], made `batch_size` at a time and without dropout.

        Args:
            steps: how many of the T steps are taken, evenly spaced, by either method; all of them by default.
            eta: of "ddim" only: 0 is deterministic given the first noise, 1 is "ancestral" with variance "fixed_small".
            label: the class of all of them; by default the classes take turns, where the network knows classes.
            guidance: w of classifier-free guidance: 0 is the plain model; more makes samples more typical of their class and less varied, at
                twice the cost; -1 leaves the class out.

        Raises:
            ValueError: for an unknown method or class, an option out of range, or guidance of a network that cannot be guided.
        """
        classes, images = self.model.num_classes, []
        if label is not None and not 0 <= label < (classes or 0):
            raise ValueError(f"label {label} is not among the {classes or 0} classes of this network")
        for first in range(0, n, batch_size):
            noise = self.normal(min(batch_size, n - first), generator)
            labels = None
            if classes is not None:
                turns = torch.arange(first, first + len(noise), device=noise.device) % classes
                labels = turns if label is None else torch.full_like(turns, label)
            images.append(self.decode(noise, generator, method=method, steps=steps, eta=eta, label=labels, guidance=guidance))
        return ((torch.cat(images) + 1) / 2).clamp(0, 1)

    def inpaint(self, x: Tensor, known: Tensor, generator: torch.Generator, **options: Any) -> Tensor:
        """Images x (B, C, H, W) in [-1, 1], as they are where the mask `known` is true and sampled elsewhere; in [-1, 1].

        Not in the paper: at each step the known region is replaced by the diffused image (Lugmayr et al., 2022, arXiv:2201.09865, eq. 8,
        without their resampling), so that the network fills in what goes with it.

        Args:
            known: bool, broadcastable to x.
            options: method, steps, eta, label and guidance of `trajectory`.
        """
        return torch.where(known, x, self.decode(self.normal(len(x), generator), generator, known=(x, known), **options))

    def interpolate(self, x: Tensor, y: Tensor, weights: Tensor, start: int, generator: torch.Generator, **options: Any) -> Tensor:
        """Figure 8: (B, C, H, W) twice, (K,) -> (B, K, C, H, W), all in [-1, 1]; x where a weight is 0, y where it is 1, if `start` is small.

        Both are diffused to step `start`, (1 - weight) x_t + weight y_t is decoded; the noise of an x_t is the same for all weights.

        Args:
            options: method, steps, eta, label and guidance of `trajectory`.
        """
        self._check_start(start)
        x_t, y_t = (self.diffuse(z, torch.full((len(z),), start, device=z.device), self.normal(len(z), generator)) for z in (x, y))
        mixed = torch.lerp(x_t[:, None], y_t[:, None], weights.to(x)[:, None, None, None])
        return self.decode(mixed.flatten(0, 1), generator, start=start, **options).unflatten(0, mixed.shape[:2])

    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """name -> (H, W, 3) uint8: figures 5, 6 and 8, progressive decoding, inpainting and, with classes, guidance; see `figures`."""
        return figures.pictures(self, batch["image"], batch.get("label"), generator)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is none of {', '.join(choices)}")
