from .model import (
    DcganDiscriminator,
    DcganGenerator,
    Maxout,
    MaxoutDiscriminator,
    MlpGenerator,
    dcgan_discriminator,
    dcgan_generator,
    gan_mnist_discriminator,
    gan_mnist_generator,
)
from .objective import AdversarialGame

__all__ = [
    "AdversarialGame",
    "DcganDiscriminator",
    "DcganGenerator",
    "Maxout",
    "MaxoutDiscriminator",
    "MlpGenerator",
    "dcgan_discriminator",
    "dcgan_generator",
    "gan_mnist_discriminator",
    "gan_mnist_generator",
]
