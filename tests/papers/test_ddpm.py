"""DDPM: the U-Net against diffusers', the process against its schedulers and against closed forms, the bound, the samplers."""

import math

import pytest
import torch
from torch import nn

from zoo.errors import ConfigError
from zoo.evaluation.diffusion import bits_per_dim
from zoo.papers.ddpm import Diffusion, UNet, unet_256, unet_cifar10, unet_small
from zoo.papers.ddpm.convert import from_diffusers, to_diffusers
from zoo.papers.ddpm.objective import discretized_log_likelihood

TINY = dict(image_size=8, channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.double)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float)


class Constant(nn.Module):
    """A network without weights: predicts `factor(t) * x_t`."""

    channels, image_size = 1, 2

    def __init__(self, factor=lambda t: torch.zeros(t.shape)):
        super().__init__()
        self.factor = factor
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return self.factor(t)[:, None, None, None] * x


def levels(*shape):
    """Random images of 256 levels from -1 to 1, the first two pixels at the ends."""
    x = torch.randint(256, shape) / 127.5 - 1
    x.view(-1)[0], x.view(-1)[1] = -1, 1
    return x


def randomised(network):
    for p in network.parameters():  # the initial zeros and ones would hide swapped tensors
        nn.init.normal_(p, std=0.3)
    return network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The network


@pytest.mark.parametrize("preset, options, parameters", [
    (unet_cifar10, {}, 35_746_307), (unet_256, {}, 113_673_219), (unet_256, {"width": 192}, 255_677_955), (unet_small, {}, 176_849),
])
def test_parameter_counts(preset, options, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in preset(**options).parameters()) == parameters


def theirs_of(ours_options):
    from diffusers import UNet2DModel

    o = ours_options
    sides = [o["image_size"] // 2**i for i in range(len(o["multipliers"]))]
    attends = [side in o["attention"] for side in sides]
    return UNet2DModel(
        sample_size=o["image_size"], in_channels=o["channels"], out_channels=o["channels"], layers_per_block=o["blocks"],
        block_out_channels=[o["width"] * m for m in o["multipliers"]], norm_num_groups=o["groups"], norm_eps=1e-6,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, attention_head_dim=None)  # as google/ddpm-cifar10-32


@pytest.mark.parametrize("options", [
    TINY,
    dict(image_size=16, channels=3, width=8, multipliers=(1, 1, 2), blocks=2, attention=(8,), groups=2),
    dict(image_size=8, channels=1, width=8, multipliers=(1, 3, 2), blocks=1, attention=(8, 2), groups=8),
])
def test_outputs_and_gradients_equal_diffusers(options):
    pytest.importorskip("diffusers")
    theirs = randomised(theirs_of(options).double())
    ours = UNet(**options)
    ours.load_state_dict(from_diffusers(theirs.state_dict()))
    side = options["image_size"]
    x, t = torch.randn(3, options["channels"], side, 2 * side), torch.tensor([0, 17, 999])
    torch.testing.assert_close(ours(x, t), theirs(x, t).sample, rtol=0, atol=1e-10)
    weights = torch.randn_like(x)
    (ours(x, t) * weights).sum().backward()
    (theirs(x, t).sample * weights).sum().backward()
    gradients = from_diffusers({name: p.grad for name, p in theirs.named_parameters()})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-10, atol=1e-10)


def test_names_convert_there_and_back_old_ones_too():
    pytest.importorskip("diffusers")
    theirs = theirs_of(TINY).state_dict()
    ours = from_diffusers(theirs)
    assert ours.keys() == UNet(**TINY).state_dict().keys()
    back = to_diffusers(ours)
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in back)
    old = {}
    for name, value in theirs.items():
        for new_part, old_part in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
            name = name.replace(new_part, old_part)
        old[name] = value
    assert all(torch.equal(value, ours[name]) for name, value in from_diffusers(old).items())


def test_initialisation_is_the_released_code_s():
    model = UNet(**{**TINY, "width": 32})
    bound = math.sqrt(6 / (32 + 128))
    assert 0.9 * bound < model.time[0].weight.abs().max() <= bound
    qkv = model.down[1].attentions[0].qkv.weight  # 64 -> 3 x 64, each projection with its own fans
    assert 0.9 * math.sqrt(6 / 128) < qkv.abs().max() <= math.sqrt(6 / 128)
    zeros = [model.conv_out, model.middle.attention.proj, model.middle.block1.conv2, model.up[0].blocks[1].conv2]
    assert all(0 < layer.weight.abs().max() < 1e-5 for layer in zeros)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    x = torch.randn(2, 2, 8, 8)
    assert model(x, torch.tensor([3, 4])).abs().max() < 1e-4  # so it begins by predicting no noise


def test_sides_and_channels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of 8: 4 levels halve it 3 times"):
        UNet(30)
    with pytest.raises(ValueError, match="width 48 must be even, at least 4 and a multiple of groups 32"):
        UNet(width=48)
    for shape in ((1, 3, 8, 8), (1, 2, 8, 9)):
        with pytest.raises(ValueError, match=r"do not fit a U-Net for 2 channels and sides that are multiples of 2"):
            UNet(**TINY)(torch.zeros(shape), torch.zeros(1, dtype=torch.long))


# The process


def schedulers(name, **options):
    """diffusers' scheduler, on our float64 schedule: its own is float32."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(clip_sample=True, **options)
    diffusion = Diffusion(Constant())
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), torch.tensor(diffusion.abar[:-1]), rtol=1e-4, atol=0)
    scheduler.alphas_cumprod, scheduler.one = torch.tensor(diffusion.abar[:-1]), torch.tensor(1.0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    return scheduler


@pytest.mark.parametrize("t", [1, 2, 500, 999])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_diffusing_and_ancestral_steps_equal_diffusers(variance, t):
    scheduler = schedulers("DDPMScheduler", variance_type=variance)
    diffusion = Diffusion(Constant(), variance=variance)
    x, eps, items_t = levels(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.full((4,), t)
    x_t = diffusion.diffuse(x, items_t, eps)
    torch.testing.assert_close(x_t, scheduler.add_noise(x, eps, items_t), rtol=0, atol=1e-12)
    predicted = eps + 0.3 * torch.randn_like(eps)
    theirs = scheduler.step(predicted, t, x_t, generator=generator(3))
    x0_hat = diffusion.predict_x0(x_t, items_t, predicted, clip=True)
    torch.testing.assert_close(x0_hat, theirs.pred_original_sample, rtol=0, atol=1e-12)
    c_0, c_t, sigma = diffusion.ancestral(t, t - 1)
    ours = c_0 * x0_hat + c_t * x_t + sigma * torch.randn(x.shape, generator=generator(3))
    torch.testing.assert_close(ours, theirs.prev_sample, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_steps_equal_diffusers(eta):
    scheduler = schedulers("DDIMScheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    diffusion = Diffusion(Constant())
    x_t, predicted = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    for t, s in ((999, 979), (39, 19), (19, -1)):
        assert t in scheduler.timesteps
        theirs = scheduler.step(predicted, t, x_t, eta=eta, use_clipped_model_output=True, generator=generator(3) if eta else None)
        x0_hat = diffusion.predict_x0(x_t, torch.full((4,), t), predicted, clip=True)
        c_0, c_t, sigma = diffusion.ddim(t, s, eta)
        ours = c_0 * x0_hat + c_t * x_t + sigma * torch.randn(x_t.shape, generator=generator(3))
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=0, atol=1e-10)


@pytest.mark.parametrize("t, s", [(1, 0), (7, 6), (9, 2), (5, -1)])
def test_posterior_is_gaussian_conditioning(t, s):
    """q(x_s | x_t, x_0) from the joint of (x_s, x_t): mean_s + cov_st / var_t (x_t - mean_t), var_s - cov_st^2 / var_t."""
    diffusion = Diffusion(Constant(), steps=10, beta_start=0.01, beta_end=0.3)
    beta = torch.linspace(0.01, 0.3, 10)
    scale_s, var_s = torch.ones(()), torch.zeros(())
    for b in beta[: s + 1]:
        scale_s, var_s = scale_s * (1 - b).sqrt(), var_s * (1 - b) + b
    scale, var_t = torch.ones(()), var_s
    for b in beta[s + 1 : t + 1]:
        scale, var_t = scale * (1 - b).sqrt(), var_t * (1 - b) + b
    covariance, scale_t = scale * var_s, scale * scale_s
    c_0, c_t, variance = diffusion.posterior(t, s)
    assert c_t == pytest.approx((covariance / var_t).item(), abs=1e-12)
    assert c_0 == pytest.approx((scale_s - covariance / var_t * scale_t).item(), abs=1e-12)
    assert variance == pytest.approx((var_s - covariance**2 / var_t).item(), abs=1e-12)


# The bound


@pytest.mark.parametrize("mean, sigma", [(0.0, 0.01), (0.3, 0.2), (-1.0, 0.004), (2.5, 0.05), (-0.9961, 3.0)])
def test_probabilities_of_the_256_values_sum_to_one(mean, sigma):
    x = torch.arange(256) / 127.5 - 1
    for dtype, tolerance in ((torch.double, 1e-12), (torch.float, 2e-5)):
        log_p = discretized_log_likelihood(x.to(dtype), torch.tensor(mean, dtype=dtype), sigma)
        assert log_p.isfinite().all()
        assert log_p.exp().sum().item() == pytest.approx(1, abs=tolerance)


def test_a_bin_is_the_difference_of_two_cdfs_and_its_tails_do_not_vanish():
    normal = torch.distributions.Normal(0.1, 0.05)
    x = torch.tensor([100, 128, 150]) / 127.5 - 1
    plain = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    torch.testing.assert_close(discretized_log_likelihood(x, torch.tensor(0.1), 0.05), plain)
    far = discretized_log_likelihood(torch.tensor([-0.5, 0.5]), torch.zeros(2), torch.tensor(1e-3))
    assert (far < -1e5).all() and far[0].item() == pytest.approx(far[1].item())  # 1e-12 as the least probability would give -28


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_terms_are_kl_divergences_and_carry_the_weight_of_eq_12(variance):
    diffusion = Diffusion(Constant(), steps=20, beta_start=0.01, beta_end=0.3, variance=variance, clip=False)
    beta = torch.linspace(0.01, 0.3, 20)
    x, eps, predicted = levels(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    for t in (1, 2, 19):
        items_t = torch.tensor([t])
        x_t = diffusion.diffuse(x, items_t, eps)
        x0_hat = diffusion.predict_x0(x_t, items_t, predicted, clip=False)
        c_0, c_t, q_variance = diffusion.posterior(t, t - 1)
        sigma2 = beta[t].item() if variance == "fixed_large" else q_variance
        q = torch.distributions.Normal(c_0 * x + c_t * x_t, q_variance**0.5)
        p = torch.distributions.Normal(c_0 * x0_hat + c_t * x_t, sigma2**0.5)
        kl = torch.distributions.kl_divergence(q, p).mean() / math.log(2)
        term = diffusion.bound_term(x, items_t, x0_hat)
        torch.testing.assert_close(term, kl[None], rtol=1e-9, atol=0)
        weight = beta[t] ** 2 / (2 * sigma2 * (1 - beta[t]) * (1 - diffusion.abar[t]))
        constant = diffusion.bound_term(x, items_t, x)
        torch.testing.assert_close(term - constant, weight * (eps - predicted).square().mean()[None] / math.log(2))
    prior = torch.distributions.Normal(diffusion.abar[19] ** 0.5 * x, (1 - diffusion.abar[19]) ** 0.5)
    expected = torch.distributions.kl_divergence(prior, torch.distributions.Normal(0.0, 1.0)).mean() / math.log(2)
    torch.testing.assert_close(diffusion.prior_term(x), expected[None])


def test_the_estimate_of_evaluate_is_the_exact_bound_on_average():
    diffusion = Diffusion(Constant(lambda t: 0.2 + 0.1 * t), steps=5, beta_start=0.01, beta_end=0.3)
    x = levels(1, 1, 2, 2).expand(20_000, -1, -1, -1)
    statistics = diffusion.evaluate({"image": x, **diffusion.draw(len(x), generator())})
    estimate = diffusion.summarise({name: value.item() for name, value in statistics.items()})
    noise = torch.randn(x.shape)
    terms = [diffusion.bound_at(x, torch.full((len(x),), t), noise).mean() for t in range(5)]
    exact = (sum(terms) + diffusion.prior_term(x[:1]).squeeze()).item()
    assert estimate["bits_per_dim_estimate"] == pytest.approx(exact, rel=0.02)


def test_bits_of_gaussian_data_under_their_ideal_denoiser_are_their_entropy():
    """Where x_0 ~ N(0, s^2), E[eps | x_t] is linear in x_t. Beta is nearly the best variance, so the bound nearly touches the entropy."""
    s2, schedule = 0.04, dict(steps=100, beta_start=1e-3, beta_end=0.2)
    abar = torch.tensor(Diffusion(Constant(), **schedule).abar[:-1])
    diffusion = Diffusion(Constant(lambda t: (1 - abar[t]).sqrt() / (abar[t] * s2 + 1 - abar[t])), **schedule)
    x = ((torch.randn(1000, 1, 2, 2) * s2**0.5 + 1) * 127.5).round() / 127.5 - 1
    bits = bits_per_dim(diffusion, Set(x), generator())
    assert bits["bits_per_dim"] == pytest.approx(bits["rate"] + bits["distortion"])
    entropy = math.log2(2 * math.pi * math.e * s2) / 2 - math.log2(2 / 255)
    assert entropy - 0.05 < bits["bits_per_dim"] < entropy + 0.25
    # The rate in closed form: q(x_{t-1} | x_t, x_0) and p have means c_0 (x_0 - E[x_0 | x_t]) apart, of variance c_0^2 Var[x_0 | x_t].
    rate = 0.5 * (abar[-1] * s2 - abar[-1] - (1 - abar[-1]).log())
    for t in range(1, 100):
        c_0, _, variance = diffusion.posterior(t, t - 1)
        beta = 1 - abar[t] / abar[t - 1]
        posterior_of_x0 = s2 * (1 - abar[t]) / (abar[t] * s2 + 1 - abar[t])
        rate += 0.5 * (variance / beta - 1 + (beta / variance).log() + c_0**2 * posterior_of_x0 / beta)
    assert bits["rate"] == pytest.approx(rate.item() / math.log(2), rel=0.02)


class Set:
    """Data with a test split only."""

    def __init__(self, images):
        self.images, self.test, self.valid = images, self, None

    def __len__(self):
        return len(self.images)

    def sweeps(self, batch_size):
        return [[{"index": index}] for index in torch.arange(len(self)).split(batch_size)]

    def fetch(self, address):
        return {"image": self.images[address["index"]]}


def test_bits_per_dim_of_the_first_items_does_not_depend_on_the_others():
    diffusion, x = Diffusion(Constant(), steps=3, beta_start=0.1, beta_end=0.3), levels(7, 1, 2, 2)
    few, all_ = (bits_per_dim(diffusion, Set(images), generator(), items, 5) for images, items in ((x, 4), (x[:4], None)))
    assert few == all_
    with pytest.raises(ConfigError, match=r"256 levels from -1 to 1: data.normalise=symmetric"):
        bits_per_dim(diffusion, Set((x + 1) / 2 + 0.001), generator())


# Training and sampling


def learner(**options):
    return Diffusion(randomised(UNet(**TINY)), steps=10, beta_start=0.01, beta_end=0.3, **options)


@pytest.mark.parametrize("loss", ["simple", "bound"])
def test_sums_add_up_and_every_parameter_learns(loss):
    diffusion = learner(loss=loss)
    batch = {"image": levels(6, 2, 8, 8), **diffusion.draw(6, generator())}
    batch["t"][0] = 0
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 6))]
    whole, parts = diffusion(batch, "model"), [diffusion(half, "model") for half in halves]
    for i in (0, 1):
        for name, value in whole[i].items():
            torch.testing.assert_close(value, parts[0][i][name] + parts[1][i][name])
    statistics, (first, second) = diffusion.evaluate(batch), map(diffusion.evaluate, halves)
    for name, value in statistics.items():
        assert value.dtype == torch.double
        torch.testing.assert_close(value, first[name] + second[name])
    whole[0]["loss"].backward()
    for name, p in diffusion.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_the_simple_loss_is_the_mean_square_of_the_noise_for_a_network_that_says_nothing():
    diffusion = Diffusion(Constant())
    batch = {"image": levels(50, 1, 2, 2), **diffusion.draw(50, generator())}
    assert batch["t"].dtype == torch.long and batch["t"].min() >= 0 and batch["t"].max() < 1000
    torch.testing.assert_close(diffusion(batch, "model")[0]["loss"], batch["noise"].square().flatten(1).mean(1).sum())


def test_far_off_predictions_early_in_training_have_finite_gradients():
    diffusion = Diffusion(randomised(UNet(**TINY)), loss="bound").float()
    batch = {"image": levels(3, 2, 8, 8).float(), "t": torch.tensor([0, 1, 999]), "noise": torch.randn(3, 2, 8, 8).float()}
    nn.init.normal_(diffusion.model.conv_out.weight, std=100)
    diffusion(batch, "model")[0]["loss"].backward()
    assert all(p.grad.isfinite().all() for p in diffusion.parameters())


def test_nothing_but_the_network_is_stored_and_the_tables_are_float64_before_they_are_rounded():
    diffusion = learner()
    assert {name.split(".")[0] for name in diffusion.state_dict()} == {"model"}
    torch.set_default_dtype(torch.float)
    single = Diffusion(Constant())
    torch.set_default_dtype(torch.double)
    exact = Diffusion(Constant())
    for (name, rounded), (_, table) in zip(single.named_buffers(), exact.named_buffers()):
        assert torch.equal(rounded, table.float()), name


def test_ddim_with_eta_1_and_all_steps_is_ancestral_with_the_small_variance():
    diffusion = learner(variance="fixed_small")
    ancestral = diffusion.sample(3, generator())
    torch.testing.assert_close(diffusion.sample(3, generator(), method="ddim", eta=1.0), ancestral, rtol=0, atol=1e-10)
    assert (diffusion.sample(3, generator(), method="ddim") - ancestral).abs().max() > 1e-3


def test_samples_depend_on_the_generator_alone():
    diffusion = learner()
    first = diffusion.sample(5, generator(1), batch_size=2)
    assert first.shape == (5, 2, 8, 8) and first.min() >= 0 and first.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(first, diffusion.sample(5, generator(1), batch_size=2))
    assert not torch.equal(first, diffusion.sample(5, generator(2), batch_size=2))
    assert diffusion.training and not first.requires_grad


def test_sampling_drops_nothing_out():
    model = randomised(UNet(**TINY, dropout=0.5))
    diffusion = Diffusion(model, steps=4, beta_start=0.1, beta_end=0.5)
    assert torch.equal(diffusion.sample(2, generator()), diffusion.sample(2, generator()))
    assert model.training and model.middle.block1.dropout.training


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_any_number_of_steps_runs_from_pure_noise_to_the_image(steps):
    diffusion = learner()
    for method in ("ancestral", "ddim"):
        times = [t for t, _, _ in diffusion.trajectory(1, generator(), method, steps)]
        assert len(times) == steps == len(set(times)) and times == sorted(times, reverse=True)
        assert times[0] == 9 and (steps < 10 or times[-1] == 0)


@pytest.mark.parametrize("variance, eps_over_x, spread", [
    ("fixed_large", lambda abar: (1 - abar).sqrt(), lambda abar: 1.0),  # x_0 ~ N(0, I)
    ("fixed_small", lambda abar: (1 - abar).rsqrt(), lambda abar: (1 - abar).sqrt()),  # x_0 = 0
])
def test_each_variance_is_right_for_the_data_that_section_3_2_names(variance, eps_over_x, spread):
    """Under the ideal denoiser the chain then has at each t the very spread that the diffused data have."""
    schedule = dict(steps=20, beta_start=0.01, beta_end=0.5, variance=variance, clip=False)
    abar = torch.tensor(Diffusion(Constant(), **schedule).abar[:-1])
    diffusion = Diffusion(Constant(lambda t: eps_over_x(abar[t])), **schedule)
    for t, x_t, _ in diffusion.trajectory(4000, generator()):
        assert x_t.std().item() == pytest.approx(float(spread(abar[t])), rel=0.03)


def test_the_picture_shows_noise_turn_into_samples():
    diffusion = learner()
    diffusion.model = UNet(**{**TINY, "channels": 1})
    picture = diffusion.pictures({}, generator())["progressive"]
    assert picture.dtype == torch.uint8 and picture.shape == (4 * 2 * 9 * 4, 10 * 9 * 4, 3)


@pytest.mark.parametrize("options, message", [
    (dict(loss="mse"), "loss 'mse' is neither 'simple' nor 'bound'"),
    (dict(variance="learned"), "variance 'learned' is neither 'fixed_large' nor 'fixed_small'"),
    (dict(steps=1), "1 steps of beta from 0.0001 to 0.02: needs at least 2 steps"),
    (dict(beta_end=1.0), "needs at least 2 steps and 0 < start <= end < 1"),
])
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(Constant(), **options)


@pytest.mark.parametrize("options, message", [
    (dict(method="euler"), "method 'euler' is neither 'ancestral' nor 'ddim'"),
    (dict(steps=11), "steps 11 must lie in 1 .. 10, eta 0.0 in 0 .. 1"),
    (dict(method="ddim", eta=1.5), "eta 1.5 in 0 .. 1"),
])
def test_wrong_options_of_sampling_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learner().sample(1, generator(), **options)
