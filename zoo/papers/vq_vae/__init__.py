from .model import VQVAE, EmaVectorQuantizer, VectorQuantizer, vqvae_cifar10, vqvae_dmlab, vqvae_imagenet, vqvae_sonnet
from .objective import CodePrior, VectorQuantization
from .prior import GatedPixelCNN, pixelcnn_imagenet

__all__ = [
    "VQVAE",
    "CodePrior",
    "EmaVectorQuantizer",
    "GatedPixelCNN",
    "VectorQuantization",
    "VectorQuantizer",
    "pixelcnn_imagenet",
    "vqvae_cifar10",
    "vqvae_dmlab",
    "vqvae_imagenet",
    "vqvae_sonnet",
]
