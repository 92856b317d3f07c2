"""Diffusion models: the variational bound summed over all steps, and what guidance does to samples."""

import torch
from torch import Tensor, nn

from zoo.data.base import Data
from zoo.errors import ConfigError
from zoo.evaluation.generation import FITTED, classifier, drawn, frechet_distance, held_out, real_items


def bits_per_dim(objective: nn.Module, data: Data, generator: torch.Generator, items: int | None = None,
                 batch_size: int = 256) -> dict[str, float]:
    """DDPM's eq. 5 on held-out images, in bits a dimension: every one of the T terms, each with one draw of the noise for each image.

    Costs T forward passes an image, in fp32 whatever the precision of the run.

    Args:
        objective: has `bound_terms(x, generator, label)`: L_0 ... L_T (T + 1, B) in bits a dimension, squared errors of x0_hat (T, B).
        items: how many images, the first of the split; all of them by default.

    Returns:
        bits_per_dim: L_T + ... + L_0, an upper bound of the negative log-likelihood: the sum of the other two.
        rate: L_T + ... + L_1, what it takes to send x_1; distortion: L_0, what the image takes after that (section 4.3).
        rmse: the other measure of distortion there: root mean squared error of x0_hat given x_1, on the scale of 0 to 255.

    Raises:
        ConfigError: if the pixels aren't 256 levels from -1 to 1: the bits would mean nothing.
    """
    split, device = held_out(data), next(objective.parameters()).device
    items = len(split) if items is None else min(items, len(split))
    rate, distortion, error, seen = 0.0, 0.0, 0.0, 0
    for (address,) in split.sweeps(batch_size):
        batch = {name: values[: items - seen].to(device) for name, values in split.fetch(address).items()}
        x = batch["image"]
        _check_levels(x)
        with torch.autocast(device.type, enabled=False):
            terms, errors = objective.bound_terms(x, generator, batch.get("label"))
        first, *others = terms.double().sum(1).tolist()
        distortion += first
        rate += sum(others)
        error += errors[0].double().sum().item()
        seen += len(x)
        if seen == items:
            break
    bits = {"bits_per_dim": rate + distortion, "rate": rate, "distortion": distortion}
    return {**{name: value / items for name, value in bits.items()}, "rmse": 127.5 * (error / items) ** 0.5}


def guided(objective: nn.Module, data: Data, generator: torch.Generator, samples: int = 500, weights: tuple[float, ...] = (0.0, 1.0, 3.0),
           sample: dict | None = None) -> dict[str, float]:
    """Classifier-free guidance of each strength w in `weights` (Ho, Salimans, 2022, arXiv:2207.12598): fidelity against variety.

    Samples take the classes in turn, and are seen by the small classifier of `zoo.evaluation.generation.sample_quality`.

    Args:
        objective: its `sample` has the option `guidance`, and gives item i of a call the class i modulo the number of classes.
        sample: further arguments of `objective.sample`.

    Returns:
        accuracy_w<w>: share of samples that the classifier takes for the class which they were asked for; accuracy_test: of test items.
        spread_w<w>: mean squared distance of samples to the mean of their class, in pixels from 0 to 1; spread_test: of test items.
        frechet_w<w>: Frechet distance of the classifier's features to those of all real items.
    """
    train, labels = real_items(data.train)
    test, test_labels = real_items(held_out(data))
    fitted = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:FITTED]
    hidden, predict = classifier(train[fitted], labels[fitted])
    real, classes = hidden(torch.cat([train, test])), data.facts["num_classes"]
    metrics = {"accuracy_test": _accuracy(predict(test), test_labels), "spread_test": _spread(test, test_labels)}
    for w in weights:
        batches = [images.flatten(1).cpu().double() for images in drawn(objective, samples, generator, guidance=w, **(sample or {}))]
        asked = torch.cat([torch.arange(len(images)) % classes for images in batches])
        images = torch.cat(batches)
        metrics |= {f"accuracy_w{w:g}": _accuracy(predict(images), asked), f"spread_w{w:g}": _spread(images, asked)}
        metrics[f"frechet_w{w:g}"] = frechet_distance(hidden(images), real)
    return metrics


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:  # (N, classes), (N,)
    return (probabilities.argmax(1) == labels).double().mean().item()


def _spread(images: Tensor, labels: Tensor) -> float:  # (N, D), (N,)
    deviations = [images[labels == label] - images[labels == label].mean(0) for label in labels.unique()]
    return torch.cat(deviations).square().sum(1).mean().item()


def _check_levels(x: Tensor) -> None:
    levels = (x + 1) * 127.5
    if not ((levels - levels.round()).abs().amax() < 0.01 and x.amin() >= -1 and x.amax() <= 1):
        raise ConfigError("bits a dimension need pixels of 256 levels from -1 to 1: data.normalise=symmetric, and 8-bit images")
