"""Generative Adversarial Nets (Goodfellow et al., 2014, arXiv:1406.2661): the players of its settings, MNIST, faces (TFD) and CIFAR-10, fully
connected and convolutional; and, as a further pair, the networks of DCGAN (Radford, Metz and Chintala, 2016, arXiv:1511.06434).

B batch, Z width of the noise z, C channels, H image side. G: (B, Z) -> images (B, C, H, H); D: images -> (B,) logits of D(x).
All sizes and initial weights of the 2014 players are those of the authors' released configurations; the paper doesn't state them.
"""

import base64
import zlib
from collections.abc import Sequence

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


class MaxoutConv(nn.Module):
    """Maxout whose pieces are convolutions, then max pooling with stride 2; the last windows may reach over the border, so that nothing is
    left out (Goodfellow et al., 2013, section 2; the released code)."""

    def __init__(self, in_channels: int, maps: int, kernel: int, padding: int, pool: int, pieces: int = 2):
        super().__init__()
        self.pieces = pieces
        self.conv = nn.Conv2d(in_channels, maps * pieces, kernel, padding=padding)
        self.pool = nn.MaxPool2d(pool, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:  # (B, in_channels, H, W) -> (B, maps, about H / 2, about W / 2)
        return self.pool(reduce(self.conv(x), "B (maps pieces) H W -> B maps H W", "max", pieces=self.pieces))


class MlpGenerator(nn.Module):
    """G(z) = sigmoid(W3 relu(W2 relu(W1 z))), MNIST's: rectifiers and sigmoids, noise at the bottom layer only (section 5).

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


class FaceGenerator(nn.Module):
    """G(z) = sigmoid(W3 sigmoid(W2 relu(W1 z))), TFD's (the released tfd_pretrain/pretrain.yaml).

    Args:
        hidden: width of both hidden layers; their weights start as U(-0.05, 0.05), the biases of the second at -2: few sigmoids are on.
        fan_in: each pixel starts with so many weights N(0, 1), from units drawn at random; its others are zero.
        pixel_means: mean of the training images; the output bias starts as its logit.
    """

    output_range = (0.0, 1.0)

    def __init__(self, image_size: int, channels: int = 1, latent: int = 100, hidden: int = 8000, fan_in: int = 100, pixel_means: float = 0.5):
        super().__init__()
        self.latent, self.fan_in, self.pixel_means = latent, min(fan_in, hidden), pixel_means
        self.layers = nn.Sequential(
            *rectifiers_and_sigmoids(latent, hidden, hidden), nn.Linear(hidden, channels * image_size**2), nn.Sigmoid(),
            nn.Unflatten(1, (channels, image_size, image_size)),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, 0.05)
        nn.init.constant_(self.layers[2].bias, -2.0)
        weight, bias = self.layers[4].weight, self.layers[4].bias
        chosen = torch.rand_like(weight).topk(self.fan_in).indices  # (pixels, fan_in)
        weight.zero_().scatter_(1, chosen, torch.randn_like(weight[:, : self.fan_in]))
        bias.copy_(torch.tensor(self.pixel_means).logit().expand_as(bias))

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H) in (0, 1)
        return self.layers(z)


class LinearGenerator(nn.Module):
    """G(z) = W3 sigmoid(W2 relu(W1 z)), CIFAR-10's: linear pixels, since these data are standardised and so not confined to [0, 1].

    Args:
        output_range: the values of black and of white, a number each or one a channel, as the data's normalisation makes them.
        hidden: width of both hidden layers; their weights start as U(-0.05, 0.05), those of the output as U(-0.5, 0.5), biases at zero.
    """

    def __init__(self, image_size: int, channels: int, output_range: Sequence, latent: int = 100, hidden: int = 8000):
        super().__init__()
        self.latent, self.output_range = latent, output_range
        self.layers = nn.Sequential(
            *rectifiers_and_sigmoids(latent, hidden, hidden), nn.Linear(hidden, channels * image_size**2),
            nn.Unflatten(1, (channels, image_size, image_size)),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, 0.05)
        nn.init.uniform_(self.layers[4].weight, -0.5, 0.5)

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H), unbounded
        return self.layers(z)


class DeconvGenerator(nn.Module):
    """CIFAR-10's convolutional generator: sigmoid(W2 relu(W1 z)) as maps of S x S, then one transposed convolution ("deconvolution") with
    kernels of 5 and stride 3, H = 3 (S - 1) + 5, and a bias for each pixel. Linear pixels; all weights start as U(-0.05, 0.05).

    Args:
        output_range: as in LinearGenerator.
        hidden: width of the rectifiers.
        maps: how many maps the sigmoids make: of 10 x 10 for images of 32 pixels, 80 of them are 8000 sigmoids.

    Raises:
        ValueError: if `image_size` isn't 3 (S - 1) + 5.
    """

    def __init__(self, image_size: int, channels: int, output_range: Sequence, latent: int = 100, hidden: int = 8000, maps: int = 80):
        super().__init__()
        side, rest = divmod(image_size - 2, 3)
        if rest or side < 1:
            raise ValueError(f"image_size {image_size} is not 5, 8, 11, ..., 32, ...: stride 3 and kernels of 5 make no others")
        self.latent, self.output_range = latent, output_range
        self.layers = nn.Sequential(
            *rectifiers_and_sigmoids(latent, hidden, maps * side**2), nn.Unflatten(1, (maps, side, side)),
            nn.ConvTranspose2d(maps, channels, 5, 3, bias=False),
        )
        self.bias = nn.Parameter(torch.zeros(channels, image_size, image_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, 0.05)
        self.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:  # (B, Z) -> (B, C, H, H), unbounded
        return self.layers(z) + self.bias


def rectifiers_and_sigmoids(latent: int, hidden: int, codes: int) -> list[nn.Module]:
    return [nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, codes), nn.Sigmoid()]


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


class ConvMaxoutDiscriminator(nn.Module):
    """CIFAR-10's convolutional discriminator: three layers of convolutional maxout with pooling, one of maxout, one logit; dropout as above.

    With 32 pixels the maps have sides of 33, 16 (pooled), 15, 7, 9 and 5.

    Args:
        width: maps of the first and the second layer; the third has six times as many.

    Raises:
        ValueError: if `image_size` is below 10: nothing would be left to pool.
    """

    def __init__(self, image_size: int, channels: int = 3, width: int = 32, units: int = 500, init_range: float = 0.005):
        super().__init__()
        if image_size < 10:
            raise ValueError(f"image_size {image_size} is too small for three layers of pooling: give at least 10")
        self.init_range, side = init_range, image_size
        for kernel, padding, pool in ((8, 4, 4), (8, 3, 4), (5, 3, 2)):
            side = -(-(side + 2 * padding - kernel + 1 - pool) // 2) + 1  # -(-a // 2) rounds a / 2 up
        self.layers = nn.Sequential(
            nn.Dropout(0.2), MaxoutConv(channels, width, kernel=8, padding=4, pool=4),
            nn.Dropout(0.5), MaxoutConv(width, width, kernel=8, padding=3, pool=4),
            nn.Dropout(0.5), MaxoutConv(width, 6 * width, kernel=5, padding=3, pool=2), nn.Flatten(),
            nn.Dropout(0.5), Maxout(6 * width * side**2, units, 5),
            nn.Dropout(0.5), nn.Linear(units, 1),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        uniform_weights(self, self.init_range)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, H) -> (B,) logits
        return self.layers(images).squeeze(1)


def uniform_weights(module: nn.Module, bound: float) -> None:
    """Weights U(-bound, bound), biases zero, in every linear and convolutional layer."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
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


# The released TFD recipe: grey faces of 48 pixels; 83,250,304 and 21,037,201 parameters.
def gan_faces_generator(image_size: int = 48, channels: int = 1, **kwargs) -> FaceGenerator:
    return FaceGenerator(image_size, channels, **kwargs)


def gan_faces_discriminator(image_size: int = 48, channels: int = 1, units: int = 1200, **kwargs) -> MaxoutDiscriminator:
    return MaxoutDiscriminator(image_size, channels, units=units, **kwargs)


# The released CIFAR-10 recipes: fully connected, 89,395,072 and 37,393,601 parameters; convolutional, 64,825,072 and 12,454,073.
# Departure: they normalised the contrast of each image, which cannot be undone. Here each channel has mean 0 and deviation 1 over the
# training set, which is the same scale (theirs: a norm of 55 over 3072 values, a deviation of 0.99).
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR10_RANGE = tuple(tuple((end - mean) / std for mean, std in zip(CIFAR10_MEAN, CIFAR10_STD)) for end in (0.0, 1.0))


def gan_cifar10_generator(**kwargs) -> LinearGenerator:
    return LinearGenerator(32, 3, CIFAR10_RANGE, **kwargs)


def gan_cifar10_discriminator(units: int = 1600, **kwargs) -> MaxoutDiscriminator:
    return MaxoutDiscriminator(32, 3, units=units, **kwargs)


def gan_cifar10_conv_generator(**kwargs) -> DeconvGenerator:
    return DeconvGenerator(32, 3, CIFAR10_RANGE, **kwargs)


def gan_cifar10_conv_discriminator(**kwargs) -> ConvMaxoutDiscriminator:
    return ConvMaxoutDiscriminator(32, 3, **kwargs)


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
