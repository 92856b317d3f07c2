"""Networks that look at images for the metrics of generated ones: the standard Inception network, or a classifier that this package trained.

B batch, C channels, H x W pixels, F features, K classes.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.data.download import Published, check, provide
from zoo.errors import ConfigError, ZooError
from zoo.evaluation.inception import Inception
from zoo.training.build import build_data
from zoo.training.first_stage import load_frozen
from zoo.training.precision import numerics

# The conversion of Google's file by the authors of pytorch-fid; those of torch-fidelity publish the same bytes under another name.
WEIGHTS = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
)


@dataclass(frozen=True)
class Extractor:
    """What looks at images, in fp32 whatever the precision of the run.

    Args:
        label: goes into the names of its metrics; none for Inception, whose numbers compare with published ones.
        identity: all that its features depend on.
        network: uint8 images (B, C, H, W) -> features (B, F) and logits (B, K).
    """

    label: str | None
    identity: str
    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, H, W) uint8 -> features (B, F), probabilities (B, K) in fp64
        with _plain(self.device):
            features, logits = self.network(images.to(self.device))
        return features.float(), logits.double().softmax(1)

    def names(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics under names that tell who looked: `fid`, or `fid_by_resnet_fashion_mnist_resnet20`."""
        return {f"{name}_by_{self.label}" if self.label else name: value for name, value in metrics.items()}


def extractor(source: str, device: torch.device) -> Extractor:
    """The network that `features` names.

    Args:
        source: "inception", whose weights are looked for where pytorch-fid and torch-fidelity keep them, else in the folder ZOO_DATA
            (~/.cache/paper-zoo without it), and downloaded there; the path of that file; or the run directory of a finished classifier.

    Raises:
        ZooError: if there are no weights, or a file that isn't the published one.
        ConfigError: if the run is no classifier of images.
    """
    with _plain(device):
        if source == "inception":
            return _inception(_inception_weights(), device)
        if source.endswith(".pth"):
            path = Path(source).expanduser()
            check(WEIGHTS, path, "Inception weights")
            return _inception(path, device)
        return _classifier(source, device)


def _inception_weights() -> Path:
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    for name in (url.rpartition("/")[2] for url in WEIGHTS.urls):
        if (checkpoints / name).is_file():
            check(WEIGHTS, checkpoints / name, "Inception weights")
            return checkpoints / name
    try:
        return provide(WEIGHTS, Path(os.environ.get("ZOO_DATA", "~/.cache/paper-zoo")).expanduser(), "Inception weights")
    except ZooError as error:
        raise ZooError(f"{error}; or let a classifier of yours judge: features=<the run directory of its training>") from None


def _inception(weights: Path, device: torch.device) -> Extractor:
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(torch.load(weights, map_location=device, weights_only=True), assign=True)
    network.requires_grad_(False).eval()

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] not in (1, 3):
            raise ConfigError(f"features=inception looks at images of 1 or 3 channels, not {images.shape[1]}")
        return network(images.expand(-1, 3, -1, -1))

    return Extractor(None, f"Inception {WEIGHTS.sha256}", look, device)


def _classifier(run: str, device: torch.device) -> Extractor:
    try:
        frozen = load_frozen(run)
    except ConfigError as error:
        remedy = "give inception, or the run directory of a finished classifier, such as that of python train.py paper=resnet/fashion_mnist_resnet20"
        raise ConfigError(f"features={run}: {error}; {remedy}") from None
    model, cfg = getattr(frozen.objective, "model", None), frozen.cfg
    if not hasattr(frozen.objective, "predict") or not hasattr(model, "forward_features"):
        raise ConfigError(f"features={run} is no classifier of images: it needs an objective with predict() and a model with forward_features()")
    data = build_data(cfg)  # of which the normalisation is a part of the network
    normaliser, shape = data.train.normaliser.to(device), (data.facts["channels"], *[data.facts["image_size"]] * 2)
    model.to(device)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != shape:
            ours, theirs = ("x".join(map(str, sides)) for sides in (shape, images.shape[1:]))
            raise ConfigError(f"features={run} looks at images of {ours}, not {theirs}: choose a classifier of the same data set")
        return _flat(model.forward_features(normaliser(images))), model(normaliser(images))

    seen_as = {key: value for key, value in cfg["data"].items() if key not in ("root", "workers", "batch_size")}
    identity = json.dumps({"weights": frozen.sha256, "model": cfg["model"], "data": seen_as}, sort_keys=True)
    return Extractor(re.sub(r"\W+", "_", cfg["name"]), identity, look, device)


def _flat(features: Tensor) -> Tensor:
    """(B, F, H, W) maps, (B, T, F) tokens or (B, F) features -> (B, F), the mean over places."""
    return features.mean((2, 3)) if features.ndim == 4 else features.mean(1) if features.ndim == 3 else features


@contextlib.contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """fp32 without tf32 and autocast."""
    with numerics("fp32", torch.are_deterministic_algorithms_enabled()), torch.autocast(device.type, enabled=False):
        yield
