"""Images a second from JPEG files of 500 x 375 pixels to normalised batches: ours beside torchvision's ImageFolder with the transforms of
its reference (random resized crop of 224 pixels, mirror, normalisation), the same number of workers, in turn. And images that live on the device:
what a batch of 128 of CIFAR's size (crop, mirror, normalisation) takes beside the training step of ResNet-20 on it.

python -m benchmarks data [--workers 2] [--repeats 9] [--device cpu] [--record results/benchmarks/data.json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo.data
from zoo.data.loader import stream
from zoo.data.pixels import in_memory
from zoo.environment import environment

IMAGES, BATCH, MEAN, STD = 512, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_images(root: Path) -> None:
    """Smooth noise with a little grain, about 100 kB a file, as photographs have."""
    from PIL import Image

    torch.manual_seed(0)
    for i in range(IMAGES):
        smooth = F.interpolate(torch.rand(1, 3, 24, 32), (375, 500), mode="bicubic")[0]
        pixels = ((smooth + 0.05 * torch.randn(3, 375, 500)).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        for split in ("train", "val"):
            path = root / "set" / split / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == "train" or i < 2:
                Image.fromarray(pixels).save(path, quality=90)


def ours(root: Path, workers: int) -> Iterator[Tensor]:
    data = zoo.data.images(seed=0, root=str(root), folder="set", image_size=224, augment=["resized_crop", "flip"], workers=workers)
    return (batch["image"] for batch in stream(data.train, data.train.plan(BATCH), 0, torch.device("cpu")))


def torchvisions(root: Path, workers: int) -> Iterator[Tensor]:
    from torchvision import datasets, transforms

    view = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    files = datasets.ImageFolder(root / "set" / "train", transforms.Compose(view))
    while True:
        yield from (images for images, _ in torch.utils.data.DataLoader(files, BATCH, shuffle=True, num_workers=workers))


def from_files(workers: int, repeats: int) -> dict[str, list[float]]:
    """Images a second."""
    rates: dict[str, list[float]] = {"ours": [], "torchvision": []}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for repeat in range(repeats):
            for name in list(rates)[:: 1 if repeat % 2 else -1]:
                batches = {"ours": ours, "torchvision": torchvisions}[name](Path(folder), workers)
                next(batches)
                start = time.perf_counter()
                for _ in range(IMAGES // BATCH - 4):  # an epoch less what the workers hold ready at its ends
                    next(batches)
                rates[name].append(BATCH * (IMAGES // BATCH - 4) / (time.perf_counter() - start))
                del batches
    return rates


def resident(device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of a batch, and of a step on one."""
    from zoo.papers.resnet import resnet20

    arrays = np.random.default_rng(0).integers(0, 256, (10_000, 3, 32, 32), dtype=np.uint8), np.arange(10_000) % 10
    data = in_memory((arrays, None, arrays), list("0123456789"), 0, "standard", ["pad_crop", "flip"])
    data.train.to(device)
    batches = stream(data.train, data.train.plan(128), 0, device)
    model = resnet20(num_classes=10).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    times: dict[str, list[float]] = {"batch": [], "step": []}

    def step(batch: dict[str, Tensor]) -> None:
        F.cross_entropy(model(batch["image"].contiguous(memory_format=torch.channels_last)), batch["label"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    for repeat in range(repeats + 1):
        start = time.perf_counter()
        batch = next(batches)
        _wait(device)
        ready = time.perf_counter()
        step(batch)
        _wait(device)
        if repeat:  # the first round was to warm up
            times["batch"].append(1e3 * (ready - start))
            times["step"].append(1e3 * (time.perf_counter() - ready))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rates, times = from_files(options.workers, options.repeats), resident(device, 3 * options.repeats)
    quartiles = lambda values: [round(q, 3) for q in statistics.quantiles(values, n=4)]
    result = {
        "images_a_second": {name: quartiles(values) for name, values in rates.items()},
        "ratio": quartiles([a / b for a, b in zip(rates["ours"], rates["torchvision"])]),
        "workers": options.workers,
        "resident_milliseconds": {name: quartiles(values) for name, values in times.items()},
        "resident_share": quartiles([a / b for a, b in zip(times["batch"], times["step"])]),
        "repeats": options.repeats,
        **environment(device),
    }
    print(json.dumps(result, indent=1))
    if options.record:
        options.record.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
