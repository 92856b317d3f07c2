"""How the experts are used, as a picture."""

import torch
from torch import Tensor

from .experts import ExpertUse


def expert_use(uses: list[ExpertUse]) -> Tensor:
    """Load of each expert as a bar, importance as a dot, both relative to the mean over experts; a panel a layer. -> (H, W, 3) uint8."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 2 * len(uses)), dpi=120, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots(len(uses), squeeze=False)[:, 0]
    for n, (axis, use) in enumerate(zip(axes, uses)):
        load, importance = ((values / values.mean()).float().cpu().numpy() for values in (use.load, use.importance))
        axis.bar(range(len(load)), load, color="tab:blue", label="load")
        axis.plot(range(len(load)), importance, ".", color="tab:orange", label="importance")
        axis.axhline(1, color="black", linewidth=0.8)
        told = {name: float(value) for name, value in use.statistics().items()}
        axis.set_title(f"layer {n + 1} of {len(uses)}: CV(load) {told['cv_load']:.2f}, CV(importance) {told['cv_importance']:.2f}", fontsize=9)
        axis.set(ylabel="times the mean", ylim=(0, None))
    axes[-1].set_xlabel("expert")
    axes[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    canvas.draw()
    return torch.tensor(numpy.asarray(canvas.buffer_rgba())[..., :3].copy())
