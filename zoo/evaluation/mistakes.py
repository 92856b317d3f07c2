"""What a classifier takes for what: the confusion matrix, and its most confident mistakes."""

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.data.base import Data, Split
from zoo.data.loader import sweep
from zoo.evaluation import pictures


def classification_pictures(objective: nn.Module, data: Data, split: Split, batch_size: int, target: Path, device: torch.device) -> list[Path]:
    """Draws confusion.png and, where there are any, mistakes.png into the folder `target`."""
    truth, guesses, confidence, index = predictions(objective, split, batch_size, device)
    names = data.classes or [str(i) for i in range(data.facts["num_classes"])]
    made = [pictures.confusion(truth.tolist(), guesses.tolist(), names, target / "confusion.png")]
    wrong = (guesses != truth).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)][:24]
    if len(wrong) and hasattr(split, "normaliser"):
        images = split.normaliser.inverse(split.fetch({"index": index[wrong]})["image"])
        captions = [f"{names[guesses[i]]} ({100 * confidence[i]:.0f} %)\nis {names[truth[i]]}" for i in wrong.tolist()]
        made.append(pictures.captioned(images, captions, target / "mistakes.png"))
    return made


def predictions(objective: nn.Module, split: Split, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True classes, likeliest classes, their probabilities, and numbers of all items, (N,) each, on the CPU."""
    rows = []
    for _, _, batch in sweep(split, batch_size, device):
        confidence, guess = objective.predict(batch).max(-1)
        rows.append((batch["label"].cpu(), guess.cpu(), confidence.cpu(), batch["index"].cpu()))
    return tuple(torch.cat(column) for column in zip(*rows))
