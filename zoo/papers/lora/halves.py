"""Two tasks out of one small data set: to learn the one first, and adapt to the other."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from zoo.data.base import Data


def half_of_digits(
    seed: int, half: Literal["low", "high"], normalise: str = "symmetric", augment: list | None = None, pad: int = 1, valid: int = 0
) -> "Data":
    """scikit-learn's digits 0 to 4 (low) or 5 to 9 (high), either as classes 0 to 4: 721 / 180 or 716 / 180 images of 8x8 pixels.

    Args:
        normalise, augment, pad, valid: see `zoo.data.pixels.in_memory`; `valid` images are held out of all ten digits.
    """
    from zoo.data import digits  # here, so that the folder works without the trainer

    data, first = digits(seed, normalise=normalise, augment=augment, pad=pad, valid=valid), {"low": 0, "high": 5}[half]
    for split in (data.train, data.valid, data.test):
        if split is not None:
            kept = (split.labels >= first) & (split.labels < first + 5)
            split.images, split.labels = split.images[kept], split.labels[kept] - first
    data.facts["num_classes"], data.classes = 5, data.classes[first : first + 5]
    return data
