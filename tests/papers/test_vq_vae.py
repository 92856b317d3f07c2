"""VQ-VAE: the quantiser against brute force and diffusers', running means against the formulas, the prior against masked convolutions, and
both stages through the front door."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from tests.figures import BLUE, images, level, panels
from tests.helpers import double, generator  # noqa: F401
from tests.toys import without_curves
from zoo.config import compose
from zoo.errors import ConfigError, ZooError
from zoo.evaluation.command import evaluate_command
from zoo.papers.vq_vae import (
    VQVAE,
    CodePrior,
    EmaVectorQuantizer,
    GatedPixelCNN,
    VectorQuantization,
    VectorQuantizer,
    pixelcnn_imagenet,
    vqvae_cifar10,
    vqvae_dmlab,
    vqvae_imagenet,
    vqvae_sonnet,
)
from zoo.papers.vq_vae import model as model_file
from zoo.papers.vq_vae.model import expectation, log_probability
from zoo.training.checkpoint import digest, load_checkpoint, steps
from zoo.training.first_stage import first_stage
from zoo.training.loop import run

ROOT = Path(__file__).parent.parent.parent
TINY = dict(image_size=8, channels=2, codes=5, code_width=3, hidden=8, residual_hidden=4)


pytestmark = pytest.mark.usefixtures("double")


def randomised(module):
    for tensor in module.state_dict().values():  # buffers, too; defaults would hide swaps
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    return module


def levels(*shape):
    return torch.randint(256, shape) / 127.5 - 1


@pytest.mark.parametrize("preset, parameters", [
    (vqvae_cifar10, 6_397_574), (vqvae_imagenet, 4_922_438), (vqvae_dmlab, 4_922_438), (vqvae_sonnet, 662_723), (pixelcnn_imagenet, 154_572_800),
])
def test_parameter_counts(preset, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in preset().parameters()) == parameters


def test_grids_and_bits_are_the_paper_s():
    with torch.device("meta"):
        cifar10, imagenet, dmlab = vqvae_cifar10(), vqvae_imagenet(), vqvae_dmlab()
    assert (cifar10.grid, imagenet.grid, dmlab.grid) == ((8, 80), (32, 32), (21, 21))
    assert 128 * 128 * 3 * 8 / (32 * 32 * math.log2(512)) == pytest.approx(42.67, abs=0.01)
    with torch.device("meta"):
        assert pixelcnn_imagenet().grid == imagenet.grid and pixelcnn_imagenet().codes == imagenet.codes


# The quantiser


@pytest.mark.parametrize("limit", [2**20, 2**14])  # 2^14: four rows at a time
def test_nearest_codes_equal_brute_force_in_any_number_of_parts(limit, monkeypatch):
    monkeypatch.setattr(model_file, "SEARCH_BYTES_CPU", limit)
    quantizer, z = VectorQuantizer(512, 7), torch.randn(1003, 7) * 0.01
    e, codes = quantizer(z)
    assert codes.equal(torch.cdist(z, quantizer.codebook).argmin(1)) and len(codes.unique()) > 100
    assert e.equal(quantizer.codebook[codes])


def test_the_search_never_holds_more_distances_than_it_says(monkeypatch):
    monkeypatch.setattr(model_file, "SEARCH_BYTES_CPU", 2**17)
    seen, addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: seen.append(addmm(*a, **k)) or seen[-1])
    VectorQuantizer(512, 7).nearest(torch.randn(1003, 7))
    assert len(seen) > 1 and max(distances.nbytes for distances in seen) <= 2**17


def test_fewer_bits_do_not_choose_other_codes():
    model = randomised(VQVAE(**TINY)).float()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float)
    z = torch.randn(4096, 3, dtype=torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.quantizer.nearest(z).equal(torch.cdist(z, model.quantizer.codebook).argmin(1))
        out = model(x)
    assert out.z.dtype == out.e.dtype == out.location.dtype == torch.float


def test_gradients_pass_the_quantiser_unchanged_and_the_two_losses_reach_one_side_each():
    model = randomised(VQVAE(**TINY, decay=None))
    objective = VectorQuantization(model, beta=0.25)
    kept = {}
    latents, reconstruct = model.latents, model.reconstruct

    def keep(name, value):
        value.retain_grad()
        return kept.setdefault(name, value)

    model.latents = lambda x: keep("z", latents(x))
    model.reconstruct = lambda e: reconstruct(keep("z_q", e))
    terms, _ = objective({"image": levels(3, 2, 8, 8)}, "model")
    terms["reconstruction"].backward(retain_graph=True)
    assert kept["z"].grad.any() and kept["z"].grad.equal(kept["z_q"].grad)  # straight through
    chosen = model.quantizer(kept["z"].flatten(0, 2))[0].view_as(kept["z"])
    torch.testing.assert_close(kept["z_q"], chosen, rtol=0, atol=1e-12)
    assert model.quantizer.codebook.grad is None
    parameters = dict(model.named_parameters())
    reached = {}
    for name in ("codebook", "commitment"):
        gradients = torch.autograd.grad(terms[name], parameters.values(), allow_unused=True, retain_graph=True)
        reached[name] = {key.split(".")[0] for key, gradient in zip(parameters, gradients) if gradient is not None}
    assert reached == {"codebook": {"quantizer"}, "commitment": {"encoder"}} and objective.weights == {"commitment": 0.25}


def test_losses_and_gradients_equal_diffusers():
    vq_model = pytest.importorskip("diffusers.models.autoencoders.vq_model")
    theirs = vq_model.VectorQuantizer(16, 3, beta=0.25, legacy=False)  # legacy=True has beta on the codebook's term
    ours = VectorQuantizer(16, 3)
    nn.init.normal_(theirs.embedding.weight)
    ours.load_state_dict({"codebook": theirs.embedding.weight.detach()})
    z = torch.randn(2, 3, 5, 4)
    results = []
    for which in ("ours", "theirs"):
        leaf = z.clone().requires_grad_()
        if which == "theirs":
            quantised, loss, (_, _, codes) = theirs(leaf)
            book = theirs.embedding.weight
        else:
            flat = leaf.permute(0, 2, 3, 1).flatten(0, 2)
            e, codes = ours(flat)
            loss = F.mse_loss(e, flat.detach()) + 0.25 * F.mse_loss(flat, e.detach())
            quantised = (flat + (e - flat).detach()).view(2, 5, 4, 3).permute(0, 3, 1, 2)
            book = ours.codebook
        gradients = torch.autograd.grad(loss + (quantised * z.cos()).sum(), (leaf, book))
        results.append((quantised.detach(), loss.detach(), *gradients))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def by_the_formulas(quantizer, batches):
    """Appendix A.1, a code at a time."""
    K, D = quantizer.codebook.shape
    N, m, e = [1.0] * K, [row.clone() for row in quantizer.codebook], quantizer.codebook.clone()
    for z in batches:
        codes = torch.cdist(z, e).argmin(1)
        for i in range(K):
            mine = z[codes == i]
            N[i] = 0.99 * N[i] + 0.01 * len(mine)
            m[i] = 0.99 * m[i] + 0.01 * mine.sum(0)
        n = sum(N)
        e = torch.stack([m[i] / ((N[i] + 1e-5) / (n + K * 1e-5) * n) for i in range(K)])
    return e, N


def test_running_means_are_those_of_appendix_a_1_however_the_batch_is_cut():
    quantizer = EmaVectorQuantizer(6, 2)
    batches = [torch.randn(40, 2) + step for step in range(5)]
    e, N = by_the_formulas(quantizer, batches)
    for parts in (1, 4):
        torch.manual_seed(0)
        quantizer = EmaVectorQuantizer(6, 2).train()
        for z in batches:
            for part in z.chunk(parts):
                quantizer(part)
            quantizer.update()
        torch.testing.assert_close(quantizer.codebook, e, rtol=0, atol=1e-12)
        torch.testing.assert_close(quantizer.usage, torch.tensor(N), rtol=0, atol=1e-12)


def test_evaluation_and_steps_without_data_leave_the_codebook_alone():
    quantizer = EmaVectorQuantizer(6, 2).train()
    quantizer(torch.randn(40, 2))
    quantizer.update()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.update()  # nothing was added: the step was undone
    quantizer.eval()(torch.randn(40, 2))
    quantizer.update()
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    assert not list(quantizer.parameters()) and not before["new_usage"].any() and not before["new_total"].any()


def test_a_code_that_nobody_chooses_stays_finite_and_revived_ones_take_half_of_a_used_one():
    z = torch.randn(64, 2) * 0.3 + torch.tensor([3.0, 0.0])
    plain, revived = (EmaVectorQuantizer(8, 2, decay=0.5, revive=revive).train() for revive in (0.0, 1.0))
    for quantizer in (plain, revived):
        for _ in range(60):
            quantizer(z)
            quantizer.update()
        assert quantizer.codebook.isfinite().all()
    used = lambda quantizer: len(quantizer.nearest(z).unique())
    assert used(plain) <= 2 and used(revived) == 8
    assert plain.usage.sum().item() == pytest.approx(64) == pytest.approx(revived.usage.sum().item())
    torch.testing.assert_close(revived.total.sum(0), z.sum(0), rtol=1e-10, atol=0)  # splitting moves vectors, it makes none
    torch.testing.assert_close(revived.codebook, revived.total / revived.usage[:, None], rtol=1e-4, atol=0)


def test_the_first_codes_lie_where_sonnet_puts_them():
    codebook = EmaVectorQuantizer(64, 32).codebook
    assert codebook.abs().max() <= 1 / 64 and codebook.std().item() == pytest.approx(1 / 64 / math.sqrt(3), rel=0.05)


# The autoencoder


@pytest.mark.parametrize("sonnet", [False, True])
def test_the_networks_are_those_of_the_paper_and_of_sonnet(sonnet):
    """Written out in functions, from the weights in the order in which the paper's text names the layers."""
    model = randomised(VQVAE(**TINY, codes_per_position=2, sonnet=sonnet, scales=False))
    w, x = iter(model.encoder.parameters()), torch.randn(2, 2, 8, 8)

    def conv(x, stride=1, padding=1):
        return F.conv2d(x, next(w), next(w), stride, padding)

    def residual(h):
        for _ in range(2):
            h = h + conv(F.relu(conv(F.relu(h))), padding=0)
        return F.relu(h)

    h = F.relu(conv(F.relu(conv(x, 2)), 2))
    h = conv(h) if sonnet else h
    h = conv(residual(h), padding=0)
    z = model.latents(x)
    assert z.shape == (2, 2, 4, 3) and next(model.encoder.parameters()).shape[0] == (4 if sonnet else 8)
    torch.testing.assert_close(z[:, :, 2:4].permute(0, 2, 3, 1), h.view(2, 2, 3, 2, 2)[..., 1].permute(0, 1, 2, 3), rtol=0, atol=1e-12)
    w = iter(model.decoder.parameters())
    h = residual(conv(h))
    h = F.relu(F.conv_transpose2d(h, next(w), next(w), 2, 1))
    torch.testing.assert_close(model.reconstruct(z)[0], F.conv_transpose2d(h, next(w), next(w), 2, 1), rtol=0, atol=1e-12)


def test_codes_go_there_and_back():
    model = randomised(VQVAE(**TINY, codes_per_position=2, scales=True)).eval()
    x = levels(3, 2, 8, 8)
    out, codes = model(x), model.encode(x)
    assert codes.shape == (3, *model.grid) == (3, 2, 4) and codes.equal(out.codes) and len(codes.unique()) > 1
    torch.testing.assert_close(model.decode(codes), out.pixels, rtol=0, atol=1e-12)
    assert out.pixels.abs().max() <= 1


@pytest.mark.parametrize("location, scale", [(0.0, 0.01), (0.3, 0.2), (-1.3, 0.5), (2.5, 0.05), (-0.9961, 3.0), (0.7, math.exp(-7))])
def test_probabilities_of_the_256_levels_sum_to_one_and_have_the_expectation(location, scale):
    x = torch.arange(256) / 127.5 - 1
    for dtype, tolerance in ((torch.double, 1e-12), (torch.float, 2e-5)):
        arguments = torch.tensor(location, dtype=dtype), torch.tensor(scale, dtype=dtype).log()
        log_p = log_probability(x.to(dtype), *arguments)
        assert log_p.isfinite().all() and log_p.exp().sum().item() == pytest.approx(1, abs=tolerance)
        mean = expectation(*arguments).item()
        assert mean == pytest.approx((log_p.exp() * x).sum().item(), abs=1 / 255) and -1 <= mean <= 1


def test_log_probabilities_far_from_the_mean_keep_their_gradient():
    location = torch.tensor([0.0, 0.0, -1.5], requires_grad=True)
    log_scale = torch.full((3,), -7.0, requires_grad=True)
    log_probability(torch.tensor([0.9, -0.9, 1.0]), location, log_scale).sum().backward()
    assert location.grad.isfinite().all() and log_scale.grad.isfinite().all() and location.grad[0] > 100 and location.grad[1] < -100


@pytest.mark.parametrize("scales", [True, False])
def test_values_are_sums_over_items(scales):
    objective = VectorQuantization(randomised(VQVAE(**TINY, scales=scales, decay=None)), variance=0.7)
    x = levels(6, 2, 8, 8)
    for results in (lambda x: objective({"image": x}, "model")[0], lambda x: objective.evaluate({"image": x})):
        whole, first, second = results(x), results(x[:2]), results(x[2:])
        for key, value in whole.items():
            assert value.ndim == 0
            torch.testing.assert_close(value, first[key] + second[key], rtol=1e-12, atol=1e-12)


def test_metrics_are_what_their_names_say():
    model = randomised(VQVAE(**TINY))
    objective, x = VectorQuantization(model), levels(6, 2, 8, 8)
    out = model(x)
    metrics = objective.summarise({key: value.item() for key, value in objective.evaluate({"image": x}).items()})
    mse = (x - out.pixels).square().mean()
    assert metrics["mse"] == pytest.approx(mse.item() / 4)
    assert metrics["unexplained"] == pytest.approx((mse / x.var(correction=0)).item())
    nats = -log_probability(x, out.location, out.log_scale).flatten(1).sum(1).mean()
    assert metrics["bits_per_dim"] == pytest.approx((nats.item() + 4 * math.log(5)) / 128 / math.log(2))
    shares = torch.bincount(out.codes.flatten(), minlength=5) / out.codes.numel()
    assert metrics["perplexity"] == pytest.approx(math.exp(torch.distributions.Categorical(shares).entropy()))
    assert metrics["used"] == len(out.codes.unique())
    terms, logs = objective({"image": x}, "model")
    assert logs["perplexity"].item() == pytest.approx(metrics["perplexity"]) and logs["used"].item() == metrics["used"]
    assert terms["reconstruction"].item() == pytest.approx(6 * nats.item() / 128)
    assert terms["commitment"].item() == pytest.approx(6 * F.mse_loss(out.z, out.e).item())
    squared = VectorQuantization(randomised(VQVAE(**TINY, scales=False)), variance=0.5)
    terms, _ = squared({"image": x}, "model")
    assert terms["reconstruction"].item() == pytest.approx(6 * F.mse_loss(squared.model(x).pixels, x).item() / 0.5)


# The prior


class Masked(nn.Module):
    """The same network with whole kernels and masks of zeros, as the papers describe it: an independent way to the same numbers."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, codes, label):
        v = h = self.ours.embedding.weight[codes].permute(0, 3, 1, 2)
        for layer in self.ours.layers:
            k, r = layer.vertical.weight.shape[-1], layer.r
            vertical = torch.zeros(*layer.vertical.weight.shape[:2], k, k)
            vertical[:, :, : r + (not layer.first)] = layer.vertical.weight  # rows above; B: and the row itself
            horizontal = torch.zeros(*layer.horizontal.weight.shape[:2], 1, k)
            horizontal[..., : r + (not layer.first)] = layer.horizontal.weight
            condition = layer.condition.weight[label][:, :, None, None] if label is not None else torch.zeros(1, 4 * v.shape[1], 1, 1)
            half = 2 * v.shape[1]
            u = F.conv2d(v, vertical, layer.vertical.bias, padding=r) + condition[:, :half]
            w = F.conv2d(h, horizontal, layer.horizontal.bias, padding=(0, r)) + layer.link(u) + condition[:, half:]
            f, g = w.chunk(2, 1)
            new = layer.out(torch.tanh(f) * torch.sigmoid(g))
            h = new if layer.first else h + new
            f, g = u.chunk(2, 1)
            v = torch.tanh(f) * torch.sigmoid(g)
        return self.ours.head(h)


@pytest.mark.parametrize("classes", [0, 3])
def test_outputs_and_gradients_equal_masked_convolutions(classes):
    ours = randomised(GatedPixelCNN(7, (4, 6), channels=6, layers=3, kernel=3, first_kernel=5, head=8, classes=classes))
    codes, label = torch.randint(7, (2, 4, 6)), torch.tensor([2, 0]) if classes else None
    results = []
    for network in (ours, Masked(ours)):
        logits = network(codes, label)
        results.append((logits, *torch.autograd.grad(logits.sin().sum(), ours.parameters())))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def test_each_code_is_seen_by_all_later_ones_and_by_no_other():
    """Causality by perturbing each position; seen by all later ones: no blind spot."""
    prior = randomised(GatedPixelCNN(5, (4, 5), channels=6, layers=4, kernel=3, first_kernel=3, head=8))
    codes = torch.randint(5, (1, 4, 5))
    logits = prior(codes).flatten(2)
    for position in range(20):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 5
        difference = (prior(changed).flatten(2) - logits).abs().amax((0, 1))
        assert not difference[: position + 1].any(), position
        row, column = divmod(position, 5)
        for later in range(position + 1, 20):
            r, c = divmod(later, 5)
            if c - column <= 4 and column - c <= r - row:  # three kernels of 3 and the first: what lies in reach
                assert difference[later] > 0, (position, later)


@pytest.mark.parametrize("classes", [0, 3])
def test_cached_sampling_sees_what_a_whole_pass_sees(classes):
    prior = randomised(GatedPixelCNN(7, (4, 6), channels=6, layers=3, kernel=3, first_kernel=5, head=8, classes=classes))
    label, seen = torch.tensor([2, 0]) if classes else None, []

    def draw(logits):
        seen.append(logits)
        return torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]

    g = generator()
    codes = prior.generate(2, draw, label)
    assert codes.shape == (2, 4, 6) and len(codes.unique()) > 3
    torch.testing.assert_close(torch.stack(seen, 2), prior(codes, label).flatten(2), rtol=0, atol=1e-12)


def test_cached_sampling_costs_one_pass():
    from torch.utils.flop_counter import FlopCounterMode

    prior = GatedPixelCNN(7, (8, 8), channels=8, layers=4, kernel=3, first_kernel=5, head=8)
    with FlopCounterMode(display=False) as generating:
        prior.generate(1, lambda logits: logits.argmax(1))
    with FlopCounterMode(display=False) as passing:
        prior(torch.zeros(1, 8, 8, dtype=torch.long))
    assert generating.get_total_flops() <= 1.05 * passing.get_total_flops()


def two_stages(classes=3, channels=2):
    first = randomised(VQVAE(**{**TINY, "channels": channels}, codes_per_position=2))
    prior = randomised(GatedPixelCNN(5, (2, 4), channels=4, layers=2, kernel=3, first_kernel=3, head=6, classes=classes))
    return CodePrior(prior, first)


def test_the_second_stage_learns_codes_and_nothing_of_the_first():
    objective = two_stages().train()
    before = {name: value.clone() for name, value in objective.first_stage.state_dict().items()}
    batch = {"image": levels(6, 2, 8, 8), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    terms, logs = objective(batch, "prior")
    terms["loss"].backward()
    assert not objective.first_stage.training and all(p.grad is None for p in objective.first_stage.parameters())
    assert all(p.grad is not None for p in objective.prior.parameters())
    torch.testing.assert_close(objective.first_stage.state_dict(), before, rtol=0, atol=0)
    codes = objective.first_stage.encode(batch["image"])
    log_p = objective.prior(codes, batch["label"]).log_softmax(1).gather(1, codes[:, None])[:, 0]
    assert terms["loss"].item() == pytest.approx(-log_p.mean((1, 2)).sum().item())
    metrics = objective.summarise({key: value.item() for key, value in objective.evaluate(batch).items()})
    assert metrics["bits_per_code"] == pytest.approx(-log_p.mean().item() / math.log(2)) == pytest.approx(logs["bits_per_code"].item() / 6)
    out = objective.first_stage(batch["image"])
    nats = -log_probability(batch["image"], out.location, out.log_scale).sum() - log_p.sum()
    assert metrics["bits_per_dim"] == pytest.approx(nats.item() / 6 / 128 / math.log(2))


def test_samples_are_decoded_codes_of_the_wanted_class():
    objective = two_stages().eval()
    images = objective.sample(4, generator(), label=1)
    assert images.shape == (4, 2, 8, 8) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images, objective.sample(4, generator(), label=1), rtol=0, atol=0)
    with torch.no_grad():
        for layer in objective.prior.layers:
            layer.condition.weight[1] += 5  # class 1 alone changes
    assert not objective.sample(4, generator(), label=1).equal(images)
    cold = objective.sample(3, generator(), label=2, temperature=1e-4)
    assert cold[0].equal(cold[1]) and cold[0].equal(cold[2])
    grey = two_stages(channels=1).eval()
    picture = grey.pictures({}, generator())["classes"]
    assert picture.shape == (3 * 32, 10 * 32, 3) and picture.dtype == torch.uint8
    first = (grey.sample(10, generator(), label=0) * 255).round().byte()[:, 0]
    assert picture[:32:4, :32:4, 0].equal(first[0]) and two_stages(classes=0).pictures({}, generator()) == {}


@pytest.mark.parametrize("make, message", [
    (lambda: VQVAE(30, halvings=2), "image_size 30 is not a multiple of 4: 2 convolutions halve it"),
    (lambda: VQVAE(**{**TINY, "codes": 0}), "image_size, channels, codes, .* must be at least 1, and hidden at least 2"),
    (lambda: VQVAE(**TINY, decay=1.0), "decay is 1.0: running means need one between 0 and 1"),
    (lambda: VQVAE(**TINY, decay=None, revive=1.0), "revive needs a decay"),
    (lambda: VQVAE(**TINY).encode(torch.zeros(1, 2, 8, 4)), r"images of shape \(2, 8, 4\) do not fit a VQ-VAE of \(2, 8, 8\)"),
    (lambda: VectorQuantization(VQVAE(**TINY), variance=0), "variance is 0: it must be above 0"),
    (lambda: GatedPixelCNN(5, (2, 2), kernel=4), "kernel 4 and first_kernel 7 must be odd and at least 3"),
    (lambda: GatedPixelCNN(5, (2, 0)), "codes, both sides of grid, channels, layers and head must be at least 1"),
    (lambda: GatedPixelCNN(5, (2, 4))(torch.zeros(1, 4, 2, dtype=torch.long)), r"codes of a grid \(4, 2\) do not fit a prior of \(2, 4\)"),
    (lambda: CodePrior(GatedPixelCNN(6, (2, 4)), VQVAE(**TINY, codes_per_position=2)), "the prior is for 6 codes on a grid of .* has 5 codes"),
    (lambda: two_stages().sample(1, generator(), temperature=0), "temperature must be above 0, not 0"),
    (lambda: two_stages().sample(1, generator(), label=3), "label 3 is not among the prior's classes, of which there are 3"),
])
def test_errors_are_one_clear_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Both stages through the loop

FIRST = ["paper=vq_vae", "trainer.precision=fp64", "trainer.steps=6", "trainer.log_every=1", "trainer.save_every=3", "trainer.device=cpu",
         "data.batch_size=24", "trainer.draw_every=6", "model.hidden=8", "model.residual_hidden=4", "model.codes=16", "model.revive=1.0"]
SECOND = ["paper=vq_vae/digits_prior", *FIRST[1:8], "model.prior.codes=16", "model.prior.channels=4", "~evaluation.quality"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Both stages, trained for six steps."""
    without_curves()
    folder = tmp_path_factory.mktemp("stages")
    assert run(compose([*FIRST, f"run_dir={folder / 'first'}"])) == 0
    assert run(compose([*SECOND, f"model.first_stage.run={folder / 'first'}", f"run_dir={folder / 'second'}"])) == 0
    return folder


def weights(folder, stem="model"):
    return load_file(folder / f"{stem}.safetensors")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_accumulation_changes_nothing(stages, tmp_path):
    assert run(compose([*FIRST, f"run_dir={tmp_path}", "trainer.accumulate=3"])) == 0
    torch.testing.assert_close(weights(tmp_path), weights(stages / "first"), rtol=1e-9, atol=1e-9)
    for here, there in zip(records(tmp_path), records(stages / "first"), strict=True):
        for key in there.keys() & {"loss", "reconstruction", "commitment", "grad_norm", "test/bits_per_dim", "test/perplexity"}:
            assert here[key] == pytest.approx(there[key], rel=1e-9), key


def test_a_bad_step_leaves_the_codebook_as_it_was(tmp_path):
    cfg = compose([*FIRST, f"run_dir={tmp_path}", "trainer.nonfinite=skip", "trainer.log_every=6"])
    books = []

    class Watched(VectorQuantization):
        def forward(self, batch, turn):
            terms, logs = super().forward(batch, turn)
            return {name: value * (float("inf") if len(books) == 2 else 1.0) for name, value in terms.items()}, logs

        def after_step(self, step):
            super().after_step(step)
            books.append({name: value.clone() for name, value in self.model.quantizer.state_dict().items()})

    with patch("zoo.papers.vq_vae.VectorQuantization", Watched):
        assert run(cfg) == 0
    torch.testing.assert_close(books[2], books[1], rtol=0, atol=0)
    assert not books[3]["codebook"].equal(books[2]["codebook"]) and books[3]["codebook"].isfinite().all()


def test_the_second_run_stores_the_first_one_s_digest_not_its_weights(stages, tmp_path):
    assert all(name.startswith("prior.") for name in weights(stages / "second"))
    newest = steps(stages / "second" / "checkpoints")[-1]
    tensors, _, manifest = load_checkpoint(newest)
    assert all(name.startswith("prior.") for name in tensors["weights"])
    assert manifest["frozen"] == {"first_stage": digest(stages / "first" / "model.safetensors")}
    told = records(stages / "second")
    assert {"bits_per_code", "loss"} <= told[0].keys() and {"test/bits_per_code", "test/bits_per_dim"} <= told[-1].keys()
    assert {"perplexity", "used", "reconstruction", "commitment"} <= records(stages / "first")[0].keys()
    shutil.copytree(stages / "second", tmp_path / "second")
    (tmp_path / "second" / "model.safetensors").unlink()
    file = stages / "first" / "model.safetensors"
    kept = file.read_bytes()
    save_file({name: value + 1 for name, value in weights(stages / "first").items()}, file)
    try:
        with pytest.raises(ZooError, match="the frozen weights of 'first_stage' are not those that the run began with"):
            run(compose([*SECOND, f"model.first_stage.run={stages / 'first'}", f"run_dir={tmp_path / 'second'}"]))
        with pytest.raises(ConfigError, match="the frozen weights of 'first_stage' are not those that .*/second was trained with: put their file"):
            evaluate_command([f"run={stages / 'second'}", "device=cpu"])
    finally:
        file.write_bytes(kept)
    assert evaluate_command([f"run={stages / 'second'}", "device=cpu"]) == 0


def test_both_stages_draw_while_they_train(stages):
    for stage, names in (("first", {"reconstructions"}), ("second", {"samples", "classes"})):
        assert {path.name for path in (stages / stage / "pictures").glob("*-*.png")} == {f"{name}-00000006.png" for name in names}


DATA = {"_target_": "zoo.data.digits", "normalise": "symmetric", "image_size": 8, "channels": 1}
NAME = "zoo.papers.vq_vae.VQVAE"


def test_a_first_stage_is_frozen_and_has_the_weights_of_its_run(stages):
    model = first_stage(str(stages / "first"), NAME, DATA)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), weights(stages / "first"), rtol=0, atol=0)


def misuse(stages, folder, case):
    run_dir, data = stages / "first", DATA
    if case == "missing":
        run_dir = folder / "nowhere"
    elif case == "no run":
        run_dir = folder
    elif case == "unfinished":
        run_dir = shutil.copytree(run_dir, folder / "copy")
        (run_dir / "model.safetensors").unlink()
    elif case == "foreign":
        run_dir = stages / "second"
    elif case == "other data":
        data = {**DATA, "_target_": "zoo.data.mnist"}
    elif case == "other range":
        data = {**DATA, "normalise": "unit"}
    elif case == "other size":
        data = {**DATA, "image_size": 16}
    return first_stage(str(run_dir), NAME, data)


@pytest.mark.parametrize("case, message", [
    ("missing", "the first stage .*/nowhere does not exist: train it first"),
    ("no run", "is no run directory: it has no readable config.yaml"),
    ("unfinished", "the first stage .*/copy is not finished: train vq_vae/quick to its end"),
    ("foreign", "the first stage .*/second is a run of vq_vae/digits_prior, whose model is no VQVAE"),
    ("other data", "was trained on data._target_=zoo.data.digits, but here data._target_ is zoo.data.mnist: both need the same"),
    ("other range", "was trained on data.normalise=symmetric, but here data.normalise is unit: both need the same"),
    ("other size", "was trained on data.image_size=8, but here data.image_size is 16: both need the same"),
])
def test_a_first_stage_that_does_not_fit_is_refused_in_one_sentence(stages, tmp_path, case, message):
    with pytest.raises(ConfigError, match=message) as refused:
        misuse(stages, tmp_path, case)
    assert "\n" not in str(refused.value)


def test_a_prior_of_another_size_is_refused(stages, tmp_path):
    with pytest.raises(ConfigError, match=r"the prior is for 32 codes on a grid of \(4, 4\), but the first stage has 16 codes"):
        run(compose([*SECOND, f"model.first_stage.run={stages / 'first'}", f"run_dir={tmp_path}", "model.prior.codes=32"]))


@pytest.mark.parametrize("words, message", [
    ([*FIRST, "model.image_size=12"], "the VQ-VAE is made for image_size 12 and the data has 8: set its image_size=8"),
    ([*SECOND, "model.prior.classes=3"], "the prior is made for 3 classes and the data has 10: set the prior's classes=10"),
])
def test_data_that_the_networks_are_not_made_for_are_refused_before_training(stages, tmp_path, words, message):
    place = [f"model.first_stage.run={stages / 'first'}"] if words[0] == SECOND[0] else []
    with pytest.raises(ConfigError, match=message):
        run(compose([*words, *place, f"run_dir={tmp_path}"]))
    assert not (tmp_path / "metrics.jsonl").exists()
    two_stages(classes=0).check({"channels": 2, "image_size": 8, "num_classes": 10})  # without classes any number of them will do


WORKER = """
import sys
import torch
import torch.distributed as dist
from zoo.config import compose
from zoo.training.loop import run
torch.set_num_threads(1)
dist.init_process_group("gloo")
assert run(compose(sys.argv[1:])) == 0
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_equal_one(stages, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "worker.py")]
    for way in ("ddp", "fsdp"):
        words = [*FIRST, f"run_dir={tmp_path / way}", f"trainer.parallel={way}", "trainer.accumulate=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*torchrun, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        torch.testing.assert_close(weights(tmp_path / way), weights(stages / "first"), rtol=1e-9, atol=1e-9)


# The claims, on digits


def digits():
    from zoo.data import digits

    data = digits(seed=0, normalise="symmetric")
    every = lambda split: split.fetch({"index": torch.arange(len(split))})["image"]
    return every(data.train), every(data.test)


@pytest.mark.claim
def test_four_codes_say_more_than_the_nearest_of_256_images_and_most_of_them_are_used(claim):
    """24 bits of an image in four codes of 64, against 8 bits in one of 256 whole images (k-means); perplexity above half of the codes."""
    from sklearn.cluster import KMeans

    torch.set_default_dtype(torch.float)
    seed = claim.seed(3)
    torch.manual_seed(seed)
    train, test = digits()
    model = VQVAE(8, 1, codes=64, code_width=8, hidden=64, residual_hidden=32, scales=False, revive=0.5)
    objective, noise = VectorQuantization(model, variance=train.var().item()).train(), generator(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in itertools.count():
        if step == 2500:
            break
        batch = {"image": train[torch.randint(len(train), (64,), generator=noise)]}
        terms, _ = objective(batch, "model")
        optimizer.zero_grad()
        (sum(value * objective.weights.get(name, 1) for name, value in terms.items()) / 64).backward()
        optimizer.step()
        objective.after_step(step)
    objective.eval()
    with torch.no_grad():
        metrics = objective.summarise({key: value.item() for key, value in objective.evaluate({"image": test}).items()})
        codes = model.encode(test)
        decoded = model.decode(codes)
    means = torch.tensor(KMeans(256, n_init=1, random_state=seed).fit(train.flatten(1).numpy()).cluster_centers_)
    distances = torch.cdist(test.flatten(1), means)
    error = distances.amin(1).square().mean() / 64 / test.var()

    def draw():
        figure, (left, right) = panels("Four codes of 64 say more than the nearest of 256 images", 2, width_ratios=(3, 2))
        nearest = means[distances.argmin(1)].view_as(test)
        shown = [(values[:5, 0] + 1) / 2 for values in (test, decoded, nearest)]
        images(left, shown, ["test digits", "from\nfour codes", "nearest\nof 256"])
        shares = 100 * codes.flatten().bincount(minlength=64).sort(descending=True).values / codes.numel()
        right.bar(range(1, 65), shares.numpy(), 1.0, color=BLUE)
        right.set(xlabel="code, by how often it is used", ylabel="share of all codes (%)")
        level(right, 100 / 64, "if all were equal")
        return figure

    claim(draw, seed=seed, unexplained=metrics["unexplained"], unexplained_by_256_means=error.item(), perplexity=metrics["perplexity"])
    # Thresholds by seeds 0 to 2: unexplained 0.097, 0.101, 0.099, by means 0.150 to 0.152; perplexity 60 to 61. It runs with seed 3, unseen.
    assert metrics["unexplained"] < error and metrics["perplexity"] > 32, (metrics, error)
