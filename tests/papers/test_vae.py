"""VAE: counts, densities and the bound against torch.distributions, both estimates of the likelihood against a model that has a closed form."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from tests.figures import COLOURS, curves, images, level, panels
from tests.helpers import TestSplit, double, generator  # noqa: F401
from zoo.config import compose, paper_configs
from zoo.papers.vae import VAE, VariationalBound, importance_sampled, posterior_sampled, vae_frey, vae_mnist
from zoo.papers.vae.likelihood import fitted_gaussian, hamiltonian
from zoo.papers.vae.model import gaussian_log_density, kl_to_standard_normal

pytestmark = pytest.mark.usefixtures("double")


def tiny(decoder="bernoulli", latent=3):
    model = VAE((3, 5), 2, latent, hidden=7, decoder=decoder)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    return model


# The model


@pytest.mark.parametrize("preset, options, parameters", [
    (vae_mnist, {}, 815_824), (vae_mnist, {"latent": 2}, 788_788), (vae_mnist, {"latent": 3, "hidden": 100}, 158_690), (vae_frey, {}, 349_560),
])
def test_parameter_counts(preset, options, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in preset(**options).parameters()) == parameters


def test_all_parameters_start_from_the_same_normal_distribution():
    values = torch.cat([p.flatten() for p in vae_mnist().parameters()])
    assert values.std().item() == pytest.approx(0.01, rel=0.01) and values.mean().item() == pytest.approx(0, abs=1e-4)
    assert all(p.all() for p in tiny().parameters())  # biases, too


def test_densities_and_divergence_are_those_of_torch():
    mean, log_variance, x = torch.randn(3, 2, 4, 5)
    normal = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    torch.testing.assert_close(gaussian_log_density(x, mean, log_variance), normal.log_prob(x), rtol=0, atol=1e-12)
    standard = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), kl_divergence(normal, standard), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_the_bound_and_its_gradients_equal_appendix_c_written_out(decoder):
    model, images, noise = tiny(decoder), torch.rand(4, 2, 3, 5), torch.randn(4, 6, 3)
    log_likelihood, kl = model(images, noise)
    w, x = dict(model.named_parameters()), images.flatten(1)
    layer = lambda name, inputs: inputs @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    h = torch.tanh(layer("encoder.hidden", x))
    q = Normal(layer("encoder.mean", h), torch.exp(layer("encoder.log_variance", h)).sqrt())
    z = q.mean[:, None] + q.stddev[:, None] * noise
    h = torch.tanh(layer("decoder.hidden", z))
    if decoder == "bernoulli":
        y = torch.sigmoid(layer("decoder.logits", h))
        p = Bernoulli(y, validate_args=False)
    else:
        y = torch.sigmoid(layer("decoder.mean", h))
        p = Normal(y, torch.exp(layer("decoder.log_variance", h)).sqrt())
    theirs = p.log_prob(x[:, None]).sum(-1).mean(1), kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close((log_likelihood, kl), theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.decode(z[:, 0]), y[:, 0].view(4, 2, 3, 5), rtol=0, atol=1e-12)
    ours = torch.autograd.grad((log_likelihood - kl).sum(), w.values())
    torch.testing.assert_close(ours, torch.autograd.grad((theirs[0] - theirs[1]).sum(), w.values()), rtol=0, atol=1e-10)


def test_single_precision_and_half_precision_agree():
    model, images, noise = tiny().float(), torch.rand(4, 2, 3, 5), torch.randn(4, 1, 3)
    exact = model.double()(images, noise)
    single = model.float()(images.float(), noise.float())
    torch.testing.assert_close(single, tuple(a.float() for a in exact), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images.float(), noise.float())
    assert all(a.dtype == torch.float32 for a in half)
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_a_pixel_of_which_the_decoder_is_sure_has_a_finite_likelihood(logit):
    model = tiny()
    nn.init.zeros_(model.decoder.logits.weight)
    nn.init.constant_(model.decoder.logits.bias, logit)
    likelihood = model.log_likelihood(torch.full((1, 2, 3, 5), float(logit > 0)), torch.zeros(1, 1, 3))
    wrong = model.log_likelihood(torch.full((1, 2, 3, 5), float(logit < 0)), torch.zeros(1, 1, 3))
    assert likelihood.item() == 0 and wrong.item() == -30 * 1e4


# The objective


def test_values_are_sums_over_items_and_the_loss_is_minus_the_bound():
    objective = VariationalBound(tiny(), samples=2)
    batch = {"image": torch.rand(6, 2, 3, 5), **objective.draw(6, generator())}
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(2), slice(2, 6))]
    for results in (lambda b: objective(b, "model"), lambda b: (objective.evaluate(b),)):
        for whole, first, second in zip(results(batch), *map(results, halves)):
            for key, value in whole.items():
                assert value.ndim == 0
                torch.testing.assert_close(value, first[key] + second[key], rtol=1e-12, atol=1e-12)
    terms, logs = objective(batch, "model")
    metrics = objective.summarise({key: value.item() for key, value in objective.evaluate(batch).items()})
    assert metrics["bound"] == pytest.approx(-terms["loss"].item() / 6) == pytest.approx(metrics["log_likelihood"] - metrics["kl"])
    assert not any(value.requires_grad for value in logs.values())


def test_noise_is_that_of_the_generator_and_its_width_that_of_the_objective():
    objective = VariationalBound(tiny(), samples=4)
    noise = objective.draw(5000, generator(3))
    assert noise["noise"].shape == (5000, 4, 3) and noise["u"].shape == (5000, 2, 3, 5)
    assert noise["noise"].mean().item() == pytest.approx(0, abs=0.02) and noise["noise"].std().item() == pytest.approx(1, abs=0.02)
    assert noise["u"].min() >= 0 and noise["u"].max() < 1 and noise["u"].mean().item() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(noise, objective.draw(5000, generator(3)), rtol=0, atol=0)
    assert "u" not in VariationalBound(tiny(), pixels="grey").draw(5, generator())


def test_what_an_image_stands_for():
    image = torch.tensor([0.0, 64 / 255, 1.0]).expand(10_000, 3).reshape(-1, 1, 1, 3)
    of = lambda pixels, decoder="bernoulli": VariationalBound(VAE((1, 3), 1, 2, 4, decoder), pixels=pixels)
    seen = {pixels: of(pixels).data({"image": image, **of(pixels).draw(len(image), generator())}) for pixels in ("sampled", "threshold", "grey")}
    assert seen["sampled"].unique().tolist() == [0, 1]
    torch.testing.assert_close(seen["sampled"].mean(0).flatten(), image[0].flatten(), rtol=0, atol=0.02)
    assert seen["threshold"][0].flatten().tolist() == [0, 0, 1] and seen["grey"] is image
    objective = of("dequantised", "gaussian")
    levels = objective.data({"image": image, **objective.draw(len(image), generator())}) * 256
    assert levels.min() >= 0 and levels.max() < 256
    torch.testing.assert_close(levels.floor(), (image * 255).round(), rtol=0, atol=0)


def test_the_bound_of_grey_pixels_is_the_mean_over_drawn_ones_for_a_q_that_sees_the_grey():
    """The reason given in the docstring: a Bernoulli log-likelihood is linear in x."""
    model, image, z = tiny(), torch.rand(1, 2, 3, 5), torch.randn(1, 1, 3)
    drawn = (torch.rand(40_000, 2, 3, 5) < image).double()
    mean = model.log_likelihood(drawn, z.expand(40_000, 1, 3)).mean()
    assert model.log_likelihood(image, z).item() == pytest.approx(mean.item(), rel=0.01)


def test_samples_and_the_manifold_are_expectations_in_0_to_1():
    objective = VariationalBound(tiny(latent=2)).eval()
    images = objective.sample(5, generator())
    assert images.shape == (5, 2, 3, 5) and images.min() >= 0 and images.max() <= 1 and not images.requires_grad
    square = VariationalBound(VAE(8, 1, 2, 7)).eval()
    pictures = square.pictures({"image": torch.rand(20, 1, 8, 8)}, generator())
    assert pictures["manifold"].shape == (20 * 32, 20 * 32, 3) and pictures["reconstructions"].shape == (3 * 32, 16 * 32, 3)
    z = Normal(0.0, 1.0).icdf(torch.tensor([[0.025, 0.975]]))  # the upper left corner: first variable low, second high
    corner = (square.model.decode(z)[0, 0] * 255).round().byte()
    assert pictures["manifold"].dtype == torch.uint8 and pictures["manifold"][:32:4, :32:4, 0].equal(corner)
    assert "manifold" not in VariationalBound(VAE(8, 1, 3, 7)).pictures({"image": torch.rand(2, 1, 8, 8)}, generator())


@pytest.mark.parametrize("make, message", [
    (lambda: VAE(decoder="poisson"), "decoder 'poisson' is neither 'bernoulli' nor 'gaussian'"),
    (lambda: VAE(latent=0), "image_size 28, channels 1, latent 0 and hidden 500 must be at least 1"),
    (lambda: VariationalBound(tiny(), samples=0), "samples is 0: the bound needs at least one draw of z"),
    (lambda: VariationalBound(tiny(), pixels="black"), "pixels 'black' is none of 'sampled', 'threshold', 'grey' and 'dequantised'"),
    (lambda: VariationalBound(tiny(), pixels="dequantised"), "pixels 'dequantised' are continuous: they need decoder='gaussian'"),
    (lambda: tiny().encode(torch.zeros(1, 2, 5, 3)), r"images of shape \(2, 5, 3\) do not fit a VAE of \(2, 3, 5\): set image_size"),
])
def test_errors_are_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_data_that_the_model_is_not_made_for_are_refused():
    objective = VariationalBound(VAE((8, 6), 2))
    objective.check({})
    for facts, said in (({"channels": 1}, "channels 2 and the data has 1"), ({"image_size": 8}, "image_size 6 and the data has 8")):
        with pytest.raises(ValueError, match=said):
            objective.check(facts)
    VariationalBound(VAE(8, 1)).check({"channels": 1, "image_size": 8, "num_classes": 10})


@pytest.mark.parametrize("name", [name for name in paper_configs() if name.split("/")[0] == "vae"])
def test_weight_decay_is_the_prior_over_the_training_items(name):
    cfg = compose([f"paper={name}"])
    items = (1437 if "digits" in cfg["data"]["_target_"] else 60_000) - cfg["data"]["valid"]
    assert cfg["optim"]["weight_decay"] * items == pytest.approx(1, rel=1e-3)


# The marginal likelihood


class LinearGaussian(nn.Module):
    """p(x|z) = N(W z, s^2 I) with orthogonal columns of W: p(x) and the posterior, whose coordinates are independent, are known."""

    latent, shape, s = 2, (1, 1, 4), 0.3

    def __init__(self, error=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 0.5], [1.0, -0.5], [1.0, 0.5], [1.0, -0.5]]))
        self.decoder, self.error = nn.Identity(), error

    def encode(self, images):
        precision = 1 + self.w.square().sum(0) / self.s**2
        mean = images.flatten(1) @ self.w / self.s**2 / precision
        return mean + self.error, (-precision.log()).expand_as(mean)

    def log_likelihood(self, images, z):
        return Independent(Normal(z @ self.w.T, self.s), 1).log_prob(images.flatten(1)[:, None])

    def marginal(self, images):
        return MultivariateNormal(torch.zeros(4), self.w @ self.w.T + self.s**2 * torch.eye(4)).log_prob(images.flatten(1)).mean().item()


def test_importance_sampling_is_exact_for_the_exact_posterior_and_too_low_for_others():
    images = torch.randn(30, 1, 1, 4)
    objective = VariationalBound(LinearGaussian(), pixels="grey")
    estimate = lambda o, **k: importance_sampled(o, TestSplit(images), generator(), **k)["marginal_log_likelihood"]
    exact = objective.model.marginal(images)
    assert estimate(objective, samples=3, batch_size=7) == pytest.approx(exact, abs=1e-10)
    assert estimate(objective, samples=7, items=11, chunk=3) == pytest.approx(objective.model.marginal(images[:11]), abs=1e-10)
    off = VariationalBound(LinearGaussian(error=0.2), pixels="grey")
    few, many = estimate(off, samples=1), estimate(off, samples=20_000, chunk=5000)
    assert few < many - 0.3 and many == pytest.approx(exact, abs=0.05)


def test_the_estimate_of_appendix_d_finds_the_marginal_likelihood_even_from_a_poor_encoder():
    images = torch.randn(30, 1, 1, 4)
    objective = VariationalBound(LinearGaussian(error=0.2), pixels="grey")
    found = posterior_sampled(objective, TestSplit(images), generator(), samples=400, warmup=50)["posterior_sampled_log_likelihood"]
    assert found == pytest.approx(objective.model.marginal(images), abs=0.02)


def test_hamiltonian_chains_have_the_moments_of_their_targets_and_accept_nine_in_ten():
    target = MultivariateNormal(torch.tensor([3.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    chain = hamiltonian(target.log_prob, torch.zeros(200, 2), torch.tensor([0.7, 1.0]), generator(), warmup=100)  # scales known roughly
    drawn = torch.stack([next(chain) for _ in range(60)])
    torch.testing.assert_close(drawn.flatten(0, 1).mean(0), target.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.flatten(0, 1).T.cov(), target.covariance_matrix, rtol=0, atol=0.05)
    assert (drawn[1:] != drawn[:-1]).all(-1).double().mean().item() == pytest.approx(0.9, abs=0.05)


def test_a_fitted_gaussian_is_that_of_the_sample_moments():
    values, z = torch.randn(2, 50, 3), torch.randn(2, 4, 3)
    for i in range(2):
        normal = MultivariateNormal(values[i].mean(0), values[i].T.cov())
        torch.testing.assert_close(fitted_gaussian(values, z)[i], normal.log_prob(z[i]), rtol=0, atol=1e-3)


def test_both_estimates_judge_the_same_pixels():
    seen = []

    class Watching(LinearGaussian):
        def encode(self, images):
            seen.append(images)
            return super().encode(images)

    images = torch.rand(5, 1, 1, 4)
    objective = VariationalBound(Watching())
    importance_sampled(objective, TestSplit(images), generator(), samples=1)
    posterior_sampled(objective, TestSplit(images), generator(), samples=4, warmup=0)
    assert len(seen) == 2 and seen[0].equal(seen[1]) and seen[0].unique().tolist() == [0, 1]


# The claims, on black and white digits


def digits():
    from zoo.data import digits

    data = digits(seed=0)
    every = lambda split: split.fetch({"index": torch.arange(len(split))})["image"]
    return every(data.train).round(), every(data.test).round()


def trained(latent, seed, steps=3000):
    """The objective, its metrics on the test digits, and the bound on test and training digits by the items seen."""
    torch.manual_seed(seed)
    objective, (train, test) = VariationalBound(VAE(8, 1, latent, 200), pixels="threshold"), digits()
    optimizer = torch.optim.Adagrad(objective.parameters(), 0.02, weight_decay=1 / len(train))
    noise, apart, bounds = generator(seed), generator(seed + 1), {}

    def judged(images, noise):
        with torch.no_grad():
            statistics = objective.evaluate({"image": images, **objective.draw(len(images), noise)})
        return objective.summarise({key: value.item() for key, value in statistics.items()})

    for step in range(1, steps + 1):
        batch = {"image": train[torch.randint(len(train), (100,), generator=noise)], **objective.draw(100, noise)}
        optimizer.zero_grad()
        (objective(batch, "model")[0]["loss"] / 100).backward()
        optimizer.step()
        if step in (10, 20, 50) or step % 100 == 0:
            bounds[100 * step] = [judged(images, apart)["bound"] for images in (test, train)]
    return objective, judged(test, noise), bounds


@pytest.mark.claim
def test_the_bound_rises_far_above_independent_pixels_and_superfluous_latents_do_no_harm(claim):
    torch.set_default_dtype(torch.float)
    train, test = digits()
    share = train.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = Bernoulli(share).log_prob(test).flatten(1).sum(1).mean().item()
    seed = claim.seed(3)
    found = {latent: trained(latent, seed) for latent in (2, 8, 64)}
    bounds = {latent: metrics for latent, (_, metrics, _) in found.items()}

    def draw():
        figure, (left, right) = panels("More latents than needed do no harm", 2, width_ratios=(3, 2))
        for (latent, (_, _, seen)), colour in zip(found.items(), COLOURS):
            on_test, on_train = zip(*seen.values())
            curves(left, {f"{latent} latents": (list(seen), on_test)}, (colour,))
            left.plot(list(seen), on_train, color=colour, linestyle=":", linewidth=1)
        left.set(xlabel="training items seen", ylabel="bound (nats)", xscale="log", ylim=(-32, -18), title="test; dotted: training")
        level(left, independent, "independent pixels", x=0.02, ha="left")
        samples = found[8][0].sample(30, generator(seed))[:, 0].detach()
        images(right, samples.split(5))
        right.set_title("samples, 8 latents")
        return figure

    of_8, of_64 = bounds[8], bounds[64]
    claim(draw, seed=seed, independent_pixels=independent, bound_of_8_latents=of_8["bound"], kl_of_8=of_8["kl"], bound_of_64=of_64["bound"])
    # Thresholds by seeds 0 to 2: 8 latents -19.8, -19.9, -19.8, kl 4.3, 3.8, 4.2; 64 latents -19.9, -19.4, -19.9. It runs with seed 3, unseen.
    assert bounds[8]["bound"] > independent + 3 and bounds[8]["kl"] > 2, (bounds, independent)
    assert bounds[64]["bound"] > bounds[8]["bound"] - 0.5, bounds


@pytest.mark.claim
def test_the_reparameterised_gradient_has_far_less_variance_than_the_score_function_s(claim):
    """Section 2.2: grad E_q f(z) as E f(z) grad log q(z) has a variance that makes it impractical."""
    torch.set_default_dtype(torch.float)
    seed = claim.seed(3)
    objective, _, _ = trained(8, seed, steps=1000)
    model, x = objective.model, digits()[0][:100]
    gradients = {"reparameterised": [], "score": []}
    for _ in range(200):
        mean, log_variance = model.encode(x)
        q = Independent(Normal(mean, (log_variance / 2).exp()), 1)
        z = q.rsample()
        log_likelihood = model.log_likelihood(x, z[:, None])[:, 0]
        score = (log_likelihood.detach() * q.log_prob(z.detach())).mean()
        for name, value in (("reparameterised", log_likelihood.mean()), ("score", score)):
            gradients[name].append(torch.autograd.grad(value, model.encoder.mean.weight, retain_graph=True)[0].flatten())
    variance = {name: torch.stack(values).var(0).sum() for name, values in gradients.items()}
    direction = torch.stack(gradients["reparameterised"]).mean(0)
    along = {name: torch.stack(values) @ direction / direction.square().sum() for name, values in gradients.items()}

    def draw():
        figure, axis = panels("The reparameterised gradient has far less variance")
        for name, colour in zip(("reparameterised", "score"), COLOURS):
            axis.hist(along[name].numpy(), 60, (-9, 11), color=colour, alpha=0.8, label={"score": "score function"}.get(name, name))
        axis.set(xlabel="component of a gradient along the mean of all, that mean being 1", ylabel="how many of 200 gradients")
        axis.legend()
        return figure

    claim(draw, seed=seed, **{f"variance_{name}": value.item() for name, value in variance.items()})
    # Thresholds by seeds 0 to 2: variances 3.0, 2.5, 1.9 and 1583, 1449, 1288. It runs with seed 3, unseen.
    assert variance["score"] > 20 * variance["reparameterised"], variance
    means = [torch.stack(values).mean(0) for values in gradients.values()]
    assert (means[0] - means[1]).square().sum() < 4 * sum(variance.values()) / 200  # two estimates of one gradient
