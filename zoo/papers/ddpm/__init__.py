from .model import UNet, unet_256, unet_cifar10, unet_small
from .objective import Diffusion
from .process import Process

__all__ = ["Diffusion", "Process", "UNet", "unet_256", "unet_cifar10", "unet_small"]
