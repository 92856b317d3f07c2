"""torchvision's parameter names -> ours."""

from torch import Tensor

LAYERS = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def from_torchvision(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision `alexnet` state dict for `alexnet_one_tower`; values are shared, not copied."""
    renamed = {}
    for name, value in state_dict.items():
        layer, kind = name.rsplit(".", 1)
        renamed[f"{LAYERS[layer]}.{kind}"] = value
    return renamed
