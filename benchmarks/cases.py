"""What is measured: our model and the one that a user would take instead, at the same shapes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Case:
    """A classifier of images (batch, 3, size, size).

    Args:
        peers: name -> how to build it; the first one is the reference.
        optimizer: sgd (momentum 0.9) or adamw.
        channels_last: what our configurations set for this model; peers keep torch's default.
    """

    ours: Callable[[], nn.Module]
    peers: dict[str, Callable[[], nn.Module]]
    batch: int
    optimizer: str
    channels_last: bool
    size: int = 224


def _ours(preset: str) -> Callable[[], nn.Module]:
    import zoo

    return lambda: zoo.create_model(preset)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)()

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name)

    return build


CASES = {
    "alexnet": Case(_ours("alexnet_one_tower"), {"torchvision": _torchvision("alexnet")}, 32, "sgd", True),
    "resnet18": Case(_ours("resnet18"), {"torchvision": _torchvision("resnet18"), "timm": _timm("resnet18")}, 8, "sgd", True),
    "resnet50": Case(_ours("resnet50_v1_5"), {"torchvision": _torchvision("resnet50"), "timm": _timm("resnet50")}, 4, "sgd", True),
    "vit_s16": Case(_ours("vit_s16"), {"timm": _timm("vit_small_patch16_224")}, 4, "adamw", False),
}
