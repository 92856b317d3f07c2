"""FID, Inception score, precision and recall of generated images, seen through the network that `features` names.

M samples, N real items, F features, K classes. Images are bytes, as in files; features are compared in fp64.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.data.base import Data, Split
from zoo.data.cache import kept
from zoo.data.loader import batches
from zoo.errors import ConfigError
from zoo.evaluation.features import Extractor, extractor
from zoo.evaluation.generation import distance_rows, drawn, frechet, inception_score

BATCH = 64  # images that the network sees at a time
PARTS = 10  # of the samples, for the Inception score


@torch.no_grad()
def fid(
    objective: nn.Module,
    data: Data,
    generator: torch.Generator,
    features: str = "inception",
    samples: int = 50_000,
    split: Literal["train", "valid", "test"] = "train",
    neighbours: int | None = 3,
    sample: dict | None = None,
) -> dict[str, float]:
    """Generated against real images. The numbers depend on the network, on `samples` and on the split: compare like with like.

    Args:
        features: "inception", the standard network (or the path of its weights), or the run directory of a classifier trained by this
            package on the same images; see `zoo.evaluation.features.extractor`. With a classifier `_by_<its name>` follows each name.
        samples: how many are drawn. The split must have as many items, all of which make up the real side of the FID.
        split: whose items are the real ones; the training set is the custom for FID.
        neighbours: k of precision and recall; null leaves them out, which saves their M x N distances.
        sample: further arguments of `objective.sample`, such as {method: ddim, steps: 100}.

    Returns:
        fid: Frechet distance of the features of samples and real items (Heusel et al., 2017, arXiv:1706.08500, equation 6).
        inception_score, inception_score_std: mean and standard deviation over 10 parts of the samples of exp E KL(p(y|x) || p(y))
            (Salimans et al., 2016, arXiv:1606.03498).
        precision, recall: the share of samples that lie within the real items' manifold, and of `samples` real items that lie within that
            of the samples (Kynkaanniemi et al., 2019, arXiv:1904.06991, equation 2); their features were those of VGG-16.

    Raises:
        ConfigError: if the split has fewer than `samples` items, or this data set or objective has no images.
        ZooError: if the network's weights aren't there.
    """
    real = _real_split(objective, data, split, samples, neighbours)
    network = extractor(features, next(objective.parameters()).device)
    reference = reference_moments(network, real)
    moments, seen, probabilities = Moments(), [], []
    for images in drawn(objective, samples, generator, **(sample or {})):
        for part in as_bytes(images).split(BATCH):
            feature, probability = network(part)
            moments.add(feature)
            seen.append(feature)
            probabilities.append(probability)
    scores = torch.tensor([inception_score(part) for part in torch.cat(probabilities).tensor_split(PARTS)], dtype=torch.double)
    metrics = {
        "fid": frechet(moments.mean, moments.covariance, reference.mean, reference.covariance),
        "inception_score": scores.mean().item(),
        "inception_score_std": scores.std(correction=0).item(),
    }
    if neighbours:
        index = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:samples].sort().values
        others = torch.cat([network(images)[0] for images in real_images(real, index, network.device)])
        metrics["precision"], metrics["recall"] = precision_recall(torch.cat(seen), others, neighbours)
    return network.names(metrics)


class Moments:
    """Mean (F,) and covariance (F, F) of features that come batch by batch, in fp64 (Chan, Golub and LeVeque, 1979, equation 2.1).

    Each batch's scatter is taken about its own mean, so that features far from 0 lose no digits, as they would in sums of squares.
    """

    def __init__(self):
        self.count, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, features: Tensor) -> None:  # (B, F)
        features, total = features.double(), self.count + len(features)
        mean = features.mean(0)
        centred, shift = features - mean, mean - self.mean
        self.scatter = self.scatter + centred.T @ centred + shift.outer(shift) * (self.count * len(features) / total)
        self.mean = self.mean + shift * (len(features) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1)


def precision_recall(samples: Tensor, real: Tensor, k: int) -> tuple[float, float]:
    """Of features (M, F) and (N, F). The manifold of a set is the union of balls around its members, each of which reaches its k-th
    neighbour; precision is the share of samples in that of the real items, recall the share of real items in that of the samples."""
    samples, real = samples.double(), real.double()
    return _share_within(samples, real, k), _share_within(real, samples, k)


def _share_within(items: Tensor, others: Tensor, k: int) -> float:
    # The nearest member to a member is itself: the k-th neighbour comes at place k + 1.
    radii = torch.cat([rows.topk(k + 1, dim=1, largest=False).values[:, k] for rows in distance_rows(others, others)])
    return torch.cat([(rows <= radii).any(1) for rows in distance_rows(items, others)]).double().mean().item()


def reference_moments(network: Extractor, split: Split) -> Moments:
    """Moments of the features of all items of a split; kept for the next time."""

    def compute() -> dict[str, Tensor]:
        print(f"evaluation: one pass over {len(split)} real images for their features ...", file=sys.stderr, flush=True)
        moments = Moments()
        for images in real_images(split, torch.arange(len(split)), network.device):
            moments.add(network(images)[0])
        return {"mean": moments.mean.cpu(), "scatter": moments.scatter.cpu()}

    found, moments = kept(f"moments of features; images: {fingerprint(split)}; network: {network.identity}", compute), Moments()
    moments.count = len(split)
    moments.mean, moments.scatter = found["mean"].to(network.device), found["scatter"].to(network.device)
    return moments


def fingerprint(split: Split) -> str:
    """Which images these are: sha256 of the bytes where they are in memory, else of the files' names and sizes, and how they are cut."""
    if hasattr(split, "images"):
        return f"{tuple(split.images.shape)} {hashlib.sha256(split.images.cpu().contiguous().numpy()).hexdigest()}"
    names = (f"{os.path.basename(path)} {os.path.getsize(path)}" for path in map(os.fsdecode, split.paths))
    return f"{split.view.resize} {split.view.crop} {hashlib.sha256(chr(10).join(names).encode()).hexdigest()}"


def real_images(split: Split, index: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The items `index` of a split as bytes (B, C, H, W), without normalisation and augmentation."""
    for batch in batches(split, [{"index": part} for part in index.split(BATCH)], device):
        yield as_bytes(split.normaliser.inverse(batch["image"]))


def as_bytes(images: Tensor) -> Tensor:  # in [0, 1] -> uint8
    return (images.float() * 255).round().to(torch.uint8)


def _real_split(objective: nn.Module, data: Data, split: str, samples: int, neighbours: int | None) -> Split:
    real = getattr(data, split)
    if real is None:
        raise ConfigError(f"fid: this data set has no split={split}")
    if not hasattr(objective, "sample") or not hasattr(real, "normaliser"):
        raise ConfigError("fid compares generated with real images: it needs an objective with sample() and a data set of images")
    if len(real) < samples:
        raise ConfigError(f"fid: samples={samples}, but split={split} has only {len(real)} items: ask for fewer, or choose another split")
    if samples <= max(PARTS, neighbours or 0):
        raise ConfigError(f"fid: samples={samples} are too few for {PARTS} parts and {neighbours or 0} neighbours")
    return real
