from .model import UNet, unet_256, unet_cifar10, unet_small
from .objective import Diffusion

__all__ = ["Diffusion", "UNet", "unet_256", "unet_cifar10", "unet_small"]
