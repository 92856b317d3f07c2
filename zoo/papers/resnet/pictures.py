"""Pictures that the paper draws of a trained network."""

import torch
from torch import Tensor, nn


def pictures(model: nn.Module, images: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """name -> (H, W, 3) uint8, for images (B, C, H, W) as the model takes them."""
    return {"responses": draw_responses(responses(model, images))}


def responses(model: nn.Module, images: Tensor) -> list[float]:
    """Figure 7: for each 3x3 convolution in order the standard deviation of its outputs after batch norm, before ReLU or addition."""
    deviations: list[float] = []
    spread = lambda module, inputs, output: deviations.append(output.float().std().item())  # before it is overwritten in place
    norms = dict(model.named_modules())
    three = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    hooks = [norms[name.replace("conv", "bn")].register_forward_hook(spread) for name in three]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return deviations


def draw_responses(deviations: list[float]) -> Tensor:  # -> (H, W, 3) uint8
    """By the place of the layer, and sorted, as in figure 7."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
    for axis, values, label in zip(
        figure.subplots(2, 1), (deviations, sorted(deviations, reverse=True)), ("layer", "layer, by magnitude"), strict=True
    ):
        axis.plot(range(1, len(values) + 1), values, linewidth=1, marker=".")
        axis.set(xlabel=label, ylabel="std", ylim=(0, None))
        axis.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])
