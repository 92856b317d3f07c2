"""Who attends to what in a pair of sentences (figures 3 to 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import Transformer

WHERE = {  # rows (who attends) and columns (to what) of a map
    "encoder": ("source", "source"),
    "decoder": ("target", "target"),
    "memory": ("target", "source"),
}


@torch.no_grad()
def attention_maps(
    model: Transformer, source: Tensor, target: Tensor, source_tokens: Sequence[str], target_tokens: Sequence[str]
) -> dict[str, Tensor]:
    """All heads of the last layer as heat maps, dark where a row's token attends.

    Args:
        model: in eval mode, or dropout disturbs the maps.
        source: (1, S).
        target: (1, T), as the decoder takes it: the token that begins a sentence first.
        source_tokens: S texts, to be written at the maps.
        target_tokens: T texts: the tokens that the decoder has just read, or those that it says next.

    Returns:
        name -> (H, W, 3) uint8: `attention_encoder` (source to source), `attention_decoder` (target to target) and `attention_memory` (target
        to source).

    Raises:
        ValueError: if the tensors are not one sentence each, or have other lengths than their texts.
    """
    texts = {"source": source_tokens, "target": target_tokens}
    for name, tokens in (("source", source), ("target", target)):
        if tokens.shape != (1, len(texts[name])):
            raise ValueError(f"{name} of shape {tuple(tokens.shape)} is not one sentence of the {len(texts[name])} tokens in {name}_tokens")
    maps = model.attention_maps(source, target)
    return {f"attention_{name}": _draw(maps[name][0, -1], texts[rows], texts[columns]) for name, (rows, columns) in WHERE.items()}


def _draw(heads: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:  # (h, T, S) -> (H, W, 3) uint8
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(4, len(heads))
    down = -(-len(heads) // across)
    size = (across * (0.16 * len(columns) + 0.4) + 1, down * (0.16 * len(rows) + 0.4) + 1)  # inches: room for each token's text
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis, weights in zip(axes.flat, heads.float().cpu().numpy()):
        axis.imshow(weights, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for n, axis in enumerate(axes.flat):
        axis.set_visible(n < len(heads))
        axis.set_title(f"head {n + 1}", fontsize=8)
        axis.set_xticks(range(len(columns)), [_plain(text) for text in columns], rotation=90, fontsize=7)
        axis.set_yticks(range(len(rows)), [_plain(text) for text in rows], fontsize=7)
        axis.tick_params(length=0)
    canvas.draw()
    return torch.from_numpy(numpy.array(canvas.buffer_rgba())[..., :3])


def _plain(text: str) -> str:
    """matplotlib would read what stands between two dollars as a formula."""
    return text.replace("$", r"\$")
