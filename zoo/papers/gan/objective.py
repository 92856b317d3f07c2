"""The two-player game of Generative Adversarial Nets (equation 1, algorithm 1)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TwoPlayerGame(nn.Module):
    """min_G max_D V(D, G) = E_x log D(x) + E_z log(1 - D(G(z)))   (equation 1), whatever x may be: the entry `item` of a batch.

    D's turn descends -V, whose two halves are the terms `real` and `fake`. G's turn descends -log D(G(z)), or log(1 - D(G(z))) where
    `saturating`: the same fixed point, but the second has no gradient while D tells samples from data with confidence (section 3).
    With a = logit of D: -log D = softplus(-a), -log(1 - D) = softplus(a); nothing overflows and log 0 doesn't occur.

    Args:
        generator: (B, Z) -> items, with `latent` = Z.
        discriminator: items -> (B,) logits.
        k: turns of D in each iteration (algorithm 1; the paper uses 1).
        noise_bound: z ~ U(-noise_bound, noise_bound) in each of the Z dimensions; sqrt(3) has variance 1. None: z ~ N(0, I).
        max_norm: after each iteration, the weights into a unit (a piece, in maxout) of a linear layer are scaled down to this norm where
            theirs is larger.

    Raises:
        ValueError: if k is below 1, or noise_bound or max_norm isn't above 0.
    """

    item = "image"
    noise_turns = ("generator",)

    def __init__(self, generator: nn.Module, discriminator: nn.Module, k: int = 1, saturating: bool = False,
                 noise_bound: float | None = math.sqrt(3), max_norm: float | None = None):
        super().__init__()
        if k < 1:
            raise ValueError(f"k is {k}: the discriminator needs at least one turn an iteration")
        for name, value in (("noise_bound", noise_bound), ("max_norm", max_norm)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: give a number above 0, or null")
        self.generator, self.discriminator = generator, discriminator
        self.saturating, self.noise_bound, self.max_norm = saturating, noise_bound, max_norm
        self.turns = ("discriminator",) * k + ("generator",)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape, device = (batch_size, self.generator.latent), generator.device
        if self.noise_bound is None:
            return {"z": torch.randn(shape, generator=generator, device=device)}
        return {"z": (2 * torch.rand(shape, generator=generator, device=device) - 1) * self.noise_bound}

    def forward(self, batch: dict[str, Tensor], turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sums over the items of the batch; the logs `d_real` and `d_fake` are D(x) and D(G(z))."""
        if turn == "discriminator":
            real, fake = self.logits(batch)
            terms = {"real": F.softplus(-real).sum(), "fake": F.softplus(fake).sum()}
            return terms, {"d_real": real.detach().sigmoid().sum(), "d_fake": fake.detach().sigmoid().sum()}
        fake = self.discriminator(self.generator(batch["z"]))
        loss = -F.softplus(fake) if self.saturating else F.softplus(-fake)
        return {"loss": loss.sum()}, {"d_fake": fake.detach().sigmoid().sum()}

    def logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """D's logits of the data and of as many samples, which D sees as given: no gradient reaches G.

        Two calls, not one on both: where D has batch norm, neither side takes part in the other's statistics.
        """
        with torch.no_grad():
            samples = self.generator(batch["z"])
        return self.discriminator(batch[self.item]), self.discriminator(samples)

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        real, fake = (a.double() for a in self.logits(batch))
        return {
            "real": F.softplus(-real).sum(), "fake": F.softplus(fake).sum(),
            "real_correct": (real > 0).double().sum(), "fake_correct": (fake < 0).double().sum(),
            "items": real.new_tensor(len(real)),
        }

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """V at these two players (-log 4 = -1.386 if D can tell nothing, 0 if it can tell all), and how often D is right, in percent."""
        items = statistics["items"]
        return {
            "value": -(statistics["real"] + statistics["fake"]) / items,
            "real_accuracy": 100 * statistics["real_correct"] / items,
            "fake_accuracy": 100 * statistics["fake_correct"] / items,
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self.max_norm is None:
            return
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # weight (units, inputs)
                layer.weight.mul_((self.max_norm / layer.weight.norm(dim=1, keepdim=True)).clamp(max=1))


class AdversarialGame(TwoPlayerGame):
    """The game about images (B, C, H, W). The generator has `output_range`, too: the values that black and white have in its images and in
    the data, a number each or one a channel."""

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where G draws, or D takes, other images than the data's."""
        if not {"channels", "image_size"} <= facts.keys():
            return
        wanted = (facts["channels"], facts["image_size"], facts["image_size"])
        size, training, like = "x".join(map(str, wanted)), self.training, next(self.parameters())
        try:
            with torch.no_grad():
                self.eval()
                images = self.generator(like.new_zeros(1, self.generator.latent))
                if images.shape[1:] != wanted:
                    drawn = "x".join(map(str, images.shape[1:]))
                    raise ValueError(f"the generator draws images of {drawn} and the data has {size}: choose networks of that size")
                self.discriminator(images)
        except RuntimeError as error:
            raise ValueError(f"the discriminator does not take the data's images of {size}: {str(error).splitlines()[0]}") from error
        finally:
            self.train(training)

    @torch.no_grad()
    def images(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H) in [0, 1], whatever the range of G's output
        images = self.generator(z)
        low, high = (images.new_tensor(end).view(-1, 1, 1) for end in self.generator.output_range)
        return ((images - low) / (high - low)).clamp(0, 1)  # linear pixels may be darker than black

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.images(self.draw(n, generator)["z"])

    def pictures(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Figure 3: samples along straight lines between two draws of z, a row each."""
        start, end = self.draw(10, generator)["z"].unsqueeze(1).chunk(2)
        t = torch.linspace(0, 1, 11, device=start.device).unsqueeze(1)
        rows = self.images(torch.lerp(start, end, t).flatten(0, 1))
        strip = rearrange(rows, "(row column) C H W -> (row H) (column W) C", row=5)
        picture = (255 * strip).round().byte().expand(-1, -1, 3).cpu()
        scale = max(1, 32 // rows.shape[-1])
        return {"interpolation": picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)}
