"""Classification judged on several views of each test image. Functions (objective, data, generator, **params) -> metrics.

B batch, C channels, K classes, h x w places of a score map.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from zoo.data.base import Data, Split
from zoo.data.image_files import ImageFiles, View
from zoo.data.loader import sweep
from zoo.errors import ConfigError


def ten_crop(objective: nn.Module, data: Data, generator: torch.Generator, resize: int = 256, batch_size: int = 32) -> dict[str, float]:
    """The softmax averaged over the four corners and the centre of the middle square, and their mirror images (Krizhevsky et al. 2012,
    section 4.1).

    Args:
        resize: side of that square in pixels, from which crops of the data's image_size are cut.

    Raises:
        ConfigError: if the test images are not files, or the square is smaller than a crop.
    """
    from torchvision.transforms.v2 import functional

    size = data.facts["image_size"]
    if resize < size:
        raise ConfigError(f"ten_crop: resize {resize} is smaller than the crops of data.image_size {size}")
    split = files_of(data, "ten_crop").seen_as(View(resize, resize))

    def probabilities(images: Tensor) -> Tensor:
        crops = torch.cat(functional.ten_crop(images, size))
        return objective.predict({"image": crops}).unflatten(0, (10, -1)).mean(0)

    return accuracies("ten_crop", judged(split, batch_size, probabilities, generator.device), split.labels)


def multi_scale(
    objective: nn.Module, data: Data, generator: torch.Generator, scales: Sequence[int] = (224, 256, 384, 480, 640)
) -> dict[str, float]:
    """The network run over whole images of several sizes, fully convolutionally: its scores averaged over all places, the softmax of that
    over mirror images and `scales`, the lengths of the shorter side in pixels (He et al. 2015, section 3.4; Simonyan & Zisserman 2015).

    Raises:
        ConfigError: if the test images are not files, or the model has no `score_map`.
    """
    if not hasattr(objective.model, "score_map"):
        raise ConfigError(f"multi_scale needs a model with a score_map; {type(objective.model).__name__} has none: use ten_crop")
    split = files_of(data, "multi_scale")

    def probabilities(images: Tensor) -> Tensor:
        scores = objective.model.score_map(torch.cat([images, images.flip(-1)]))  # (2B, K, h, w)
        return scores.float().mean((2, 3)).softmax(-1).unflatten(0, (2, -1)).mean(0)

    total = sum(torch.cat(list(judged(split.seen_as(View(scale, None)), 1, probabilities, generator.device))) for scale in scales)
    return accuracies("multi_scale", [total / len(scales)], split.labels)


def files_of(data: Data, name: str) -> ImageFiles:
    if not isinstance(data.test, ImageFiles):
        raise ConfigError(f"{name} looks at image files in other sizes, which this data set has not kept: use data=images or data=imagenet")
    return data.test


def judged(split: Split, batch_size: int, probabilities: Callable[[Tensor], Tensor], device: torch.device) -> Iterable[Tensor]:
    """probabilities(images), (B, K) on the CPU, for all items in order."""
    return (probabilities(batch["image"]).cpu() for _, _, batch in sweep(split, batch_size, device))


def accuracies(name: str, probabilities: Iterable[Tensor], labels: Tensor) -> dict[str, float]:
    """Accuracy, error and, with more than 5 classes, top5_error, in percent."""
    correct, items = torch.zeros(5, dtype=torch.int64), 0
    for part in probabilities:
        best = part.topk(min(5, part.shape[1])).indices == labels[items : items + len(part), None]
        correct[: best.shape[1]] += best.sum(0)
        items += len(part)
        classes = part.shape[1]
    share = 100 * correct.cumsum(0).double() / items
    metrics = {f"{name}_accuracy": share[0].item(), f"{name}_error": 100 - share[0].item()}
    return metrics | ({f"{name}_top5_error": 100 - share[4].item()} if classes > 5 else {})
