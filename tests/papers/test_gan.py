"""GAN: counts, the pieces of both players, the game's value and gradients, what each turn may touch, and the game in the plane."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.figures import BLUE, ORANGE, curves, level, panels
from zoo import config
from zoo.data.synthetic import mixture_2d
from zoo.errors import ConfigError
from zoo.papers import gan
from zoo.papers.gan import (
    AdversarialGame,
    ConvMaxoutDiscriminator,
    DcganDiscriminator,
    DcganGenerator,
    DeconvGenerator,
    FaceGenerator,
    LinearGenerator,
    Maxout,
    MaxoutConv,
    MaxoutDiscriminator,
    MlpGenerator,
    PlaneGame,
    PointDiscriminator,
    PointGenerator,
    gan_mnist_discriminator,
    gan_mnist_generator,
    mixture_coverage,
)
from zoo.papers.gan.model import CIFAR10_MEAN, CIFAR10_RANGE, CIFAR10_STD
from zoo.papers.gan.plane import PIXELS, density
from zoo.training.build import build_objective


def mlp_game(**kwargs) -> AdversarialGame:
    torch.manual_seed(0)
    generator = MlpGenerator(8, latent=5, hidden=12, init_range=0.5)
    return AdversarialGame(generator, MaxoutDiscriminator(8, units=6, pieces=3, init_range=0.5), **kwargs)


def dcgan_game(**kwargs) -> AdversarialGame:
    torch.manual_seed(0)
    generator = DcganGenerator(8, channels=2, latent=5, width=4)
    return AdversarialGame(generator, DcganDiscriminator(8, channels=2, width=4), noise_bound=1.0, **kwargs)


def batch_of(game: AdversarialGame, items: int = 6, dtype: torch.dtype = torch.float32) -> dict:
    channels = 2 if isinstance(game.generator, DcganGenerator) else 1
    noise = game.draw(items, torch.Generator().manual_seed(1))["z"].to(dtype)
    return {"image": torch.rand(items, channels, 8, 8, dtype=dtype), "z": noise}


def randomise(module: nn.Module) -> nn.Module:
    for tensor in module.state_dict().values():  # buffers, too; defaults would hide swaps
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module


@pytest.mark.parametrize(
    "preset, parameters",
    [
        (gan_mnist_generator, 2_503_984),  # the released yaml
        (gan_mnist_discriminator, 1_231_441),
        (gan.gan_faces_generator, 100 * 8000 + 8000 * 8000 + 8000 * 48**2 + 8000 + 8000 + 48**2),
        (gan.gan_faces_discriminator, 48**2 * 6000 + 1200 * 6000 + 1200 + 6000 + 6000 + 1),
        (gan.gan_cifar10_generator, 100 * 8000 + 8000 * 8000 + 8000 * 3072 + 8000 + 8000 + 3072),
        (gan.gan_cifar10_discriminator, 3072 * 8000 + 1600 * 8000 + 1600 + 8000 + 8000 + 1),
        (gan.gan_cifar10_conv_generator, 100 * 8000 + 8000 * 8000 + 80 * 3 * 25 + 8000 + 8000 + 3072),  # a bias a pixel
        (gan.gan_cifar10_conv_discriminator, (3 * 64 + 32 * 64) * 64 + 32 * 25 * 384 + 192 * 25 * 2500 + 500 + 64 + 64 + 384 + 2500 + 1),
        (gan.dcgan_generator, 18_855_040),
        (gan.dcgan_discriminator, 17_232_768),
        (lambda: DcganGenerator(64, width=64, kernel=4), 3_576_704),  # pytorch/examples
        (lambda: DcganDiscriminator(64, width=64, kernel=4), 2_765_568),
    ],
)
def test_parameter_counts(preset, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in preset().parameters()) == parameters


def test_maxout_is_the_largest_of_its_pieces():
    layer = Maxout(4, units=3, pieces=5)
    x = torch.randn(7, 4)
    weight, bias = layer.linear.weight.view(3, 5, 4), layer.linear.bias.view(3, 5)
    expected = torch.stack([torch.stack([x @ weight[i, j] + bias[i, j] for j in range(5)]).max(0).values for i in range(3)], 1)
    torch.testing.assert_close(layer(x), expected)


def same(ours, expected, inputs, parameters):
    """Outputs and all gradients in fp64."""
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((outputs * weights).sum(), [inputs, *parameters]) for outputs in (ours, expected)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_convolutional_maxout_is_the_largest_of_its_pieces_and_of_each_window():
    layer = randomise(MaxoutConv(3, maps=4, kernel=4, padding=1, pool=3, pieces=2).double())
    x = torch.randn(2, 3, 9, 12, dtype=torch.double, requires_grad=True)
    weight, bias = layer.conv.weight, layer.conv.bias
    pieces = [F.conv2d(x, weight[j::2], bias[j::2], padding=1) for j in range(2)]  # (2, 4, 8, 11)
    units = torch.maximum(*pieces)
    windows = [[units[:, :, top : top + 3, left : left + 3].amax((2, 3)) for left in range(0, 10, 2)] for top in range(0, 8, 2)]
    expected = torch.stack([torch.stack(row, -1) for row in windows], -2)
    assert expected.shape == (2, 4, 4, 5)  # the last row looks at 2 rows only, where a window that must fit would leave 1 out
    same(layer(x), expected, x, [weight, bias])


def generator_inputs(make) -> tuple[nn.Module, torch.Tensor, list[nn.Parameter], torch.Tensor]:
    """A randomised generator, noise, its parameters, and sigmoid(W2 relu(W1 z)) of them."""
    network = randomise(make().double())
    z = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    w1, b1, w2, b2 = list(network.layers.parameters())[:4]
    return network, z, list(network.parameters()), ((z @ w1.T + b1).relu() @ w2.T + b2).sigmoid()


def test_the_wide_generators_are_rectifiers_below_sigmoids():
    network, z, parameters, codes = generator_inputs(lambda: FaceGenerator(6, 2, latent=5, hidden=7))
    same(network(z), (codes @ parameters[4].T + parameters[5]).sigmoid().view(4, 2, 6, 6), z, parameters)
    network, z, parameters, codes = generator_inputs(lambda: LinearGenerator(6, 2, (0.0, 1.0), latent=5, hidden=7))
    same(network(z), (codes @ parameters[4].T + parameters[5]).view(4, 2, 6, 6), z, parameters)


def test_the_deconvolution_lays_a_kernel_at_every_third_pixel():
    network, z, (bias, *_), codes = generator_inputs(lambda: DeconvGenerator(11, 2, (0.0, 1.0), latent=5, hidden=7, maps=4))
    kernels = network.layers[-1].weight  # (maps, channels, 5, 5)
    maps = codes.view(4, 4, 3, 3)
    expected = bias.expand(4, -1, -1, -1)
    for row in range(3):
        for column in range(3):
            stamp = torch.einsum("bm,mcij->bcij", maps[:, :, row, column], kernels)
            expected = expected + F.pad(stamp, (3 * column, 6 - 3 * column, 3 * row, 6 - 3 * row))
    same(network(z), expected, z, list(network.parameters()))
    assert network.bias.shape == (2, 11, 11)


@pytest.mark.parametrize("size, sides", [(32, (16, 7, 5)), (10, (5, 1, 2)), (27, (13, 5, 4))])
def test_the_convolutional_discriminator_has_the_maps_of_the_released_recipe(size, sides):
    """32 gives 33, pooled 16, 15, pooled 7, 9, pooled 5. The released `partial_sum` of the first two layers, 33 and 15, must divide 33^2 and 15^2."""
    network = ConvMaxoutDiscriminator(size, 3, width=2, units=3)
    x, found = torch.randn(2, 3, size, size), []
    for layer in network.layers:
        x = layer(x)
        found += [x.shape[-1]] if isinstance(layer, MaxoutConv) else []
    assert tuple(found) == sides and network(torch.randn(2, 3, size, size)).shape == (2,)


def test_initial_weights_of_the_wide_players_are_those_of_the_released_recipes():
    torch.manual_seed(0)
    bounds = {
        FaceGenerator(8, latent=20, hidden=400): (0.05, 0.05, None),
        LinearGenerator(8, 3, (0, 1), latent=20, hidden=200): (0.05, 0.05, 0.5),
        DeconvGenerator(8, 3, (0, 1), latent=20, hidden=200, maps=50): (0.05, 0.05, 0.05),
        MaxoutDiscriminator(8, units=50): (0.005,) * 3,
        ConvMaxoutDiscriminator(12, width=4, units=50): (0.005,) * 5,
    }
    for network, expected in bounds.items():
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        for layer, bound in zip(layers, expected, strict=True):
            if bound:
                assert layer.weight.abs().max() <= bound
                assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
            if layer.bias is not None and not isinstance(network, FaceGenerator):
                assert not layer.bias.any()
    faces = next(iter(bounds)).layers
    assert not faces[0].bias.any() and (faces[2].bias == -2).all() and not faces[4].bias.any()  # the logit of 1/2
    chosen = faces[4].weight != 0
    assert (chosen.sum(1) == 100).all() and chosen.any(0).all()
    assert faces[4].weight[chosen].std().item() == pytest.approx(1, rel=0.05)
    bright = FaceGenerator(8, latent=20, hidden=40, pixel_means=0.8).layers[4].bias
    torch.testing.assert_close(bright.sigmoid(), torch.full_like(bright, 0.8))


def test_black_and_white_of_cifar10_are_those_of_standardised_data():
    from zoo.data.pixels import Normaliser

    column = lambda values: torch.tensor(values, dtype=torch.double)[:, None, None]
    normaliser = Normaliser(column(CIFAR10_MEAN), column(CIFAR10_STD))
    generator = LinearGenerator(8, 3, CIFAR10_RANGE, latent=5, hidden=7)
    game = AdversarialGame(generator, MaxoutDiscriminator(8, 3, units=4))
    shades = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        generator.layers[4].weight.zero_()
        generator.layers[4].bias.copy_(normaliser(shades[None]).flatten())
        torch.testing.assert_close(game.images(torch.zeros(2, 5)), (shades / 255).expand(2, -1, -1, -1))
        for shade, beyond in ((1.0, 9.0), (0.0, -9.0)):  # darker than black is black
            generator.layers[4].bias.fill_(beyond)
            assert (game.images(torch.zeros(2, 5)) == shade).all()


def test_initial_weights_are_those_of_the_released_recipe():
    torch.manual_seed(0)
    for network, bound in ((gan_mnist_generator(), 0.05), (gan_mnist_discriminator(), 0.005)):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                assert layer.weight.abs().max() <= bound
                assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
                assert len(layer.bias) == 784 or not layer.bias.any()
    means = gan_mnist_generator().layers[4].bias.sigmoid().view(28, 28)
    assert means.mean().item() == pytest.approx(0.1310, abs=1e-4)  # of the first 50,000 training images
    assert means[:, [0, 27]].max() < 1e-3 and means[14, 14] > 0.5 and means.isfinite().all()


def test_the_first_samples_are_as_bright_as_the_training_images():
    means = torch.linspace(0, 1, 64).view(1, 8, 8)
    generator = MlpGenerator(8, latent=5, hidden=12, init_range=0.0, pixel_means=means)
    torch.testing.assert_close(generator(torch.randn(2, 5)), means.expand(2, 1, 8, 8))
    grey = MlpGenerator(8, latent=5, hidden=12, init_range=0.0, pixel_means=0.3)
    torch.testing.assert_close(grey(torch.randn(2, 5)), torch.full((2, 1, 8, 8), 0.3))


def test_dropout_keeps_inputs_with_probability_0_8_and_hidden_units_with_0_5_and_scales_what_it_keeps():
    torch.manual_seed(0)
    dropouts = [layer for layer in MaxoutDiscriminator(8).train().layers if isinstance(layer, nn.Dropout)]
    for dropout, keep in zip(dropouts, (0.8, 0.5, 0.5), strict=True):
        kept = dropout(torch.ones(100_000))
        assert kept.unique().tolist() == pytest.approx([0, 1 / keep])
        assert kept.mean().item() == pytest.approx(1, abs=0.02)


def test_dcgan_weights_start_as_published():
    torch.manual_seed(0)
    for network in (DcganGenerator(32, width=32), DcganDiscriminator(32, width=32)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1) and layer.bias is None
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.02) and not layer.bias.any()


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("size, channels, maps", [(64, 3, 4), (32, 3, 4), (28, 1, 7), (8, 1, 4)])
def test_dcgan_shapes(size, channels, maps, kernel):
    generator = DcganGenerator(size, channels, latent=7, width=2, kernel=kernel)
    images = generator(torch.randn(3, 7))
    assert images.shape == (3, channels, size, size) and images.abs().max() <= 1
    assert generator.layers[0](torch.randn(3, 7, 1, 1)).shape[-1] == maps
    assert DcganDiscriminator(size, channels, width=2, kernel=kernel)(images).shape == (3,)


def test_dcgan_equals_the_networks_of_pytorch_examples():
    """Their modules in their order, so that their state dicts load once `main.` is `layers.`; theirs has no published package."""
    g = 4  # ngf = ndf
    up = lambda i, o, *geometry: [nn.ConvTranspose2d(i, o, 4, *geometry, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    down = lambda i, o: [nn.Conv2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]
    theirs_g = nn.Sequential(*up(5, 8 * g, 1, 0), *up(8 * g, 4 * g, 2, 1), *up(4 * g, 2 * g, 2, 1), *up(2 * g, g, 2, 1),
                             nn.ConvTranspose2d(g, 3, 4, 2, 1, bias=False), nn.Tanh())
    theirs_d = nn.Sequential(nn.Conv2d(3, g, 4, 2, 1, bias=False), nn.LeakyReLU(0.2), *down(g, 2 * g), *down(2 * g, 4 * g),
                             *down(4 * g, 8 * g), nn.Conv2d(8 * g, 1, 4, 1, 0, bias=False), nn.Sigmoid())
    ours_g, ours_d = DcganGenerator(64, latent=5, width=g, kernel=4).double(), DcganDiscriminator(64, width=g, kernel=4).double()
    z, images = torch.randn(3, 5, dtype=torch.double), torch.randn(3, 3, 64, 64, dtype=torch.double)
    for ours, theirs in ((ours_g, theirs_g), (ours_d, theirs_d)):
        randomise(theirs.double())
        ours.load_state_dict({f"layers.{name}": value for name, value in theirs.state_dict().items()})
    for mode in (True, False):
        for network in (ours_g, ours_d, theirs_g, theirs_d):
            network.train(mode)
        torch.testing.assert_close(ours_g(z), theirs_g(z[:, :, None, None]), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours_d(images).sigmoid(), theirs_d(images).flatten(), rtol=0, atol=1e-12)


def test_noise_is_uniform_with_mean_0_and_variance_1_and_a_function_of_the_generator_alone():
    game = mlp_game()
    z = game.draw(20_000, torch.Generator().manual_seed(3))["z"]
    assert z.shape == (20_000, 5) and z.abs().max() <= math.sqrt(3)
    assert z.mean().item() == pytest.approx(0, abs=0.01) and z.var().item() == pytest.approx(1, abs=0.01)
    assert z.abs().div(math.sqrt(3)).lt(0.25).double().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(z, game.draw(20_000, torch.Generator().manual_seed(3))["z"], rtol=0, atol=0)


def test_without_a_bound_the_noise_is_normal():
    z = mlp_game(noise_bound=None).draw(20_000, torch.Generator().manual_seed(3))["z"]
    assert z.mean().item() == pytest.approx(0, abs=0.01) and z.var().item() == pytest.approx(1, abs=0.02)
    assert z.pow(4).mean().item() == pytest.approx(3, abs=0.1)  # 1.8 where it is uniform
    torch.testing.assert_close(z, mlp_game(noise_bound=None).draw(20_000, torch.Generator().manual_seed(3))["z"], rtol=0, atol=0)


def test_max_norm_scales_down_what_leads_into_a_unit_where_it_is_too_long():
    game = mlp_game(max_norm=1.5)
    layers = [layer for layer in game.modules() if isinstance(layer, nn.Linear)]
    before = [(layer.weight.clone(), layer.bias.clone()) for layer in layers]
    game.after_step(1)
    lengths = torch.cat([weight.norm(dim=1) for weight, _ in before])
    assert (lengths < 1.5).any() and (lengths > 1.5).any()
    for layer, (weight, bias) in zip(layers, before):
        for unit, row in enumerate(weight):
            expected = row if row.norm() <= 1.5 else row * 1.5 / row.norm()
            torch.testing.assert_close(layer.weight[unit], expected)
        assert layer.bias.equal(bias)
    free = mlp_game()
    free.after_step(1)
    assert all(layer.weight.equal(weight) for layer, (weight, _) in zip((m for m in free.modules() if isinstance(m, nn.Linear)), before))


@pytest.mark.parametrize("make", [mlp_game, dcgan_game])
def test_each_turn_trains_one_player_and_all_of_it(make):
    game = make().train()
    batch = batch_of(game)
    for turn, other in (("discriminator", "generator"), ("generator", "discriminator")):
        game.zero_grad(set_to_none=True)
        for name in ("discriminator", "generator"):  # what the loop does
            getattr(game, name).requires_grad_(name == turn)
        terms, logs = game(batch if turn == "discriminator" else {"z": batch["z"]}, turn)
        sum(terms.values()).backward()
        assert all(p.grad is None for p in getattr(game, other).parameters())
        for name, p in getattr(game, turn).named_parameters():
            assert p.grad is not None and p.grad.any(), name
        assert not any(value.requires_grad for value in logs.values())


def test_samples_are_given_to_the_discriminator_without_a_path_back():
    game = mlp_game()
    terms, _ = game(batch_of(game), "discriminator")  # everything requires gradients here
    sum(terms.values()).backward()
    assert all(p.grad is None for p in game.generator.parameters())


def test_turns_are_k_of_the_discriminator_and_one_of_the_generator():
    assert mlp_game(k=3).turns == ("discriminator",) * 3 + ("generator",)
    assert mlp_game().noise_turns == ("generator",)


@pytest.mark.parametrize("make", [mlp_game, dcgan_game])
def test_values_are_sums_over_items(make):
    game = make(saturating=True).double().eval()  # no dropout, no batch statistics
    batch = batch_of(game, dtype=torch.double)
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(2), slice(2, 6))]
    for results in (lambda b: game(b, "discriminator"), lambda b: game(b, "generator"), lambda b: (game.evaluate(b),)):
        for whole, first, second in zip(results(batch), *map(results, halves)):
            for key, value in whole.items():
                assert value.ndim == 0
                torch.testing.assert_close(value, first[key] + second[key], rtol=1e-12, atol=1e-12)


def test_losses_are_the_logarithms_of_equation_1():
    game = mlp_game().double().eval()
    batch = batch_of(game, dtype=torch.double)
    d_real, d_fake = game.discriminator(batch["image"]).sigmoid(), game.discriminator(game.generator(batch["z"])).sigmoid()
    terms, logs = game(batch, "discriminator")
    torch.testing.assert_close(terms["real"] + terms["fake"], -(d_real.log() + (1 - d_fake).log()).sum())
    torch.testing.assert_close((logs["d_real"], logs["d_fake"]), (d_real.sum().detach(), d_fake.sum().detach()))
    torch.testing.assert_close(game(batch, "generator")[0]["loss"], -d_fake.log().sum())
    game.saturating = True
    torch.testing.assert_close(game(batch, "generator")[0]["loss"], (1 - d_fake).log().sum())


class Lookup(nn.Module):
    """A player given by a table: the noise of an item is its row, and so is the pixel."""

    latent, output_range = 1, (0.0, 1.0)

    def __init__(self, table: list[float] | None = None):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([0.0] if table is None else table, dtype=torch.double))

    def forward(self, x):
        return self.table[x.flatten().long()]


class Offset(Lookup):
    def forward(self, x):
        return x.flatten() + self.table


@pytest.mark.parametrize("logit", [-10.0, -1e4, 1e4])
def test_losses_stay_finite_however_sure_the_discriminator_is(logit):
    for saturating in (False, True):
        game = AdversarialGame(Offset(), Lookup([logit]), saturating=saturating)
        zeros = torch.zeros(3, 1, dtype=torch.double)
        values = [*game({"image": zeros, "z": zeros}, "discriminator")[0].values(), *game({"z": zeros}, "generator")[0].values()]
        assert all(value.isfinite() for value in values)


def test_a_confident_discriminator_leaves_no_gradient_to_the_saturating_loss():
    """d/da log(1 - D) = -D and d/da (-log D) = -(1 - D): with D(G(z)) = sigmoid(-10) the ratio is D / (1 - D) = exp(-10)."""
    gradients = {}
    for saturating in (True, False):
        game = AdversarialGame(Offset(), Offset([-10.0]), saturating=saturating)
        terms, _ = game({"z": torch.zeros(1, 1, dtype=torch.double)}, "generator")
        (gradients[saturating],) = torch.autograd.grad(terms["loss"], game.generator.table)
    assert gradients[False].item() == pytest.approx(-torch.tensor(10.0).sigmoid().item())
    assert (gradients[True] / gradients[False]).item() == pytest.approx(math.exp(-10), rel=1e-9)


def value_of(p: list[int], q: list[int], logits: list[float]) -> float:
    """V of data and samples with these frequencies, as the objective evaluates it."""
    states = lambda counts: torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).double()[:, None]
    game = AdversarialGame(Lookup([float(i) for i in range(len(q))]), Lookup(logits))
    statistics = game.evaluate({"image": states(p), "z": states(q)})
    return game.summarise({key: value.item() for key, value in statistics.items()})["value"]


def test_the_value_at_the_best_discriminator_is_minus_log_4_plus_twice_the_divergence():
    """Theorem 1: C(G) = -log 4 + 2 JSD(p || q), with D* = p / (p + q), that is logit log p - log q."""
    assert value_of([3, 1], [3, 1], [0.0, 0.0]) == pytest.approx(-math.log(4), abs=1e-12)
    p, q = [1, 3, 4], [2, 5, 1]
    half = [(a + b) / 16 for a, b in zip(p, q)]
    jsd = sum(a / 8 * math.log(a / 8 / m) + b / 8 * math.log(b / 8 / m) for a, b, m in zip(p, q, half)) / 2
    best = [math.log(a / b) for a, b in zip(p, q)]
    assert value_of(p, q, best) == pytest.approx(-math.log(4) + 2 * jsd, abs=1e-12)
    assert value_of(p, q, [a + 0.1 for a in best]) < value_of(p, q, best)


def descend(game: AdversarialGame, batch: dict[str, torch.Tensor]) -> None:
    """Takes D to the optimum of its turn."""
    options = {"max_iter": 200, "tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(game.discriminator.parameters(), **options)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = sum(game(batch, "discriminator")[0].values())
        total.backward()
        return total

    optimizer.step(loss)


def test_trained_to_its_optimum_the_discriminator_is_p_over_p_plus_q():
    """Proposition 1 without any limit on D (a logit for each state), in fp64: gradients of the game itself lead there. Where p = q it is 1/2
    and the value -log 4."""
    states = lambda counts: torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).double()[:, None]
    for p, q in (([1, 3, 4, 2], [2, 5, 1, 2]), ([2, 3, 1, 4], [2, 3, 1, 4])):
        game = AdversarialGame(Lookup([float(i) for i in range(4)]), Lookup([1.0, -2.0, 0.5, 3.0]))
        batch = {"image": states(p), "z": states(q)}
        descend(game, batch)
        a, b = torch.tensor(p).double(), torch.tensor(q).double()
        torch.testing.assert_close(game.discriminator.table.detach().sigmoid(), a / (a + b), rtol=0, atol=1e-8)
        value = game.summarise({key: value.item() for key, value in game.evaluate(batch).items()})["value"]
        half = (a + b) / 20
        jsd = ((a / 10 * (a / 10 / half).log()).sum() + (b / 10 * (b / 10 / half).log()).sum()) / 2
        assert value == pytest.approx(-math.log(4) + 2 * jsd.item(), abs=1e-12)
        assert (value == pytest.approx(-math.log(4), abs=1e-12)) == (p == q)


class NormalQuantile(nn.Module):
    """z ~ U(-1, 1) -> N(0, 1)."""

    latent, output_range = 1, (0.0, 1.0)

    def forward(self, z):
        return z.clamp(-0.9999, 0.9999).erfinv() * math.sqrt(2)


def test_the_discriminator_converges_to_p_over_p_plus_q():
    """Proposition 1, with p a mixture of two normals and q one normal."""
    torch.manual_seed(0)
    normal = lambda x, mean, std: torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    discriminator = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1), nn.Flatten(0))
    game = AdversarialGame(NormalQuantile(), discriminator, noise_bound=1.0)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    generator, steps, items = torch.Generator().manual_seed(0), 300, 512
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        signs = torch.randint(2, (items, 1), generator=generator) * 2 - 1
        real = signs + 0.5 * torch.randn(items, 1, generator=generator)
        terms, _ = game({"image": real, **game.draw(items, generator)}, "discriminator")
        optimizer.zero_grad()
        (sum(terms.values()) / items).backward()
        optimizer.step()
    x = torch.linspace(-2, 2, 81)
    p, q = (normal(x, -1, 0.5) + normal(x, 1, 0.5)) / 2, normal(x, 0, 1)
    error = (discriminator(x[:, None]).sigmoid() - p / (p + q)).abs()
    assert error.mean() < 0.03 and error.max() < 0.1, (error.mean(), error.max())


def test_samples_are_images_between_0_and_1_whatever_the_generator_gives():
    for game, channels in ((mlp_game(), 1), (dcgan_game(), 2)):
        images = game.eval().sample(4, torch.Generator().manual_seed(0))
        assert images.shape == (4, channels, 8, 8) and images.min() >= 0 and images.max() <= 1 and not images.requires_grad
    symmetric = game.generator(game.draw(4, torch.Generator().manual_seed(0))["z"])
    torch.testing.assert_close(2 * images - 1, symmetric.detach())


def test_interpolations_begin_and_end_at_samples():
    game = mlp_game().eval()
    picture = game.pictures({}, torch.Generator().manual_seed(0))["interpolation"]
    assert picture.shape == (5 * 32, 11 * 32, 3) and picture.dtype == torch.uint8
    ends = (255 * game.sample(10, torch.Generator().manual_seed(0))).round().byte()[:, 0]
    assert picture[:32:4, :32:4, 0].equal(ends[0]) and picture[-32::4, -32::4, 0].equal(ends[9])


def test_batch_statistics_of_data_and_samples_are_apart():
    game = dcgan_game().train()
    batch = batch_of(game)
    real, fake = game.logits(batch)
    torch.testing.assert_close(real, game.discriminator(batch["image"]))
    torch.testing.assert_close(fake, game.discriminator(game.generator(batch["z"])))


def test_accuracies_and_value_of_a_known_discriminator():
    game = AdversarialGame(Lookup([0.0, 1.0]), Lookup([-2.0, 2.0]))
    column = lambda *states: torch.tensor(states, dtype=torch.double)[:, None]
    statistics = game.evaluate({"image": column(1, 1, 1, 0), "z": column(0, 0, 1, 1)})
    metrics = game.summarise({key: value.item() for key, value in statistics.items()})
    right, wrong = math.log(1 / (1 + math.exp(-2))), math.log(1 / (1 + math.exp(2)))
    assert metrics == pytest.approx({"value": (5 * right + 3 * wrong) / 4, "real_accuracy": 75, "fake_accuracy": 50})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mlp_game(k=0), "k is 0: the discriminator needs at least one turn"),
        (lambda: mlp_game(noise_bound=0.0), "noise_bound is 0.0: give a number above 0, or null"),
        (lambda: mlp_game(max_norm=-1.0), "max_norm is -1.0: give a number above 0, or null"),
        (lambda: mlp_game().check({"channels": 3, "image_size": 8}), "the generator draws images of 1x8x8 and the data has 3x8x8"),
        (lambda: unlike_players().check({"channels": 1, "image_size": 8}), "the discriminator does not take the data's images of 1x8x8"),
        (lambda: DeconvGenerator(28, 1, (0, 1)), "image_size 28 is not 5, 8, 11, ..., 32"),
        (lambda: ConvMaxoutDiscriminator(9), "image_size 9 is too small for three layers of pooling: give at least 10"),
        (lambda: mixture_2d(modes=0), "data.modes must be a whole number from 1, not 0"),
        (lambda: mixture_2d(spread=0.0), "data.spread must be a number above 0, not 0.0"),
        (lambda: MlpGenerator(8, pixel_means=torch.zeros(63)), "pixel_means has 63 values, not 1 or one for each of the 64 pixels"),
        (lambda: DcganGenerator(30), "image_size 30 is not 4, 5 or 7 times 2"),
        (lambda: DcganDiscriminator(4), "image_size 4 is not 4, 5 or 7 times 2"),
    ],
)
def test_errors_are_one_clear_sentence(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


def unlike_players() -> AdversarialGame:
    return AdversarialGame(MlpGenerator(8, latent=5, hidden=12), MaxoutDiscriminator(9, units=6))


def test_checking_the_data_changes_nothing():
    game = dcgan_game().train()
    before = {name: value.clone() for name, value in game.state_dict().items()}
    game.check({"channels": 2, "image_size": 8})
    game.check({})
    assert all(value.equal(before[name]) for name, value in game.state_dict().items()) and game.discriminator.training


def test_every_row_is_a_configuration_whose_players_fit_each_other():
    for row in (name for name in config.paper_configs() if name.startswith("gan/")):
        overrides = {
            "gan/cifar10": ["model.generator.hidden=16", "model.discriminator.units=4"],
            "gan/cifar10_conv": ["model.generator.hidden=16", "model.generator.maps=2", "model.discriminator.units=4"],
            "gan/faces": ["model.generator.hidden=16", "model.discriminator.units=4"],
        }
        cfg = config.compose([f"paper={row}", *overrides.get(row, [])])
        assert cfg["name"] == row
        game = build_objective(cfg)
        z = game.draw(2, torch.Generator())["z"]
        assert game.discriminator(game.generator(z)).shape == (2,)
        if row != "gan/mixture_2d":
            game.check({key: cfg["data"][key] for key in ("channels", "image_size")})


# --- the plane


def test_the_mixture_is_the_one_of_its_density():
    data = mixture_2d(seed=1, modes=5, radius=3.0, spread=0.4, valid=100, test=20_000)
    points = data.test.fetch({"index": torch.arange(20_000)})["point"].double()
    angles = torch.arange(5).double() * (2 * math.pi / 5)
    centres = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    nearest = torch.cdist(points, centres).argmin(1)
    assert (nearest.bincount(minlength=5) / 20_000 - 0.2).abs().max() < 0.015
    residues = (points - centres[nearest]) / 0.4
    assert residues.mean(0).abs().max() < 0.03 and (residues.T.cov() - torch.eye(2)).abs().max() < 0.04
    other = mixture_2d(seed=2, modes=5, radius=3.0, spread=0.4)
    batches = [d.train.fetch(d.train.plan(4).batch(7))["point"] for d in (data, data, other)]
    assert batches[0].equal(batches[1]) and not batches[0].equal(batches[2])
    assert not batches[0].equal(data.train.fetch(data.train.plan(4).batch(8))["point"])
    assert data.test.fetch({"index": torch.arange(9)})["point"].equal(other.test.fetch({"index": torch.arange(9)})["point"])


class Points(nn.Module):
    """G that ignores its noise, but for the number of points: it repeats the given ones."""

    latent = 1

    def __init__(self, points: torch.Tensor):
        super().__init__()
        self.points = nn.Parameter(points)

    def forward(self, z):
        return self.points.repeat(len(z) // len(self.points), 1)


def test_coverage_counts_modes_and_points_near_them():
    """Four modes at distance 2; of eight points two each lie at the first and the second, one just within, one just beyond 3 x 0.1 of the third,
    two nowhere."""
    points = torch.tensor([[2.0, 0.0], [2.1, 0.0], [0.0, 2.0], [0.0, 2.0], [-2.29, 0.0], [-2.31, 0.0], [0.0, 0.0], [5.0, 5.0]])
    metrics = mixture_coverage(PlaneGame(Points(points), PointDiscriminator(2)), None, torch.Generator(), modes=4, radius=2.0, spread=0.1, samples=80)
    assert metrics == {"modes": 2.0, "near": 62.5}  # the third has exactly half of its share, which is not more


def test_the_picture_shows_data_samples_and_discriminator_the_right_way_up():
    game = PlaneGame(Points(torch.tensor([[1.5, 1.5]])), Slope())
    picture = game.pictures({"point": torch.tensor([[-1.5, 1.5]])}, torch.Generator(), samples=4)["plane"]
    panel = 2 * (PIXELS + 4)
    assert picture.shape == (panel, 3 * panel, 3) and picture.dtype == torch.uint8
    data, samples, judged = (picture[4:-4, i * panel + 4 : (i + 1) * panel - 4, 0] for i in range(3))
    half = PIXELS
    assert data[:half, :half].max() == 255 and samples[:half, half:].max() == 255  # upper left, upper right
    assert data[:half, half:].max() == samples[:half, :half].max() == data[half:].max() == samples[half:].max() == 0
    assert judged[0, 0] > judged[-1, 0] and judged[0].equal(judged[0, :1].expand(2 * PIXELS))  # brighter where y is larger
    assert density(torch.tensor([[9.0, 0.0]]), 6.0).max() == 0  # beyond the square


class Slope(nn.Module):
    def forward(self, points):
        return points[:, 1]


def judged(figure, axis, judge, title, beside):
    """D of each point of the square from -3 to 3, in colours; their scale stands beside these axes."""
    x = torch.linspace(-3, 3, 120)
    with torch.no_grad():
        values = judge(torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).flatten(0, 1)).view(120, 120).numpy()
    drawn = axis.imshow(values, origin="lower", extent=(-3, 3, -3, 3), cmap="RdBu", vmin=0, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    if beside is not None:
        figure.colorbar(drawn, ax=beside, shrink=0.6, ticks=[0, 0.5, 1])


def dots(axis, points, title, colour):
    """Points of the square from -3 to 3."""
    axis.plot(*points.T.numpy(), ".", color=colour, markersize=3, alpha=0.4, markeredgewidth=0)
    axis.set(title=title, xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(True)


class Affine(nn.Linear):
    """G(z) = A z + b, whose samples of z ~ N(0, I) have the density N(b, A A^T)."""

    latent = 2


@pytest.mark.claim
def test_in_the_plane_the_discriminator_comes_to_p_over_p_plus_q(claim):
    """Proposition 1 with the discriminator of gan/mixture_2d, a fixed generator and new points in every step: p is the mixture, q a normal."""
    seed, steps, batch, rate = claim.seed(3), 800, 512, 1e-2
    torch.manual_seed(seed)
    generator = Affine(2, 2)
    with torch.no_grad():
        generator.weight.copy_(torch.tensor([[1.5, 0.5], [-0.5, 1.0]]))
        generator.bias.copy_(torch.tensor([0.3, -0.2]))
    game, data = PlaneGame(generator, PointDiscriminator(), noise_bound=None).double(), mixture_2d(seed, spread=0.5)
    plan, noise = data.train.plan(batch), torch.Generator().manual_seed(seed)
    draw = lambda points, items: {"point": points["point"].double(), "z": game.draw(items, noise)["z"].double()}
    optimizer = torch.optim.Adam(game.discriminator.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        terms, _ = game(draw(data.train.fetch(plan.batch(step)), batch), "discriminator")
        optimizer.zero_grad()
        (sum(terms.values()) / batch).backward()
        optimizer.step()

    def optimum(x):
        angles = torch.arange(8).double() * (2 * math.pi / 8)
        squares = torch.cdist(x, 2 * torch.stack([angles.cos(), angles.sin()], 1)).square()
        log_p = torch.logsumexp(-squares / (2 * 0.5**2), 1) - math.log(8 * 2 * math.pi * 0.5**2)
        log_q = torch.distributions.MultivariateNormal(generator.bias, generator.weight @ generator.weight.T).log_prob(x)
        return (log_p - log_q).sigmoid()

    with torch.no_grad():
        held = draw(data.test.fetch({"index": torch.arange(10_000)}), 10_000)
        x = torch.cat([held["point"], generator(held["z"])])
        best = optimum(x)
        error = (game.discriminator(x).sigmoid() - best).abs()
        value = game.summarise({key: value.item() for key, value in game.evaluate(held).items()})["value"]
    best_value = (best[:10_000].log() + (1 - best[10_000:]).log()).mean().item()

    def picture():
        figure, axes = panels("Against a fixed generator, the discriminator comes to p / (p + q)", 3, height=2.4)
        for drawn, colour in ((x[:10_000:5], BLUE), (x[10_000::5], ORANGE)):
            dots(axes[0], drawn, "data (blue), samples", colour)
        judged(figure, axes[1], lambda points: game.discriminator(points.double()).sigmoid(), "D, learnt", None)
        judged(figure, axes[2], lambda points: optimum(points.double()), "p / (p + q)", axes)
        return figure

    claim(picture, seed=seed, mean_error=error.mean().item(), spread_of_the_optimum=best.std().item(), value=value, best_value=best_value)
    # Thresholds by seeds 0 to 2: mean error 0.012, 0.012, 0.010; values apart by 0.001 to 0.002. It runs with seed 3, unseen.
    assert best.std() > 0.2  # there is something to learn
    assert error.mean() < 0.025 and error.quantile(0.99) < 0.15
    assert abs(value - best_value) < 0.005 and best_value > -math.log(4) + 0.2


@pytest.mark.claim
def test_against_a_discriminator_ahead_of_it_only_the_other_loss_still_teaches_the_generator(claim):
    """Section 3: early in learning D rejects samples with confidence, and log(1 - D(G(z))) saturates. The gradients of both losses at the same,
    untrained generator, after D alone has had so many turns."""
    seed, batch, turns = claim.seed(3), 256, (0, 10, 20, 50, 100, 200, 500, 1000)
    torch.manual_seed(seed)
    games = {name: PlaneGame(PointGenerator(), PointDiscriminator(), saturating=name == "saturating") for name in ("saturating", "other")}
    game, data, noise = games["other"], mixture_2d(seed), torch.Generator().manual_seed(seed)
    apart = torch.Generator().manual_seed(seed + 1)
    games["saturating"].generator, games["saturating"].discriminator = game.generator, game.discriminator
    plan, optimizer, found = data.train.plan(batch), torch.optim.Adam(game.discriminator.parameters(), 1e-3), {}
    for turn in range(1001):
        if turn in turns:
            draw = game.draw(2000, apart)
            for name, each in games.items():
                loss = each(draw, "generator")[0]["loss"] / 2000
                gradients = torch.autograd.grad(loss, list(game.generator.parameters()))
                found[f"{name}_{turn}"] = torch.cat([g.flatten() for g in gradients]).norm().item()
        terms, _ = game({**data.train.fetch(plan.batch(turn)), **game.draw(batch, noise)}, "discriminator")
        optimizer.zero_grad()
        (sum(terms.values()) / batch).backward()
        optimizer.step()

    def picture():
        figure, axis = panels("Far behind D, only the other loss still teaches the generator")
        of = lambda name: (turns[1:], [found[f"{name}_{turn}"] for turn in turns[1:]])
        curves(axis, {"-log D(G(z))": of("other"), "log(1 - D(G(z)))": of("saturating")}, xscale="log", yscale="log",
               xlabel="turns of D alone", ylabel="norm of the generator's gradient")  # fmt: skip
        return figure

    kept = ("_0", "_50", "_200", "_1000")
    claim(picture, seed=seed, **{name: norm for name, norm in found.items() if name.endswith(kept)})
    # Thresholds by seeds 0 to 2: saturating / other at 0 1.2, 0.75, 1.0; other / saturating at 1000 7500, 3100, 5900. It runs with seed 3, unseen.
    assert found["saturating_0"] > 0.5 * found["other_0"], found  # before D knows anything both teach alike
    assert found["other_1000"] > 100 * found["saturating_1000"] and found["other_1000"] > found["other_0"], found


@pytest.mark.claim
def test_in_the_plane_the_game_ends_with_all_modes_near_minus_log_4(claim, tmp_path):
    from zoo.training.loop import run

    seed = claim.seed(3)
    assert run(config.compose(["paper=gan/mixture_2d", f"run_dir={tmp_path}", f"seed={seed}", "trainer.device=cpu", "trainer.eval_every=250"])) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {name: next(record[f"test/{name}"] for record in reversed(records) if f"test/{name}" in record) for name in ("value", "modes", "near")}

    def picture():
        game = PlaneGame(PointGenerator(), PointDiscriminator())
        game.load_state_dict(load_file(tmp_path / "model.safetensors"))
        values = {record["step"]: record["valid/value"] for record in records if "valid/value" in record}
        figure, axes = panels("The game ends with all modes and a value near -log 4", 3, width_ratios=(1.3, 1, 1))
        curves(axes[0], {"": (list(values), list(values.values()))}, xlabel="updates", ylabel="value of the game (nats)")
        level(axes[0], -math.log(4), "-log 4", va="top")
        axes[0].set_ylim(bottom=-1.42)
        dots(axes[1], game.generator(game.draw(3000, torch.Generator().manual_seed(seed))["z"]).detach(), "samples", BLUE)
        judged(figure, axes[2], lambda points: game.discriminator(points).sigmoid(), "D(x)", axes[1:])
        return figure

    claim(picture, seed=seed, **found)
    # Thresholds by seeds 0 to 2: modes 8; near 96.3, 95.7, 96.1; value -1.376, -1.373, -1.373. It runs with seed 3, unseen.
    assert found["modes"] == 8 and found["near"] > 85 and abs(found["value"] + math.log(4)) < 0.05
