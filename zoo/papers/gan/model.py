"""Generative Adversarial Nets (Goodfellow et al., 2014, arXiv:1406.2661); and, as the second pair of players, the networks of DCGAN
(Radford, Metz and Chintala, 2016, arXiv:1511.06434).

B batch, Z width of the noise z, C channels, H image side. G: (B, Z) -> images (B, C, H, H); D: images -> (B,) logits of D(x).
"""

import base64
import zlib

import torch
from einops import reduce
from torch import Tensor, nn


class Maxout(nn.Module):
    """h_i(x) = max_j (x^T W_ij + b_ij), j over the pieces of unit i (Goodfellow et al., 2013, arXiv:1302.4389, section 2)."""

    def __init__(self, in_features: int, units: int, pieces: int):
        super().__init__()
        self.pieces = pieces
        self.linear = nn.Linear(in_features, units * pieces)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_features) -> (B, units)
        return reduce(self.linear(x), "B (units pieces) -> B units", "max", pieces=self.pieces)


class MlpGenerator(nn.Module):
    """G(z) = sigmoid(W3 relu(W2 relu(W1 z))): rectifiers and sigmoids, noise at the bottom layer only (section 5).

    Args:
        hidden: width of both hidden layers.
        init_range: weights start as U(-init_range, init_range), hidden biases at zero, as in the authors' released code.
        pixel_means: mean of the training images, a number or one a pixel (C, H, H). The output bias starts as its logit, so that the
            first samples have the right brightness.

    Raises:
        ValueError: if there are neither one nor C H H pixel means.
    """

    output_range = (0.0, 1.0)

    def __init__(self, image_size: int, channels: int = 1, latent: int = 100, hidden: int = 1200, init_range: float = 0.05,
                 pixel_means: Tensor | float = 0.5):
        super().__init__()
        self.latent, self.init_range = latent, init_range
        pixels = channels * image_size**2
        self.pixel_means = torch.as_tensor(pixel_means, dtype=torch.double, device="cpu").flatten()
        if len(self.pixel_means) not in (1, pixels):
            raise ValueError(f"pixel_means has {len(self.pixel_means)} values, not 1 or one for each of the {pixels} pixels")
        self.layers = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels), nn.Sigmoid(),
            nn.Unflatten(1, (channels, image_size, image_size)),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, self.init_range)
        self.layers[4].bias.copy_(self.pixel_means.logit(eps=1e-7))

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H) in (0, 1)
        return self.layers(z)


class MaxoutDiscriminator(nn.Module):
    """Two maxout layers and one logit, trained with dropout (section 5): inputs kept with probability 0.8, hidden units with 0.5.

    What is kept is scaled by 1.25 and 2 (the released code), so that nothing has to be scaled where dropout is off.
    """

    def __init__(self, image_size: int, channels: int = 1, units: int = 240, pieces: int = 5, init_range: float = 0.005):
        super().__init__()
        self.init_range = init_range
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2), Maxout(channels * image_size**2, units, pieces),
            nn.Dropout(0.5), Maxout(units, units, pieces),
            nn.Dropout(0.5), nn.Linear(units, 1),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, self.init_range)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, H) -> (B,) logits
        return self.layers(images).squeeze(1)


def uniform_weights(module: nn.Module, bound: float) -> None:
    """Weights U(-bound, bound), biases zero, in every linear layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def halvings(image_size: int) -> int:
    """How often a DCGAN halves the side of the image: 64 and 32 down to 4, 28 down to 7.

    Raises:
        ValueError: if halving, while the side is even and above 4, does not end at 4, 5 or 7.
    """
    side, count = image_size, 0
    while side % 2 == 0 and side > 4:
        side, count = side // 2, count + 1
    if side not in (4, 5, 7) or not count:
        raise ValueError(f"image_size {image_size} is not 4, 5 or 7 times 2, 4, 8 or a higher power of two")
    return count


class DcganGenerator(nn.Module):
    """z, projected to small maps, then transposed convolutions of stride 2 that halve the width, with batch norm and ReLU; tanh at the end
    (DCGAN figure 1 and section 3).

    Args:
        width: channels before the output; with 128 and 64 pixels the maps have 1024, 512, 256 and 128 channels, as in the figure.
        kernel: side of the kernels, 5 in the authors' code.

    Raises:
        ValueError: if `image_size` is not 4, 5 or 7 times 2, 4, 8, ...
    """

    output_range = (-1.0, 1.0)

    def __init__(self, image_size: int, channels: int = 3, latent: int = 100, width: int = 128, kernel: int = 5):
        super().__init__()
        self.latent = latent
        stages = halvings(image_size)
        widths = [width * 2**i for i in reversed(range(stages))]
        # Departure: batch norm has one scale a channel here too; the authors' code has one for each value of the projection.
        layers = [nn.ConvTranspose2d(latent, widths[0], image_size // 2**stages, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for before, after in zip(widths, [*widths[1:], channels]):
            layers += [nn.ConvTranspose2d(before, after, kernel, 2, (kernel - 1) // 2, kernel % 2, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-2], nn.Tanh())  # no batch norm at the output
        dcgan_init(self)

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H) in (-1, 1)
        return self.layers(z[:, :, None, None])


class DcganDiscriminator(nn.Module):
    """Convolutions of stride 2 that double the width, with batch norm (not at the input) and leaky ReLU 0.2; one logit (DCGAN section 3).

    Raises:
        ValueError: if `image_size` is not 4, 5 or 7 times 2, 4, 8, ...
    """

    def __init__(self, image_size: int, channels: int = 3, width: int = 128, kernel: int = 5):
        super().__init__()
        stages = halvings(image_size)
        widths = [width * 2**i for i in range(stages)]
        layers = []
        for before, after in zip([channels, *widths], widths):
            layers += [nn.Conv2d(before, after, kernel, 2, (kernel - 1) // 2, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        del layers[1]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, image_size // 2**stages, bias=False), nn.Flatten(0))
        dcgan_init(self)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, H) -> (B,) logits
        return self.layers(images)


def dcgan_init(module: nn.Module) -> None:
    """Weights N(0, 0.02^2) (DCGAN section 4); scales of batch norm N(1, 0.02^2) (the authors' code)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


# The released MNIST recipe: 2,503,984 and 1,231,441 parameters.
def gan_mnist_generator(**kwargs) -> MlpGenerator:
    return MlpGenerator(28, pixel_means=mnist_pixel_means(), **kwargs)


def gan_mnist_discriminator(**kwargs) -> MaxoutDiscriminator:
    return MaxoutDiscriminator(28, **kwargs)


# DCGAN at the 64 pixels of its figure 1, and the same rules at other sizes.
def dcgan_generator(image_size: int = 64, channels: int = 3, **kwargs) -> DcganGenerator:
    return DcganGenerator(image_size, channels, **kwargs)


def dcgan_discriminator(image_size: int = 64, channels: int = 3, **kwargs) -> DcganDiscriminator:
    return DcganDiscriminator(image_size, channels, **kwargs)


def mnist_pixel_means() -> Tensor:  # (784,), to within 0.003
    """Mean of each pixel over the first 50,000 training images of MNIST, the released recipe's; the text holds bytes b, the mean is (b / 255)^2."""
    stored = zlib.decompress(base64.b85decode(MNIST_PIXEL_MEANS))
    return torch.tensor(list(stored), dtype=torch.double, device="cpu").div(255).square()


MNIST_PIXEL_MEANS = (
    "c-m!>=~Gf+7{z(-3in=O2?R+HK}6GrFf-A}&@q)UmoaVJM@%d=7e>uNZPGNCP!tzHh(*DGK~vny#{aFWWqs&;J<t2jd7krQF#ZWZfbpLI1j7i5VK^-eMG)v_2rvLZFeb_2"
    "CrMIdGO0wwV>3}0y7mBsFe#o`rpn2Eq|@bV@5;qo5{JR{hX}z-R%(jM>)U(!db^sc^csbTb8XU=AT_(t*xYMfTz74)Ob@jg3$pHTFxrEeJZX-;#xy$b3?C#8qu!;_j>>#h"
    "5&<(HloG3TRh?stp6K!SiytSk?YV)5;%o^81BAs-)s(y(n04(PBoar7qj<nJ(qhPwkT5_=p(3}ueQenuiG%`yP&DedjWj>a6cJaRAT77TH0cQJcpUZ(Zz$|p7-}q1@|h4o"
    "2);~f?EbLn_pB}1Hhg;_=k%L8ot%w90A_Mha-a9kxqL3W-5HGS@2yXCRqN776ryvoQ}XHt7TjOlo4#n`?Bwg}J5x<jI)y^?RmhZr2Fs$$>+#3WFMpnf?c=ZN^cftKJ~T|p"
    "^i7ue4YwzhxVSt&46ayv>Yu22IK%)bTVZG!o>_J{gYlEo!-#iz;&r_~gOAhiFs{0+ZE$LCY1O$Ci${02Z4>6&Le*^?0st4}RCEklXBKP@Z#WtWZQI68Rrv}&M(1RSG{#QL"
    "`}yTH7rj9|?4Gx@mfe?e=^h|Ltf}lAon3YL!uyHi{aweDxwa@va*NIhv68Y%S}mV8gR!Ht^F+k?vA@xvkqZfgt{vyeA6A<u?f%%&@wdILnf}HSty0XvuXsX8VR}Jzx7FtM"
    "`&^%`=DK2yLd<0$S1>^sB}~(n)SKQ~hWk2SJS)hSi?{^(hb4>@NHZTiHk6hY7v|klNrfB&gTZe^VVvS8%aj>vwMrqA2)PuK?g0G78pUuHK~ijrWZ~!y*S`RYk<0G"
)
