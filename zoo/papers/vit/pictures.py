"""Where a ViT looks (figures 6 and 14) and what its position embeddings learned (figure 7, middle)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .model import ViT


def rollout(maps: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv:2005.00928): how much of each input token is in each output token.

    In each layer the heads are averaged, the identity is added for the skip connection, rows are divided by their sum; then the layers'
    matrices are multiplied, the last one leftmost.

    Args:
        maps: (B, L, k, T, T), as `ViT.attention_maps` gives them.

    Returns:
        (B, T, T), rows add up to 1.
    """
    layers = maps.mean(2) + torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    layers = layers / layers.sum(-1, keepdim=True)
    flow = layers[:, 0]
    for layer in layers.unbind(1)[1:]:
        flow = layer @ flow
    return flow


def rollout_over_patches(model: ViT, images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, h, w): what the class token, or the mean of all patches, took from each patch."""
    flow = rollout(model.attention_maps(images))
    flow = flow[:, 0, 1:] if model.class_token is not None else flow.mean(1)
    return flow.unflatten(1, model.grid)


def position_similarity(model: ViT) -> Tensor:
    """Cosine similarity of the position embedding of each patch with those of all: (h, w, h, w), the first pair is the patch.

    Raises:
        ValueError: if the model has no position embeddings.
    """
    if model.positions is None:
        raise ValueError("the model was built with positions=None: there are no position embeddings to compare")
    table = F.normalize(model.positions()[1 if model.class_token is not None else 0 :], dim=-1)
    return rearrange(table @ table.T, "(a b) (c d) -> a b c d", a=model.grid[0], c=model.grid[0])


@torch.no_grad()
def pictures(model: ViT, images: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """The pictures that `evaluate.py` writes for a run.

    Args:
        images: (B, C, H, W) as the model takes them; the first eight are drawn.
        shown: the same in [0, 1].

    Returns:
        name -> (H, W, 3) uint8: `attention_rollout`, and with position embeddings `position_similarity`.
    """
    drawn = {"attention_rollout": _draw_rollout(rollout_over_patches(model, images[:8]), shown[:8])}
    if model.positions is not None:
        drawn["position_similarity"] = _draw_similarity(position_similarity(model))
    return drawn


def _draw_rollout(flow: Tensor, shown: Tensor) -> Tensor:
    """A column an image: the image; as in figure 14, darkened where little is attended to; and the rollout alone, yellow where it is most."""
    from matplotlib import colormaps

    size = shown.shape[-2:]
    scale = max(1, 112 // max(size))  # so that small images can be seen
    light = flow / flow.amax((1, 2), keepdim=True)
    light = F.interpolate(light[:, None].float(), [side * scale for side in size], mode="bilinear").cpu()
    images = shown.float().cpu().expand(-1, 3, -1, -1).repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    heat = torch.tensor(colormaps["viridis"](light[:, 0].numpy())[..., :3], dtype=torch.float).permute(0, 3, 1, 2)
    sheet = F.pad(torch.stack([images, images * light, heat]), (2, 2, 2, 2), value=1.0)
    return (rearrange(sheet, "rows B C H W -> (rows H) (B W) C").clamp(0, 1) * 255).round().to(torch.uint8)


def _draw_similarity(similarity: Tensor) -> Tensor:
    """A heat map a patch, at the place of that patch; yellow: the same direction, dark: the opposite one."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    h, w = similarity.shape[:2]
    tiles = F.pad(similarity.float().cpu(), (0, 1, 0, 1), value=float("nan"))  # a gap below and to the right of each map
    figure = Figure(figsize=(6.4, 5.4), dpi=160, layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    drawn = axis.imshow(rearrange(tiles, "a b c d -> (a c) (b d)").numpy(), vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks(numpy.arange(w) * (w + 1) + (w - 1) / 2, range(1, w + 1))
    axis.set_yticks(numpy.arange(h) * (h + 1) + (h - 1) / 2, range(1, h + 1))
    axis.set(xlabel="patch column", ylabel="patch row", title="position embedding similarity")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.colorbar(drawn, label="cosine similarity")
    canvas.draw()
    return torch.tensor(numpy.asarray(canvas.buffer_rgba())[..., :3].copy())
