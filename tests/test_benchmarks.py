"""The benchmarks still run, and judge by their own rule."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.cases import CASES, Case, Diffusing, diffusers_diffusion, our_diffusion
from benchmarks.peers import CASES as ALL
from benchmarks.peers import measure, verdict
from benchmarks.work import flops, peak_bytes


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 1000))


@pytest.mark.parametrize("work, mode", [("step", "bf16"), ("inference", "fp32")])
def test_a_measurement_has_times_ratios_and_the_noise_floor(work, mode, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.round", lambda value, digits=0: 1, raising=False)  # one run a timing, not as many as fill a second
    case = Case(small, {"first": small, "second": small}, batch=2, optimizer="sgd", channels_last=True, size=8)
    result = measure(case, work, mode, torch.device("cpu"), repeats=2)
    assert set(result["milliseconds"]) == {"ours", "first", "second", "first again"}
    assert set(result["ratio_to"]) == {"first", "second"} and len(result["noise_floor"]) == 3
    assert len(set(result["parameters"].values())) == 1


def diffusing(**options) -> Diffusing:
    """The smallest U-Nets of either side."""
    diffusers = pytest.importorskip("diffusers")
    from zoo.papers.ddpm import unet_small

    theirs = lambda: diffusers.UNet2DModel(8, 3, 3, block_out_channels=(16,), norm_num_groups=4, layers_per_block=1,
                                           down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], attention_head_dim=None)  # fmt: skip
    ours = lambda: unet_small(8, 3, multipliers=(1,), attention=())
    return Diffusing(ours, {"diffusers": theirs}, batch=2, optimizer="adam", channels_last=False, size=8, steps=3, **options)


@pytest.mark.parametrize("work, mode", [("step", "fp32"), ("sampling", "bf16")])
def test_diffusion_models_are_measured_in_training_and_sampling(work, mode, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.round", lambda value, digits=0: 1, raising=False)
    result = measure(diffusing(), work, mode, torch.device("cpu"), repeats=2)
    assert set(result["milliseconds"]) == {"ours", "diffusers", "diffusers again"} and len(set(result["parameters"].values())) == 1


def test_both_sides_sample_with_as_many_evaluations_of_the_network():
    case = diffusing()
    for build, side in ((case.ours, our_diffusion), (case.peers["diffusers"], diffusers_diffusion)):
        model, seen = build().eval(), []
        model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))
        images = side(model)[1](2, case.steps)
        assert seen == [2, 2, 2] and images.shape == (2, 3, 8, 8) and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case, Diffusing)])
def test_both_u_nets_have_the_same_blocks(name):
    pytest.importorskip("diffusers")
    from zoo.papers.ddpm.convert import from_diffusers

    with torch.device("meta"):
        ours, theirs = CASES[name].ours(), CASES[name].peers["diffusers"]()
    shapes = lambda state: {key: value.shape for key, value in state.items()}
    assert shapes(ours.state_dict()) == shapes(from_diffusers(theirs.state_dict()))
    active = lambda model: [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p]
    assert active(ours) == active(theirs) != []


@pytest.mark.parametrize("ratio, floor, said", [
    ([0.8, 0.9, 1.0], [0.96, 1.0, 1.04], "not slower"),
    ([0.8, 0.9, 1.07], [0.96, 1.0, 1.04], "7 % slower at the upper quartile"),
    ([0.8, 0.9, 0.95], [0.94, 1.0, 1.04], "not measured"),
    ([0.8, 0.9, 0.95], [0.96, 1.0, 1.06], "not measured"),
])  # fmt: skip
def test_the_verdict(ratio, floor, said):
    assert verdict({"ratio_to": {"peer": ratio}, "noise_floor": floor}) == said


def test_cases_name_presets_that_exist():
    for case in ALL.values():
        with torch.device("meta"):
            assert sum(p.numel() for p in case.ours().parameters()) > 0


def test_without_a_name_the_benchmarks_are_listed():
    done = subprocess.run([sys.executable, "-m", "benchmarks"], capture_output=True, text=True)
    assert done.returncode == 2 and "peers" in done.stdout


@pytest.mark.parametrize("name, size", [
    ("transformer_small", 6), ("zaremba_medium", 3), ("bert_mini", 20), ("gpt2_4x256", 20), ("lora_bert", 8), ("moe_32", 4),
])  # fmt: skip
def test_cases_of_text_and_layers_run_and_sides_are_of_one_size(name, size, monkeypatch):
    for oracle in ("transformers", "peft"):
        pytest.importorskip(oracle)
    monkeypatch.setattr("benchmarks.peers.round", lambda value, digits=0: 1, raising=False)
    case = dataclasses.replace(ALL[name], batch=2, size=size)
    for work in case.works:
        ours, *theirs = measure(case, work, "bf16", torch.device("cpu"), repeats=2)["parameters"].values()
        assert all(abs(ours - count) / count < 0.005 for count in theirs)  # biases that the papers don't have, a gate's noise


def test_both_sides_of_bert_have_one_loss():
    pytest.importorskip("transformers")
    from zoo.papers.bert.convert import from_transformers

    case, device = dataclasses.replace(ALL["bert_mini"], batch=4, size=20), torch.device("cpu")
    ours, hidden_places, everywhere = (build().eval() for build in (case.ours, *case.peers.values()))
    hidden_places.model.load_state_dict(everywhere.state_dict())
    ours.load_state_dict(from_transformers(everywhere.state_dict()))
    batch = case.fresh(device)
    losses = torch.stack([case.loss(model)(*batch) for model in (ours, hidden_places, everywhere)])
    torch.testing.assert_close(losses, losses[0].expand(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(case.other_work(ours)(*batch), case.other_work(everywhere)(*batch).pooler_output, atol=1e-5, rtol=0)


def test_both_sides_of_gpt2_write_the_same_tokens():
    pytest.importorskip("transformers")
    from zoo.papers.gpt_2.convert import from_transformers

    case = dataclasses.replace(ALL["gpt2_4x256"], batch=2)
    ours, theirs = case.ours().eval(), case.peers["transformers"]().eval()
    nn.init.normal_(theirs.transformer.wpe.weight)  # so that a text goes on, not repeats a token
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    batch = case.fresh(torch.device("cpu"))
    tokens = case.other_work(ours)(*batch)
    assert tokens.shape == (2, 64) and len(tokens.unique()) > 20
    assert tokens.equal(case.other_work(theirs)(*batch))


def test_both_sides_adapt_the_same_layers():
    pytest.importorskip("peft")
    case = ALL["lora_bert"]
    ours, theirs = case.ours(), case.peers["peft"]()
    trained = lambda model: sorted(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(ours) == trained(theirs) and len(trained(ours)) == 4 * 4 * 2  # blocks, layers, A and B
    assert [m.p for m in theirs.modules() if isinstance(m, nn.Dropout)] == [m.p for m in ours.modules() if isinstance(m, nn.Dropout)]


def test_a_merged_adapter_is_beside_its_own_base():
    case = dataclasses.replace(ALL["lora_bert_merged"], batch=2, size=8)
    ours, theirs = case.ours().eval(), case.peers["without adapter"]().eval()
    names = theirs.state_dict().keys()
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name in names})
    batch = case.fresh(torch.device("cpu"))
    assert case.other_work(ours)(*batch).equal(case.other_work(theirs)(*batch))  # B is zero


def test_all_sides_of_the_mixture_compute_what_they_say():
    pytest.importorskip("transformers")
    case = dataclasses.replace(ALL["moe_32"], batch=2, size=20)
    torch.manual_seed(0)
    ours, loop, eager, grouped = (build().eval() for build in (case.ours, *case.peers.values()))
    with torch.no_grad():
        loop.gate.weight.copy_(ours.gate.w_gate.T)
        for expert, w1, w2 in zip(loop.experts, ours.w1, ours.w2):
            expert[0].weight.copy_(w1.T)
            expert[2].weight.copy_(w2.T)
    grouped.load_state_dict(eager.state_dict())
    x, _ = case.fresh(torch.device("cpu"))
    torch.testing.assert_close(ours(x), loop(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(eager(x), grouped(x), atol=1e-4, rtol=0)


def test_decoding_is_the_same_with_and_without_the_cache():
    from benchmarks.decoding import cached, together, uncached
    from zoo.papers.transformer import transformer_tiny

    model, source = transformer_tiny(vocab_size=40).eval(), torch.randint(3, 40, (3, 5))
    with torch.no_grad():
        assert cached(model, source).equal(uncached(model, source))
        assert together(model, source).shape[0] == 3


def test_growth_is_a_slope_in_logarithms():
    from benchmarks.growth import cost, experts, exponent, gpt

    assert exponent((2, 4, 8), (1.0, 4.0, 16.0)) == 2.0
    few, many = (cost(gpt(batch=batch, length=16, width=32), 1) for batch in (1, 2))
    assert many["flops"] == 2 * few["flops"] and many["kept"] > few["kept"]
    assert cost(experts(4), 1)["seconds"] > 0


def test_the_products_of_a_work_are_counted_inside_an_lstm_too():
    linear, lstm, x = nn.Linear(32, 16), nn.LSTM(16, 16, batch_first=True), torch.randn(4, 5, 32)
    assert flops(lambda: lstm(linear(x))) == 2 * 20 * 32 * 16 + 2 * 20 * 4 * 16 * (16 + 16)


def test_the_peak_is_what_lives_together_and_not_what_was_made():
    size = 2**16

    def work():
        a = torch.zeros(size)
        b = a + 1
        del a
        c = b.view(-1, 2).mul_(2)  # no new memory
        return c.sum()

    assert peak_bytes(work, torch.device("cpu")) == 2 * 4 * size
    x, layer = torch.randn(size // 256, 256), nn.Linear(256, 256, bias=False)
    graph = lambda: layer(layer(x).relu()).sum().backward()
    assert 3 * 4 * size <= peak_bytes(graph, torch.device("cpu")) <= 7 * 4 * size
