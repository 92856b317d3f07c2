"""Pictures: training curves, sample grids, images with captions, confusion matrices."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def curves(folder: Path) -> Path:
    """Draws metrics.jsonl (losses and metrics against steps) into pictures/curves.png of the run; returns that path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    panels: dict[str, dict[str, list]] = {}
    uninteresting = ("step", "epoch", "seconds", "items_per_second", "memory_mib", "tflops", "mfu")
    for record in records:
        for key, value in record.items():
            if key not in uninteresting and value is not None:
                series = panels.setdefault(key.split("/")[-1], {}).setdefault(key, [[], []])
                series[0].append(record["step"])
                series[1].append(value)
    columns = min(len(panels), 3) or 1
    rows = math.ceil(len(panels) / columns) or 1
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3 * rows), squeeze=False, constrained_layout=True)
    for axis, (title, lines) in zip(axes.flat, sorted(panels.items(), key=lambda panel: (panel[0] != "loss", panel[0]))):
        for label, (steps, values) in lines.items():
            axis.plot(steps, values, marker="." if len(steps) < 20 else None, label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if title == "loss" and min(min(values) for _, values in lines.values()) > 0:
            axis.set_yscale("log")
        if len(lines) > 1:
            axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    target = folder / "pictures" / "curves.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def grid(images: Tensor, scale: int | None = None) -> Tensor:
    """(n, C, H, W) in [0, 1] -> (height, width, 3) uint8, about square, small images enlarged."""
    import torchvision

    size = images.shape[-1]
    scale = scale or max(1, 64 // size)
    images = images.clamp(0, 1).float().cpu()
    images = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    sheet = torchvision.utils.make_grid(images, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
    return (sheet * 255).round().to(torch.uint8).permute(1, 2, 0)


def save_picture(picture: Tensor, target: Path) -> Path:
    """Writes an (H, W, 3) uint8 picture as PNG."""
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(target)
    return target


def captioned(images: Tensor, captions: Sequence[str], target: Path) -> Path:
    """Draws (n, C, H, W) images in [0, 1], each below its caption."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(6, len(images))
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.7 * columns, 2 * rows), squeeze=False, constrained_layout=True)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images.float().cpu(), captions):
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def confusion(truth: Sequence[int], guesses: Sequence[int], names: Sequence[str], target: Path) -> Path:
    """Draws how often each class (row) was taken for each other one (column)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    counts.index_put_((torch.as_tensor(truth), torch.as_tensor(guesses)), torch.ones(len(truth), dtype=torch.int64), accumulate=True)
    size = min(max(4.0, 0.45 * len(names)), 20.0)
    figure, axis = plt.subplots(figsize=(size, size), constrained_layout=True)
    axis.imshow(counts.float() / counts.sum(1, keepdim=True).clamp(min=1), cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted", ylabel="true")
    if len(names) <= 60:
        axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for row in range(len(names)):
            for column in range(len(names)):
                share = counts[row, column] / counts[row].sum().clamp(min=1)
                axis.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target
