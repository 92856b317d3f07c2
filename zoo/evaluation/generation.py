"""How good are generated images? Functions (objective, data, generator, **params) -> metrics, for any objective with `sample`.

Samples and real items are compared as pixels in [0, 1], in fp64 on the CPU, so that the device makes no difference.
M samples, N real items, D pixels, F features.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.base import Data, Split
from zoo.errors import ZooError

CHUNK = 500  # images sampled, and rows of a distance matrix, at a time
FITTED = 10_000  # items that the small classifier and the Gaussian are fitted to, at most


def parzen_log_likelihood(objective: nn.Module, data: Data, generator: torch.Generator, samples: int = 10_000,
                          validation: int = 1_000) -> dict[str, float]:
    """Log-likelihood of the test items in nats under a Gaussian window on each sample (Breuleux et al., 2011; GAN paper, table 1):

    log p(x) = log 1/M sum_j N(x; sample_j, sigma^2 I).

    sigma is the best of 10^linspace(-1, 0, 10) on the first `validation` validation items (where there are none, on the last training
    items), as in the GAN authors' script. The standard error is that of the mean over test items: it says nothing about the samples or
    the run, and with D pixels this estimate has high variance and ranks models poorly (Theis et al., 2016, arXiv:1511.01844).
    """
    draws = sampled(objective, samples, generator)
    tuning = pixels(data.valid)[:validation] if data.valid is not None else pixels(data.train)[-validation:]
    sigmas = 10 ** torch.linspace(-1, 0, 10, dtype=torch.double)
    sigma = sigmas[parzen(tuning, draws, sigmas).mean(0).argmax()]
    values = parzen(pixels(held_out(data)), draws, sigma[None])
    return {
        "parzen_log_likelihood": values.mean().item(),
        "parzen_standard_error": values.std(correction=0).item() / math.sqrt(len(values)),
        "parzen_sigma": sigma.item(),
    }


def parzen(items: Tensor, samples: Tensor, sigmas: Tensor) -> Tensor:
    """Log densities (N, number of sigmas) of items (N, D) under windows on samples (M, D)."""
    densities = []
    for distances in distance_rows(items, samples):
        exponents = [torch.logsumexp(-distances.square() / (2 * sigma**2), 1) for sigma in sigmas]
        densities.append(torch.stack(exponents, 1))
    norm = math.log(len(samples)) + items.shape[1] * (sigmas.log() + 0.5 * math.log(2 * math.pi))
    return torch.cat(densities) - norm


def sample_quality(
    objective: nn.Module, data: Data, generator: torch.Generator, samples: int = 2_000, sample: dict | None = None
) -> dict[str, float]:
    """Samples seen by a small classifier of the real items, and by their nearest neighbours.

    Features: the second hidden layer (64 ReLU units) of scikit-learn's MLPClassifier, D-64-64-classes, trained with its defaults and a
    fixed seed for 60 epochs on the pixels of the training items. These are not the Inception features of the literature, so neither
    `frechet` nor `inception` can be compared with published numbers, only with one another on the same data set.

    Args:
        samples: how many are drawn.
        sample: further arguments of `objective.sample`, such as {method: ddim, steps: 50}.

    Returns:
        classes: how many classes at least 1 % of the samples are taken for.
        frechet: Frechet distance of the features of samples and of all real (training and test) items.
        frechet_gaussian: the same for as many draws from a Gaussian with the mean and covariance of the training pixels, clipped to
            [0, 1]: a model that knows no more than two moments. Be well below it.
        frechet_test: the same for the test items: what a finite number of real items gets.
        inception: exp of the mean KL(p(y|x) || p(y)) under the classifier, from 1 to the number of classes; inception_test: of test items.
        nearest: mean Euclidean distance of samples to their nearest training item; nearest_test: of test items. Much smaller means copies.
    """
    train, labels = real_items(data.train)
    test, draws = pixels(held_out(data)), sampled(objective, samples, generator, **(sample or {}))
    fitted = torch.as_tensor(np.random.default_rng(0).permutation(len(train))[:FITTED])
    hidden, predict = classifier(train[fitted], labels[fitted])
    real = hidden(torch.cat([train, test]))
    predicted = predict(draws)
    shares = predicted.argmax(1).bincount() / samples
    return {
        "classes": float((shares >= 0.01).sum()),
        "frechet": frechet_distance(hidden(draws), real),
        "frechet_gaussian": frechet_distance(hidden(gaussian_draws(train[fitted], samples, generator)), real),
        "frechet_test": frechet_distance(hidden(test), real),
        "inception": inception_score(predicted),
        "inception_test": inception_score(predict(test)),
        "nearest": nearest(draws, train).mean().item(),
        "nearest_test": nearest(test, train).mean().item(),
    }


def classifier(images: Tensor, labels: Tensor, epochs: int = 60) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Trains the classifier of `sample_quality`; returns functions (N, D) -> features (N, 64) and (N, D) -> probabilities (N, classes)."""
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((64, 64), random_state=0)
    for _ in range(epochs):
        network.partial_fit(images.numpy(), labels.numpy(), classes=labels.unique().numpy())
    layers = [(torch.as_tensor(weight), torch.as_tensor(bias)) for weight, bias in zip(network.coefs_, network.intercepts_)]

    def hidden(x: Tensor) -> Tensor:
        for weight, bias in layers[:-1]:
            x = (x @ weight + bias).relu()
        return x

    return hidden, lambda x: torch.as_tensor(network.predict_proba(x.numpy()))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means and covariances of features (N, F) and (M, F)."""
    a, b = a.double(), b.double()
    return frechet(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The same of moments (F,) and (F, F), float64 (Dowson and Landau, 1982; Heusel et al., 2017, arXiv:1706.08500, equation 6).

    The trace of that root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric: real, not negative
    but for rounding, and without trouble where a covariance is singular.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    difference = mean_a - mean_b
    return (difference @ difference + cov_a.trace() + cov_b.trace() - 2 * overlap).item()


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean over items of KL(p(y|x) || p(y)); (N, classes), p(y) their mean (Salimans et al., 2016, arXiv:1606.03498)."""
    marginal = probabilities.mean(0)
    return (torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)).sum(1).mean().exp().item()


def gaussian_draws(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws (count, D) from the Gaussian with the mean and covariance of images (N, D), clipped to [0, 1].

    mean + X^T e / sqrt(N - 1), X the centred images and e ~ N(0, I_N), has just that covariance; no root of it is needed.
    """
    mean = images.mean(0)
    draws = []
    for size in chunks(count):
        noise = torch.randn(size, len(images), generator=generator, device=generator.device).cpu().double()
        draws.append(mean + noise @ (images - mean) / math.sqrt(len(images) - 1))
    return torch.cat(draws).clamp(0, 1)


def nearest(items: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance (N,) from each of the items (N, D) to the nearest of the others (M, D)."""
    return torch.cat([distances.amin(1) for distances in distance_rows(items, others)])


def distance_rows(items: Tensor, others: Tensor) -> Iterator[Tensor]:
    """The matrix of Euclidean distances (N, M), CHUNK rows at a time."""
    for rows in items.split(CHUNK):
        yield torch.cdist(rows, others)


def sampled(objective: nn.Module, count: int, generator: torch.Generator, **options: Any) -> Tensor:
    """Samples (count, D) of the objective, in fp64 on the CPU."""
    return torch.cat([images.cpu() for images in drawn(objective, count, generator, **options)]).flatten(1).double()


def drawn(objective: nn.Module, count: int, generator: torch.Generator, **options: Any) -> Iterator[Tensor]:
    """`count` samples of the objective, CHUNK images (B, C, H, W) at a time; options are those of its `sample`.

    Raises:
        ZooError: if there are values outside [0, 1], or none (NaN), or fewer images than were asked for.
    """
    for size in chunks(count):
        images = objective.sample(size, generator, **options)
        if len(images) != size:
            raise ZooError(f"{size} samples were asked for, but {len(images)} came")
        if not ((images >= 0) & (images <= 1)).all():
            raise ZooError(f"samples must have pixels in [0, 1], not from {images.min().item():.3g} to {images.max().item():.3g}")
        yield images


def chunks(count: int) -> list[int]:
    """`count` in parts of CHUNK, the last one perhaps smaller."""
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def pixels(split: Split) -> Tensor:
    return real_items(split)[0]


def real_items(split: Split) -> tuple[Tensor, Tensor]:
    """All items of a split: pixels (N, D) in [0, 1], without normalisation and augmentation, and labels (N,)."""
    images, labels = [], []
    for [address] in split.sweeps(CHUNK):
        batch = split.fetch(address)
        images.append(split.normaliser.inverse(batch["image"].cpu().double()).flatten(1))
        labels.append(batch["label"].cpu())
    return torch.cat(images), torch.cat(labels)


def held_out(data: Data) -> Split:
    """The test items, or the validation items of a set without a test split.

    Raises:
        ZooError: if there are neither.
    """
    split = data.valid if data.test is None else data.test
    if split is None:
        raise ZooError("samples are compared with held-out items, but this data set has neither a test nor a validation split")
    return split
