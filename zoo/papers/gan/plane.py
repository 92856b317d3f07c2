"""The game in the plane, where the distributions can be seen (figure 1, with a dimension more). B batch, Z width of the noise z."""

import math

import torch
from torch import Tensor, nn

from .model import Maxout
from .objective import TwoPlayerGame

PIXELS = 160  # side of each panel of the picture


class PointGenerator(nn.Module):
    """MlpGenerator's two layers of rectifiers with two linear outputs."""

    def __init__(self, latent: int = 8, hidden: int = 128):
        super().__init__()
        self.latent = latent
        self.layers = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, 2)
        return self.layers(z)


class PointDiscriminator(nn.Module):
    """MaxoutDiscriminator's two layers of maxout and one logit, without dropout."""

    def __init__(self, units: int = 64, pieces: int = 5):
        super().__init__()
        self.layers = nn.Sequential(Maxout(2, units, pieces), Maxout(units, units, pieces), nn.Linear(units, 1), nn.Flatten(0))

    def forward(self, points: Tensor) -> Tensor:  # (B, 2) -> (B,) logits
        return self.layers(points)


class PlaneGame(TwoPlayerGame):
    """The game about points (B, 2)."""

    item = "point"

    @torch.no_grad()
    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator, samples: int = 10_000, side: float = 6.0) -> dict[str, Tensor]:
        """How dense the data of the batch and `samples` samples are, and D from 0 (black) to 1 (white), on the square of that side."""
        x = (torch.arange(PIXELS, device=generator.device) + 0.5) * (side / PIXELS) - side / 2
        square = torch.stack(torch.meshgrid(x, -x, indexing="xy"), -1)  # row by row from the top
        judged = self.discriminator(square.flatten(0, 1)).sigmoid().view(PIXELS, PIXELS)
        panels = [density(batch["point"], side), density(self.generator(self.draw(samples, generator)["z"]), side), judged]
        picture = torch.cat([torch.nn.functional.pad(panel, (2, 2, 2, 2), value=0.5) for panel in panels], 1)
        picture = picture.repeat_interleave(2, 0).repeat_interleave(2, 1)
        return {"plane": (255 * picture).round().byte().unsqueeze(-1).expand(-1, -1, 3).cpu()}


def density(points: Tensor, side: float) -> Tensor:
    """(n, 2) -> (PIXELS, PIXELS) in [0, 1], the root of how many points lie in each cell; those beyond the square lie in no cell."""
    cells = ((points / side + 0.5) * PIXELS).floor().long()
    column, row = cells[:, 0], PIXELS - 1 - cells[:, 1]
    inside = ((cells >= 0) & (cells < PIXELS)).all(1)
    counts = torch.bincount((row * PIXELS + column)[inside], minlength=PIXELS**2).view(PIXELS, PIXELS).sqrt()
    return counts / counts.max().clamp(min=1)


def mixture_coverage(objective: nn.Module, data: object, generator: torch.Generator, modes: int, radius: float, spread: float,
                     samples: int = 10_000) -> dict[str, float]:
    """How well samples fit a ring of normals, given as to `zoo.data.synthetic.mixture_2d`.

    Returns:
        modes: how many of them have at least half of their share of the samples within 3 standard deviations.
        near: percentage of samples within 3 standard deviations of a mode; of the data themselves 98.9 %.
    """
    points = objective.generator(objective.draw(samples, generator)["z"]).double()
    angles = torch.arange(modes, device=points.device).double() * (2 * math.pi / modes)
    distances = torch.cdist(points, radius * torch.stack([angles.cos(), angles.sin()], 1))  # (n, modes)
    nearest, mode = distances.min(1)
    shares = mode[nearest < 3 * spread].bincount(minlength=modes) / samples
    return {"modes": float((shares > 0.5 / modes).sum()), "near": 100 * shares.sum().item()}
