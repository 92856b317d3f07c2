"""What the first layer learned to look for."""

import torch.nn.functional as F
from torch import Tensor, nn

COLUMNS, ENLARGED = 16, 4


def pictures(model: nn.Module, images: Tensor, shown: Tensor) -> dict[str, Tensor]:
    """conv1: the kernels of the first convolution as figure 3 shows them, each stretched to the full range, grey where a weight is 0.

    Of 96 kernels the upper three rows are the first tower's, the lower three the second's.
    """
    kernels = model.conv1.weight.detach().float().cpu()  # (N, C, k, k)
    if kernels.shape[1] != 3:
        kernels = kernels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    kernels = 0.5 + 0.5 * kernels / kernels.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    tiles = F.pad(kernels.repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3), [2] * 4, value=1.0)
    tiles = F.pad(tiles, [0] * 6 + [0, -len(tiles) % COLUMNS], value=1.0).unflatten(0, (-1, COLUMNS))  # (rows, columns, 3, h, w)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (H, W, 3)
    return {"conv1": (255 * sheet).round().byte()}
