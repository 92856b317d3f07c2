"""GAN: counts, the pieces of both players, the game's value and gradients, and what each turn may touch."""

import math

import pytest
import torch
from torch import nn

from zoo.papers.gan import (
    AdversarialGame,
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
        (dcgan_generator, 18_855_040),
        (dcgan_discriminator, 17_232_768),
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
        (lambda: MlpGenerator(8, pixel_means=torch.zeros(63)), "pixel_means has 63 values, not 1 or one for each of the 64 pixels"),
        (lambda: DcganGenerator(30), "image_size 30 is not 4, 5 or 7 times 2"),
        (lambda: DcganDiscriminator(4), "image_size 4 is not 4, 5 or 7 times 2"),
    ],
)
def test_errors_are_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
