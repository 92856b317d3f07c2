"""Metrics of generated images, against closed forms, scikit-learn and scipy."""

import math

import numpy as np
import pytest
import torch

from zoo.data.base import Data
from zoo.data.image_sets import digits
from zoo.errors import ZooError
from zoo.evaluation import generation
from zoo.evaluation.generation import (
    distance_rows,
    frechet_distance,
    gaussian_draws,
    inception_score,
    nearest,
    parzen,
    parzen_log_likelihood,
    real_items,
    sample_quality,
)


class Replay:
    """An objective whose samples are these images, over and over."""

    def __init__(self, images):
        self.images, self.given = images, 0

    def sample(self, n, generator):
        index = torch.arange(self.given, self.given + n) % len(self.images)
        self.given += n
        return self.images[index]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_digits(**kwargs) -> Data:
    data = digits(seed=0, valid=100, **kwargs)
    data.train.images, data.train.labels = data.train.images[:400], data.train.labels[:400]
    return data


def density(samples: np.ndarray, sigma: float):
    """scikit-learn's; with one leaf it sums exactly, but with more the bounds of its tree cost nats where D is 64 and sigma 0.1."""
    from sklearn.neighbors import KernelDensity

    return KernelDensity(bandwidth=sigma, leaf_size=len(samples)).fit(samples)


def test_parzen_equals_kernel_density_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", 7)
    items, samples = torch.rand(20, 6, dtype=torch.double), torch.rand(30, 6, dtype=torch.double)
    sigmas = torch.tensor([0.1, 0.5], dtype=torch.double)
    ours = parzen(items, samples, sigmas)
    for column, sigma in zip(ours.T, sigmas.tolist()):
        theirs = density(samples.numpy(), sigma).score_samples(items.numpy())
        np.testing.assert_allclose(column.numpy(), theirs, rtol=1e-9)


def test_parzen_sigma_is_the_best_on_validation_items_and_the_error_is_that_of_the_mean():
    data = small_digits()
    images = data.train.images[:150].double() / 255
    metrics = parzen_log_likelihood(Replay(images), data, seeded(), samples=150)
    valid, test = [split.images.flatten(1).double().numpy() / 255 for split in (data.valid, data.test)]
    windows = [density(images.flatten(1).numpy(), sigma) for sigma in np.logspace(-1, 0, 10)]
    best = max(windows, key=lambda window: window.score(valid))
    scores = best.score_samples(test)
    assert metrics["parzen_sigma"] == pytest.approx(best.bandwidth)
    assert metrics["parzen_log_likelihood"] == pytest.approx(scores.mean(), rel=1e-6)
    assert metrics["parzen_standard_error"] == pytest.approx(scores.std() / math.sqrt(360), rel=1e-6)


def test_parzen_takes_the_last_training_items_where_none_are_held_out():
    data = small_digits()
    images = data.train.images[:100].double() / 255
    without = Data(train=data.train, valid=None, test=data.test, facts={})
    tail = Data(train=data.train, valid=type(data.train)(data.train.images[-50:], data.train.labels[-50:], data.train.normaliser),
                test=data.test, facts={})
    results = [parzen_log_likelihood(Replay(images), d, seeded(), samples=100, validation=50) for d in (without, tail)]
    assert results[0] == results[1]


def exact_moments(mean: torch.Tensor, cov: torch.Tensor, count: int) -> torch.Tensor:
    """Items whose sample mean and covariance are exactly these."""
    x = torch.randn(count, len(mean), dtype=torch.double, generator=seeded(5))
    x -= x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    values, vectors = torch.linalg.eigh(cov)
    return mean + white @ (vectors * values.clamp(min=0).sqrt()).T


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """Covariances that commute: |mu_1 - mu_2|^2 + sum (s_1 - s_2)^2, one of them singular."""
    mean_1, mean_2 = torch.tensor([1.0, 2, 3]).double(), torch.tensor([0.0, 2, 5]).double()
    std_1, std_2 = torch.tensor([1.0, 2, 0]).double(), torch.tensor([3.0, 0.5, 2]).double()
    a, b = exact_moments(mean_1, torch.diag(std_1**2), 50), exact_moments(mean_2, torch.diag(std_2**2), 80)
    assert frechet_distance(a, b) == pytest.approx(5 + 4 + 2.25 + 4, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_equals_the_formula_with_a_general_matrix_root():
    """The one of Heusel et al. (2017), and of torchmetrics."""
    from scipy.linalg import sqrtm

    a = torch.randn(60, 8, dtype=torch.double) @ torch.randn(8, 8, dtype=torch.double)
    b = torch.randn(90, 8, dtype=torch.double) @ torch.randn(8, 8, dtype=torch.double) + 1
    root = torch.as_tensor(sqrtm((a.T.cov() @ b.T.cov()).numpy()).real)
    theirs = ((a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()).item()
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(theirs, rel=1e-8)


def test_inception_score_is_the_number_of_classes_at_best_and_1_at_worst():
    assert inception_score(torch.eye(10).double().repeat(5, 1)) == pytest.approx(10)
    assert inception_score(torch.full((20, 10), 0.1).double()) == pytest.approx(1)
    assert inception_score(torch.eye(10).double()[:1].repeat(20, 1)) == pytest.approx(1)


def test_gaussian_draws_have_the_moments_of_the_images():
    mixing = torch.tensor([[1, 0.5, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.double)  # the last pixel is always the same
    images = 0.5 + 0.05 * torch.randn(300, 3, dtype=torch.double, generator=seeded(1)) @ mixing
    draws = gaussian_draws(images, 20_000, seeded())
    torch.testing.assert_close(draws.mean(0), images.mean(0), rtol=0, atol=2e-3)
    torch.testing.assert_close(draws.T.cov(), images.T.cov(), rtol=0, atol=2e-4)
    assert gaussian_draws(3 * images, 100, seeded()).max() == 1


def test_nearest_is_the_smallest_distance_in_any_chunking(monkeypatch):
    a, b = torch.rand(11, 5, dtype=torch.double), torch.rand(13, 5, dtype=torch.double)
    brute = (a[:, None] - b).square().sum(-1).sqrt()
    for chunk in (4, 500):
        monkeypatch.setattr(generation, "CHUNK", chunk)
        torch.testing.assert_close(torch.cat(list(distance_rows(a, b))), brute)
        torch.testing.assert_close(nearest(a, b), brute.amin(1))


@pytest.mark.parametrize("normalise", ["unit", "symmetric", "standard", "pixel_mean"])
def test_real_items_are_pixels_whatever_the_normalisation(normalise):
    data = small_digits(normalise=normalise, augment=["pad_crop"])
    images, labels = real_items(data.train)
    torch.testing.assert_close(images, data.train.images.flatten(1).double() / 255, rtol=0, atol=1e-6)
    assert images.min() > -1e-6 and labels.equal(data.train.labels)


def test_quality_tells_real_items_noise_and_a_single_item_apart():
    data = small_digits()
    images = data.test.images / 255  # in float32, as the data set gives them
    test = sample_quality(Replay(images), data, seeded(), samples=360)
    assert test["classes"] == 10
    for name in ("frechet", "inception", "nearest"):
        assert test[name] == pytest.approx(test[f"{name}_test"], rel=1e-6)
    assert test["frechet"] < 0.2 * test["frechet_gaussian"]
    one = sample_quality(Replay(data.train.images[:1].double() / 255), data, seeded(), samples=360)
    assert one["classes"] == 1 and one["inception"] == pytest.approx(1) and one["nearest"] == pytest.approx(0, abs=1e-6)
    assert one["frechet"] > one["frechet_gaussian"]
    assert sample_quality(Replay(images), data, seeded(), samples=360) == test


def test_samples_outside_the_unit_range_are_refused():
    data = small_digits()
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ZooError, match=r"samples must have pixels in \[0, 1\]"):
            sample_quality(Replay(torch.full((4, 1, 8, 8), value)), data, seeded(), samples=10)


def test_a_set_without_held_out_items_is_refused():
    data = Data(train=small_digits().train, valid=None, test=None, facts={})
    with pytest.raises(ZooError, match="neither a test nor a validation split"):
        sample_quality(Replay(torch.zeros(1, 1, 8, 8)), data, seeded(), samples=10)
