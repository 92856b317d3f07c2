"""The variational bound of a diffusion model, summed over all of its steps."""

import torch
from torch import Tensor, nn

from zoo.data.base import Data
from zoo.errors import ConfigError
from zoo.evaluation.generation import held_out


def bits_per_dim(objective: nn.Module, data: Data, generator: torch.Generator, items: int | None = None,
                 batch_size: int = 256) -> dict[str, float]:
    """DDPM's eq. 5 on held-out images, in bits a dimension: every one of the T terms, each with one draw of the noise for each image.

    Costs T forward passes an image, in fp32 whatever the precision of the run.

    Args:
        objective: has `steps`, `bound_at(x, t, noise)` and `prior_term(x)`; both give (B,) values in bits a dimension.
        items: how many images, the first of the split; all of them by default.

    Returns:
        bits_per_dim: L_T + ... + L_0, an upper bound of the negative log-likelihood: the sum of the other two.
        rate: L_T + ... + L_1, what it takes to send x_1; distortion: L_0, what the image takes after that (section 4.3).

    Raises:
        ConfigError: if the pixels aren't 256 levels from -1 to 1: the bits would mean nothing.
    """
    split, device = held_out(data), next(objective.parameters()).device
    items = len(split) if items is None else min(items, len(split))
    rate, distortion, seen = 0.0, 0.0, 0
    for (address,) in split.sweeps(batch_size):
        x = split.fetch(address)["image"][: items - seen].to(device)
        _check_levels(x)
        with torch.autocast(device.type, enabled=False):
            terms = torch.stack([_term(objective, x, t, generator) for t in range(objective.steps)] + [objective.prior_term(x)])
        first, *others = terms.double().sum(1).tolist()
        distortion += first
        rate += sum(others)
        seen += len(x)
        if seen == items:
            break
    return {"bits_per_dim": (rate + distortion) / items, "rate": rate / items, "distortion": distortion / items}


def _term(objective: nn.Module, x: Tensor, t: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return objective.bound_at(x, torch.full((len(x),), t, device=x.device), noise)


def _check_levels(x: Tensor) -> None:
    levels = (x + 1) * 127.5
    if not ((levels - levels.round()).abs().amax() < 0.01 and x.amin() >= -1 and x.amax() <= 1):
        raise ConfigError("bits a dimension need pixels of 256 levels from -1 to 1: data.normalise=symmetric, and 8-bit images")
