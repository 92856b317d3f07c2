"""The paper's figures, of any trained `Diffusion`: functions (diffusion, ...) -> (H, W, 3) uint8. x images (B, C, H, W) in [-1, 1]."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

ITEMS = 4  # rows of a strip
CURVE = 16  # images that the rate-distortion curve is of


def pictures(diffusion: nn.Module, x: Tensor, label: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
    """All of them, of the first images of a batch; they cost as much as 37 samples, and as 50 more with guidance."""
    classes = diffusion.model.num_classes
    label = None if classes is None else label
    few, labels = x[:ITEMS], None if label is None else label[:ITEMS]
    drawn = {
        "progressive": progressive(diffusion, generator),
        "decoding": decoding(diffusion, few, labels, generator),
        "rate_distortion": rate_distortion(diffusion, x[:CURVE], None if label is None else label[:CURVE], generator),
        "interpolation": interpolation(diffusion, few, generator),
        "inpainting": inpainting(diffusion, few, labels, generator),
    }
    return drawn if classes is None or not diffusion.p_uncond else {**drawn, "guidance": guidance(diffusion, generator)}


def progressive(diffusion: nn.Module, generator: torch.Generator) -> Tensor:
    """Progressive generation (figure 6): for each sample a row of x_t and one of x0_hat; t falls from left to right."""
    shown = _shown(diffusion.steps)
    label = None if diffusion.model.num_classes is None else torch.arange(ITEMS, device=generator.device) % diffusion.model.num_classes
    path = diffusion.trajectory(diffusion.normal(ITEMS, generator), generator, label=label)
    return _tiled(torch.stack([torch.stack([x_t, x0_hat], 1) for t, x_t, x0_hat in path if t in shown]), "column item row")


def decoding(diffusion: nn.Module, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
    """Progressive decoding (section 4.3, algorithm 4): what the receiver of an image has by and by, x_t above and x0_hat below.

    The sender, who knows x_0, sends each x_s as a draw of q(x_s | x_t, x_0). The last column is the image itself.
    """
    times = sorted(_shown(diffusion.steps), reverse=True)
    columns, x_t = [], diffusion.diffuse(x, torch.full((len(x),), times[0], device=x.device), diffusion.normal(len(x), generator))
    for t, s in zip(times, [*times[1:], -1]):
        x0_hat, _ = diffusion.denoise(x_t, torch.full((len(x),), t, device=x.device), label)
        columns.append(torch.stack([x_t, x0_hat], 1))
        c_0, c_t, variance = diffusion.posterior(t, s)
        x_t = c_0 * x + c_t * x_t + variance**0.5 * diffusion.normal(len(x), generator)
    return _tiled(torch.stack([*columns, torch.stack([x, x], 1)]), "column item row")


def rate_distortion(diffusion: nn.Module, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
    """Figure 5: distortion and rate against the steps of the reverse process, and against one another."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rate, rmse = (curve.tolist() for curve in rate_and_rmse(diffusion, x, label, generator))
    steps = range(1, diffusion.steps + 1)
    figure = Figure(figsize=(11, 3), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(steps, rmse)
    left.set(xlabel="reverse process steps (T - t + 1)", ylabel="distortion (RMSE, 0 to 255)")
    middle.plot(steps, rate)
    middle.set(xlabel="reverse process steps (T - t + 1)", ylabel="rate (bits/dim)")
    right.plot(rate, rmse)
    right.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE, 0 to 255)")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3])


def rate_and_rmse(diffusion: nn.Module, x: Tensor, label: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The curves of figure 5, both (T,), first the receiver who has x_T alone (t = T - 1), last the one who has x_1 (t = 0).

    The rate is the cost of what has been sent, in bits a dimension; the distortion the root mean squared error of x0_hat, of 255 levels.
    """
    with torch.autocast(x.device.type, enabled=False):
        terms, errors = diffusion.bound_terms(x, generator, label)
    return terms[1:].flip(0).mean(1).cumsum(0), errors.flip(0).mean(1).sqrt() * 127.5


def interpolation(diffusion: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Figure 8: between neighbouring images, mixed at step T/2: left and right the images, between them weights 0, 1/8, ..., 1."""
    x, y = x[:2], x.roll(-1, 0)[:2]
    between = diffusion.interpolate(x, y, torch.linspace(0, 1, 9), diffusion.steps // 2 - 1, generator)
    return _tiled(torch.cat([x[:, None], between, y[:, None]], 1)[:, None], "item row column")


def inpainting(diffusion: nn.Module, x: Tensor, label: Tensor | None, generator: torch.Generator) -> Tensor:
    """Each row an image, what of it is known (the upper half), and two ways to complete it."""
    known = torch.zeros(x.shape[-2:], dtype=torch.bool, device=x.device)
    known[: x.shape[-2] // 2] = True
    repeated = None if label is None else label.repeat_interleave(2)
    filled = diffusion.inpaint(x.repeat_interleave(2, 0), known, generator, label=repeated).unflatten(0, (-1, 2))
    return _tiled(torch.cat([x[:, None], torch.where(known, x, 0)[:, None], filled], 1)[:, None], "item row column")


def guidance(diffusion: nn.Module, generator: torch.Generator) -> Tensor:
    """Classifier-free guidance: a column a class (ten at most), a row each for w = 0, 1 and 3, from the same noise."""
    classes = min(diffusion.model.num_classes, 10)
    noise, label = diffusion.normal(classes, generator), torch.arange(classes, device=generator.device)
    state = generator.get_state()
    rows = []
    for w in (0.0, 1.0, 3.0):
        generator.set_state(state)
        rows.append(diffusion.decode(noise, generator, label=label, guidance=w))
    return _tiled(torch.stack(rows)[:, None], "item row column")


def _shown(steps: int) -> set[int]:
    """Twelve steps from T - 1 to 0."""
    return {round(i * (steps - 1) / 11) for i in range(12)}


def _tiled(images: Tensor, axes: str) -> Tensor:
    """Images with three leading axes, in [-1, 1], as one picture: the rows of an item below one another, items below items; enlarged."""
    tiles = rearrange(F.pad(images, (0, 1, 0, 1)), f"{axes} C H W -> (item row H) (column W) C")
    sheet = ((tiles + 1) * 127.5).round().clamp(0, 255).byte().cpu().expand(-1, -1, 3)
    scale = max(1, 32 // images.shape[-1])
    return sheet.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
