"""What is measured: our model and the one that a user would take instead, at the same shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A classifier of images (batch, 3, size, size).

    Args:
        peers: name -> how to build it; the first one is the reference.
        optimizer: sgd (momentum 0.9), adam or adamw, of what the model doesn't freeze.
        channels_last: what our configurations set for this model; peers keep torch's default.
    """

    ours: Callable[[], nn.Module]
    peers: dict[str, Callable[[], nn.Module]]
    batch: int
    optimizer: str
    channels_last: bool
    size: int = 224

    works = ("step", "inference")  # training ("gradients": without the optimizer), and the other work that is measured
    countable = True  # whether torch counts its products

    def images(self, device: torch.device) -> Tensor:
        return torch.randn(self.batch, 3, self.size, self.size, device=device)

    def fresh(self, device: torch.device) -> Batch:
        """What one repeat gives to all sides."""
        return self.images(device), torch.randint(1000, (self.batch,), device=device)

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return lambda images, labels: F.cross_entropy(model(images).float(), labels)

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        return lambda images, labels: model(images)


@dataclass(frozen=True)
class Diffusing(Case):
    """A U-Net of DDPM in its training, from images to the loss (noise, steps, diffused images), and in DDIM's sampling of `batch` images."""

    steps: int = 10
    works = ("step", "sampling")

    def fresh(self, device: torch.device) -> Batch:
        return (self.images(device).clamp(-1, 1),)

    def loss(self, model: nn.Module) -> Callable[..., Tensor]:
        return (our_diffusion if is_ours(model) else diffusers_diffusion)(model)[0]

    def other_work(self, model: nn.Module) -> Callable[..., object]:
        sample = (our_diffusion if is_ours(model) else diffusers_diffusion)(model)[1]
        return lambda images: sample(len(images), self.steps)


def is_ours(model: nn.Module) -> bool:
    return type(model).__module__.startswith("zoo.")


def our_diffusion(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[int, int], Tensor]]:
    """Mean loss of images, and (n, steps) -> samples: as our loop and `sample` do it."""
    from zoo.papers.ddpm import Diffusion

    diffusion = Diffusion(model).to(next(model.parameters()).device)
    generator = torch.Generator(diffusion.scale.device).manual_seed(0)

    def loss(images: Tensor) -> Tensor:
        terms, _ = diffusion({"image": images, **diffusion.draw(len(images), generator)}, "model")
        return terms["loss"] / len(images)

    return loss, lambda n, steps: diffusion.sample(n, generator, method="ddim", steps=steps)


def diffusers_diffusion(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[int, int], Tensor]]:
    """The same by diffusers' own training script (examples/unconditional_image_generation) and DDIMPipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler

    scheduler, pipeline = DDPMScheduler(num_train_timesteps=1000), DDIMPipeline(model, DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)

    def loss(images: Tensor) -> Tensor:
        noise = torch.randn(images.shape, device=images.device)
        steps = torch.randint(0, 1000, (len(images),), device=images.device)
        return F.mse_loss(model(scheduler.add_noise(images, noise, steps), steps).sample.float(), noise)

    return loss, lambda n, steps: pipeline(batch_size=n, num_inference_steps=steps, output_type="pt").images


def ours(preset: str, **options) -> Callable[[], nn.Module]:
    import zoo

    return lambda: zoo.create_model(preset, **options)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)()

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name)

    return build


def _diffusers(widths: tuple[int, ...], groups: int, dropout: float) -> Callable[[], nn.Module]:
    """The layout of google/ddpm-cifar10-32: 32 pixels, attention at 16."""

    def build() -> nn.Module:
        from diffusers import UNet2DModel

        kinds = ["AttnDownBlock2D" if i == 1 else "DownBlock2D" for i in range(len(widths))]
        return UNet2DModel(
            sample_size=32, block_out_channels=widths, layers_per_block=2, norm_num_groups=groups, norm_eps=1e-6, dropout=dropout,
            down_block_types=kinds, up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
            freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, attention_head_dim=None)  # fmt: skip

    return build


SMALL_UNET = {"image_size": 32, "channels": 3, "width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (16,), "dropout": 0.1}
CASES = {
    "alexnet": Case(ours("alexnet_one_tower"), {"torchvision": _torchvision("alexnet")}, 32, "sgd", True),
    "resnet18": Case(ours("resnet18"), {"torchvision": _torchvision("resnet18"), "timm": _timm("resnet18")}, 8, "sgd", True),
    "resnet50": Case(ours("resnet50_v1_5"), {"torchvision": _torchvision("resnet50"), "timm": _timm("resnet50")}, 4, "sgd", True),
    "vit_s16": Case(ours("vit_s16"), {"timm": _timm("vit_small_patch16_224")}, 4, "adamw", False),
    "ddpm_small": Diffusing(ours("unet_small", **SMALL_UNET), {"diffusers": _diffusers((64, 128, 128), 16, 0.1)}, 16, "adam", False, 32),
    "ddpm_cifar10": Diffusing(ours("unet_cifar10"), {"diffusers": _diffusers((128, 256, 256, 256), 32, 0.1)}, 4, "adam", False, 32),
}
