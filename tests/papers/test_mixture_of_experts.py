"""Mixture of experts: sizes, equality with slow loops and across ranks, noise, capacity, losses, language model, errors, claims."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.experts_worker import build, noise_of
from tests.figures import BLUE, ORANGE, curves, level, panels
from tests.helpers import message
from zoo.papers import mixture_of_experts as moe
from zoo.papers.mixture_of_experts import BalancedLanguageModel, HierarchicalGate, MixtureOfExperts, NoisyTopKGate, dispatch, experts

EXACT = dict(rtol=1e-10, atol=1e-10)


def randomised(module: nn.Module, dtype: torch.dtype = torch.double) -> nn.Module:
    """Weights of order 1: none of them can be swapped or forgotten unnoticed, and the gates prefer some experts."""
    module.to(dtype)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


@pytest.fixture
def known_noise(monkeypatch):
    """Noise that depends on x W_g alone, so that a loop in another order meets the same."""
    monkeypatch.setattr(torch, "randn_like", noise_of)


def layer(flat: bool, k: int = 2, dtype: torch.dtype = torch.double, d: int = 6, hidden: int = 5, n: int = 12, **options) -> MixtureOfExperts:
    gate = NoisyTopKGate(d, n, k) if flat else HierarchicalGate(d, n, k, 4)
    return randomised(MixtureOfExperts(gate, d, hidden, **options), dtype)


# ---- sizes ----

SIZES = {  # millions without embedding and softmax, as tables 7 and 8 print them; all parameters at the default vocabulary
    "moe_4": (8.4, 821_704_575), "moe_32": (37.8, 851_093_375), "moe_256": (272.9, 1_086_203_775), "moe_256_h": (272.9, 1_086_220_159),
    "moe_1024_h": (1079.0, 1_892_312_959), "moe_4096_h": (4303.4, 5_116_684_159), "moe_34m": (4313.9, 5_939_704_703),
    "moe_143m": (4371.1, 5_996_876_671), "moe_16384_h": (17201.0, 17_303_475_872), "moe_65536_h": (68791.0, 68_893_546_144),
    "moe_131072_h": (137577.6, 137_680_131_744), "moe_1_wide": (8.4, 821_700_479), "moe_1_deep": (8.4, 821_700_479),
    "lstm_4x512": (8.4, 821_704_575), "lstm_2048_512": (9.4, 822_753_151),
}  # fmt: skip


@pytest.mark.parametrize("preset", SIZES)
def test_sizes_are_the_papers(preset):
    with torch.device("meta"):
        model = getattr(moe, preset)()
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert (round(count(model.layers) / 1e6, 1), count(model)) == SIZES[preset]


def test_the_first_level_of_the_news_models_branches_as_the_paper_says():
    with torch.device("meta"):
        for preset, groups in (("moe_256_h", 32), ("moe_4096_h", 64)):
            model = getattr(moe, preset)(groups=groups, vocab_size=100)
            assert model.layers[1].gate.w_gate.shape == (groups, 512, model.layers[1].gate.experts // groups)
        assert [getattr(moe, f"moe_{n}_h")().layers[1].gate.groups for n in (1024, 16384, 65536, 131072)] == [16, 128, 256, 256]


# ---- equality with slow loops ----


def slow_gate(x, w_gate, w_noise, k, noisy=True):
    """G (N, E) and P (N, E), token by token and expert by expert, by equations 3 to 9."""
    clean, spread = x @ w_gate, torch.log1p((x @ w_noise).exp())
    h = clean + noise_of(clean) * spread if noisy else clean
    g, p = [], []
    for t in range(len(x)):
        best = sorted(range(h.shape[1]), key=lambda i: -h[t, i].item())[:k]
        g.append(torch.softmax(torch.stack([h[t, i] if i in best else torch.full_like(h[t, i], -torch.inf) for i in range(h.shape[1])]), 0))
        for i in range(h.shape[1]):
            others = sorted((h[t, j] for j in range(h.shape[1]) if j != i), key=lambda v: -v.item())
            if not noisy or k > len(others):
                p.append(torch.tensor(float(i in best), dtype=x.dtype))
            else:
                p.append(0.5 * (1 + torch.erf((clean[t, i] - others[k - 1]) / spread[t, i] / 2**0.5)))
    return torch.stack(g), torch.stack(p).view_as(h)


def slow_layer(moe_layer, x, noisy=True):
    """y and the two losses by equations 1, 6 to 14, in loops."""
    gate = moe_layer.gate
    if isinstance(gate, NoisyTopKGate):
        g, p = slow_gate(x, gate.w_gate, gate.w_noise, gate.k, noisy)
        load = p.sum(0)
    else:
        first, first_p = slow_gate(x, gate.primary.w_gate, gate.primary.w_noise, gate.primary.k, noisy)
        parts, loads = [], []
        for i in range(gate.groups):
            g_i, p_i = slow_gate(x, gate.w_gate[i], gate.w_noise[i], gate.primary.k, noisy)
            parts.append(first[:, i, None] * g_i)
            mine = first[:, i] > 0  # X^(i)
            loads.append(first_p[:, i].sum() * p_i[mine].sum(0) / max(int(mine.sum()), 1))
        g, load = torch.cat(parts, 1), torch.cat(loads)
    y = []
    for t in range(len(x)):
        total = torch.zeros_like(x[t])
        for i in range(g.shape[1]):
            total = total + g[t, i] * (torch.relu(x[t] @ moe_layer.w1[i]) @ moe_layer.w2[i])
        y.append(total)
    cv2 = lambda v: ((v - v.mean()) ** 2).mean() / v.mean() ** 2
    return torch.stack(y), cv2(g.sum(0)), cv2(load)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("flat, k", [(True, 1), (True, 3), (True, 12), (False, 1), (False, 2), (False, 3)])
def test_outputs_losses_and_gradients_equal_a_loop_over_tokens_and_experts(known_noise, flat, k, training):
    ours = layer(flat, k).train(training)
    x = torch.randn(9, 6, dtype=torch.double, requires_grad=True)
    weights, uses = torch.randn_like(x), []
    y = ours(x.view(3, 3, 6), uses).view(9, 6)
    expected, importance, load = slow_layer(ours, x, training)
    torch.testing.assert_close(y, expected, **EXACT)
    torch.testing.assert_close(uses[0].losses["importance"], importance, **EXACT)
    torch.testing.assert_close(uses[0].losses["load"], load, **EXACT)
    inputs = [x, *ours.parameters()]
    gradients = [
        torch.autograd.grad((out * weights).sum() + a + 3 * b, inputs, allow_unused=True, materialize_grads=True)
        for out, a, b in ((y, uses[0].losses["importance"], uses[0].losses["load"]), (expected, importance, load))
    ]
    for found, wanted in zip(*gradients):
        torch.testing.assert_close(found, wanted, **EXACT)


def run(moe_layer, x):
    """Output, gradients, how the experts were used."""
    uses = []
    y = moe_layer(x, uses)
    loss = y.square().sum() + sum(uses[0].losses.values())
    return [y.detach(), *torch.autograd.grad(loss, [x, *moe_layer.parameters()], materialize_grads=True)], uses[0]


@pytest.mark.parametrize("flat, capacity_factor", [(True, None), (True, 0.5), (False, None), (False, 0.5)])
def test_the_padded_path_equals_the_grouped_one(known_noise, monkeypatch, flat, capacity_factor):
    """In fp32, which torch's grouped_mm takes, unlike the fp64 of the loops above."""
    ours = layer(flat, dtype=torch.float, d=8, hidden=12, n=16, capacity_factor=capacity_factor)
    x = torch.randn(20, 8, requires_grad=True)
    with monkeypatch.context() as patch:
        patch.setattr(experts, "padded_matmul", None)  # grouped_mm only
        grouped, _ = run(ours, x)
    monkeypatch.setattr(F, "grouped_mm", None)
    monkeypatch.setattr(experts, "_grouped_mm_takes", lambda x, weight: False)
    padded, _ = run(ours, x)
    for a, b in zip(grouped, padded):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 0, 0, 8), (0, 0, 0, 0)])
def test_rows_meet_the_matrix_of_their_expert(dtype, counts):
    rows, ends = sum(counts), torch.tensor(counts).cumsum(0)
    x, weight = torch.randn(rows, 8, dtype=dtype, requires_grad=True), torch.randn(4, 8, 16, dtype=dtype, requires_grad=True)
    expected = torch.cat([part @ matrix for part, matrix in zip(x.split(counts), weight)])
    outwards = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, weight], outwards)
    for multiply in (experts.grouped_matmul, experts.padded_matmul):
        found = multiply(x, weight, ends)
        torch.testing.assert_close(found, expected)
        for a, b in zip(torch.autograd.grad(found, [x, weight], outwards), wanted):
            torch.testing.assert_close(a, b)


def test_autocast_multiplies_in_bf16_and_routes_in_fp32():
    ours = layer(True, dtype=torch.float, d=16, hidden=24)
    x = torch.randn(10, 16)
    with torch.autocast("cpu", torch.bfloat16):
        uses = []
        y = ours.eval()(x, uses)
    assert (y.dtype, uses[0].importance.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), ours(x), rtol=0.05, atol=0.05)


def test_without_noise_the_weights_are_those_of_mixtrals_router():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    router = mixtral.MixtralTopKRouter(mixtral.MixtralConfig(hidden_size=7, num_local_experts=9, num_experts_per_tok=3)).double()
    gate = randomised(NoisyTopKGate(7, 9, 3)).eval()
    router.weight.data = gate.w_gate.data.T
    x = torch.randn(20, 7, dtype=torch.double)
    _, weights, chosen = router(x)
    ours = gate(x)
    assert torch.equal(ours.experts, chosen)
    torch.testing.assert_close(ours.weights, weights.double(), rtol=1e-6, atol=1e-6)  # theirs are in fp32


def test_p_is_how_often_an_expert_would_be_chosen_if_its_own_noise_were_drawn_anew():
    torch.manual_seed(1)
    clean, spread, noise = torch.randn(1, 6), torch.rand(1, 6) + 0.5, torch.randn(1, 6)
    torch_randn_like, torch.randn_like = torch.randn_like, lambda clean: noise
    try:
        _, _, p = experts.noisy_top_k(clean, spread, 2, noisy=True)
    finally:
        torch.randn_like = torch_randn_like
    for i in range(6):
        h = (clean + noise * spread).expand(20_000, 6).clone()
        h[:, i] = clean[0, i] + torch.randn(20_000) * spread[0, i]
        often = (h.topk(2).indices == i).any(1).float().mean()
        assert p[0, i].item() == pytest.approx(often.item(), abs=0.015)


# ---- dispatch and capacity ----


def test_experts_that_are_full_serve_those_that_come_first():
    chosen = torch.tensor([[0, 2], [2, 1], [2, 0], [2, 0]])
    free, full = dispatch(chosen, 4), dispatch(chosen, 4, capacity=2)
    assert free.ends.tolist() == [3, 4, 8, 8] and free.kept is None
    assert free.tokens.tolist() == [0, 2, 3, 1, 0, 1, 2, 3]
    assert free.rows.tolist() == [[0, 4], [5, 3], [6, 1], [7, 2]]
    assert full.ends.tolist() == [2, 4, 6, 8]
    assert full.kept.tolist() == [[True, True], [True, True], [False, True], [False, False]]
    assert all(full.tokens[full.rows[n, j]] == n for n in range(4) for j in range(2) if full.kept[n, j])


def test_what_is_dropped_gets_nothing_and_changes_no_gradient(known_noise):
    limited, unlimited = layer(True, k=2, capacity_factor=0.5), layer(True, k=2)
    unlimited.load_state_dict(limited.state_dict())
    x = torch.randn(16, 6, dtype=torch.double)
    uses = []
    y = limited(x, uses)
    routing = limited.gate(x)
    sent = dispatch(routing.experts, 12, limited.capacity(16))
    assert limited.capacity(16) == 2  # ceil(0.5 * 2 * 16 / 12)
    assert 0 < uses[0].dropped.item() == 1 - sent.kept.double().mean().item()
    expected = torch.zeros_like(x)
    for n in range(16):
        for j in range(2):
            if sent.kept[n, j]:
                expert = routing.experts[n, j]
                expected[n] += routing.weights[n, j] * (torch.relu(x[n] @ limited.w1[expert]) @ limited.w2[expert])
    torch.testing.assert_close(y, expected, **EXACT)
    inputs = list(limited.parameters())
    for a, b in zip(torch.autograd.grad(y.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)):
        torch.testing.assert_close(a, b, **EXACT)
    assert not torch.equal(y, unlimited(x)) and torch.equal(limited.eval()(x), unlimited.eval()(x))


def test_a_capacity_that_suffices_changes_nothing(known_noise):
    limited, unlimited = layer(False, capacity_factor=12.0), layer(False)
    unlimited.load_state_dict(limited.state_dict())
    x = torch.randn(16, 6, dtype=torch.double, requires_grad=True)
    (found, used), (wanted, _) = run(limited, x), run(unlimited, x)
    assert used.dropped == 0
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_fewer_tokens_than_experts_or_none_at_all(flat, tokens, capacity_factor):
    for dtype in (torch.double, torch.float):
        ours = layer(flat, dtype=dtype, d=8, hidden=12, n=16, capacity_factor=capacity_factor)
        x = torch.randn(2, tokens, 8, dtype=dtype, requires_grad=True)
        (y, *gradients), used = run(ours, x)
        assert y.shape == x.shape and all(g.isfinite().all() for g in gradients)
        assert all(value.isfinite() for value in used.statistics().values() if tokens)


def test_with_all_experts_at_work_it_is_an_ordinary_mixture():
    ours = layer(True, k=12).eval()
    x = torch.randn(5, 6, dtype=torch.double)
    every = torch.einsum("edh,nd->neh", ours.w1, x).relu()
    answers = torch.einsum("ehd,neh->ned", ours.w2, every)
    expected = ((x @ ours.gate.w_gate).softmax(1)[..., None] * answers).sum(1)
    torch.testing.assert_close(ours(x), expected, **EXACT)


def test_in_evaluation_there_is_no_noise_and_no_token_depends_on_another():
    ours = layer(False, capacity_factor=0.5).eval()
    x = torch.randn(9, 6, dtype=torch.double)
    torch.testing.assert_close(torch.cat([ours(part) for part in x.split(2)]), ours(x), **EXACT)
    assert not torch.equal(ours.train()(x), ours(x))


def test_gates_start_without_signal_and_so_with_an_even_load():
    """Appendix A. Experts start as torch's linear layers."""
    torch.manual_seed(0)
    ours = MixtureOfExperts(HierarchicalGate(16, 32, 2, 8), 16, 64)
    assert not any(p.any() for p in ours.gate.parameters())
    uses = []
    ours(torch.randn(4000, 16), uses)
    assert uses[0].statistics()["max_load"] < 1.3
    for weight, inputs in ((ours.w1, 16), (ours.w2, 64)):
        assert 0.99 * inputs**-0.5 < weight.abs().max() <= inputs**-0.5


def test_dropout_is_that_of_the_hidden_units():
    ours = MixtureOfExperts(NoisyTopKGate(6, 4, 4), 6, 200, dropout=0.5)
    x = torch.randn(3, 6)
    torch.manual_seed(0)
    noisy = torch.stack([ours(x) for _ in range(400)]).mean(0)
    torch.testing.assert_close(noisy, ours.eval()(x), rtol=0.1, atol=0.1)
    assert ours.train().dropout.p == 0.5 and not torch.equal(ours(x), ours(x))


@pytest.mark.slow
def test_the_layer_is_one_graph():
    torch._dynamo.reset()
    ours = layer(False, dtype=torch.float, d=8, hidden=12, n=16, capacity_factor=1.0)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = ours(torch.ones(5, 8))
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(torch.ones(5, 8)), expected)


# ---- expert parallelism ----


CASES = {  # flat or not, dtype, tokens of each rank, capacity factor, whether all tokens want the experts of one rank
    "flat": (True, torch.double, [7, 5], None, False),
    "hierarchical": (False, torch.double, [7, 5], None, False),
    "one_side": (True, torch.double, [6, 6], None, True),
    "one_side_fp32": (True, torch.float, [6, 6], None, True),
    "a_rank_without_tokens": (True, torch.double, [0, 9], None, False),
    "capacity": (False, torch.double, [7, 5], 16.0, False),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """All cases on two ranks, by two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    for seed, (name, (flat, dtype, tokens, capacity_factor, one_side)) in enumerate(CASES.items()):
        case = {"seed": seed, "flat": flat, "capacity_factor": capacity_factor, "tokens": tokens, "x": torch.randn(sum(tokens), 8, dtype=dtype)}
        whole = randomised(build(case), dtype)
        if one_side:  # rank 1 has nothing to do
            case["x"], whole.gate.w_gate.data[:, :8] = case["x"].abs(), 5.0
        torch.save(case | {"state": whole.state_dict(), "weights": torch.randn_like(case["x"])}, folder / f"{name}.case")
    root = Path(__file__).parent.parent.parent
    options = {"cwd": root, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-m", "tests.experts_worker", str(folder), rank], **options) for rank in "01"]
    errors = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_that_share_the_experts_equal_one(known_noise, ranks, name):
    case = torch.load(ranks / f"{name}.case")
    found = [torch.load(ranks / f"{name}.case.rank{rank}") for rank in (0, 1)]
    whole = build(case)
    whole.load_state_dict(case["state"])
    x, uses = case["x"].clone().requires_grad_(), []
    y = whole(x, uses)
    losses = uses[0].losses
    ((y * case["weights"]).sum() + losses["importance"] + 3 * losses["load"]).backward()
    exact = EXACT if x.dtype == torch.double else dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([f["y"] for f in found]), y, **exact)
    torch.testing.assert_close(torch.cat([f["x"] for f in found]), x.grad, **exact)
    for f in found:
        torch.testing.assert_close(f["load"], uses[0].load, **exact)
        for key in losses:
            torch.testing.assert_close(f["losses"][key], losses[key], **exact)
    for key, parameter in whole.named_parameters():
        parts = [f["gradients"][key] for f in found]
        torch.testing.assert_close(torch.cat(parts) if key in ("w1", "w2") else parts[0] + parts[1], parameter.grad, **exact)
    assert ("one_side" in name) == (not found[1]["gradients"]["w1"].any())


# ---- language model and objective ----


def tiny(**options) -> nn.Module:
    return randomised(moe.moe_language_model(11, **{"experts": 8, "k": 2, "d_model": 6, "hidden": 5, "dropout": 0.0, **options}))


def text(batch: int = 3, length: int = 8) -> dict[str, torch.Tensor]:
    stream = torch.randint(11, (batch, length + 1))
    return {"tokens": stream[:, :-1], "targets": stream[:, 1:].clone(), "reset": torch.zeros(batch, dtype=torch.bool)}


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"units": 10}])
def test_the_model_is_lstm_mixture_lstm_with_residuals_and_a_sigmoid(options):
    model, tokens = tiny(**options).eval(), text()["tokens"]
    first, mixture, second = model.layers
    x = model.embedding(tokens)
    x = x + first(x)[0]
    x = x + torch.sigmoid(mixture(x))
    x = x + second(x)[0]
    logits, carry = model(tokens)
    torch.testing.assert_close(logits, model.decoder(x), **EXACT)
    assert {name: value.shape[1] for name, value in carry.items()} == {"h0": 6, "c0": options.get("units", 6), "h1": 6, "c1": options.get("units", 6)}


def test_an_lstm_has_the_one_bias_of_its_equations():
    layer = randomised(moe.model.lstm(4, 4))
    x, h, c = torch.randn(2, 3, 4, dtype=torch.double), torch.zeros(2, 4).double(), torch.zeros(2, 4).double()
    for t in range(3):
        i, f, g, o = (x[:, t] @ layer.weight_ih_l0.T + h @ layer.weight_hh_l0.T + layer.bias_ih_l0).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    torch.testing.assert_close(layer(x)[0][:, -1], h, **EXACT)


@pytest.mark.parametrize("build", [tiny, partial(tiny, groups=2), lambda: randomised(moe.dense_language_model(11, [5, 4], 6, 0.0)),
                                   lambda: randomised(moe.model.MixtureLanguageModel(11, 6, [moe.model.lstm(6, 9)], 0.0))])  # fmt: skip
def test_a_text_may_be_read_in_parts(build):
    model, tokens = build().eval(), text()["tokens"]
    whole, last = model(tokens)
    carry = model.initial_carry(3)
    parts = []
    for part in tokens.split(3, 1):
        logits, carry = model(part, carry)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, **EXACT)
    assert all(torch.allclose(carry[name], last[name]) for name in last)


def test_the_objective_adds_up_as_the_trainer_expects(known_noise):
    objective = BalancedLanguageModel(tiny(), w_importance=0.3, w_load=0.7, unit="char")
    batch = text()
    batch["targets"][0, 5:] = -100
    terms, logs, carry = objective(batch, "model", objective.initial_carry(3))
    counts = objective.count(batch, "model")
    logits, _ = objective.model(batch["tokens"])
    nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    _, importance, load = slow_layer(objective.model.layers[1], mixture_input(objective.model, batch["tokens"]).flatten(0, 1))
    torch.testing.assert_close(terms["loss"] / counts["loss"], nats, **EXACT)
    torch.testing.assert_close(terms["importance"], importance, **EXACT)
    torch.testing.assert_close(terms["load"], load, **EXACT)
    assert objective.weights == {"importance": 0.3, "load": 0.7} and counts["importance"] == counts["load"] == 1
    assert logs.keys() == {"nats_per_char", "cv_importance", "cv_load", "max_load"} <= counts.keys()
    torch.testing.assert_close(logs["cv_load"] ** 2, load, **EXACT)
    assert not any(value.requires_grad for value in (*logs.values(), *carry.values()))


def mixture_input(model, tokens):
    x = model.embedding(tokens)
    return x + model.layers[0](x)[0]


def test_metrics_samples_and_pictures():
    objective = BalancedLanguageModel(tiny(), unit="char").eval()
    batch = text()
    statistics, carry = objective.evaluate(batch, objective.initial_carry(3))
    metrics = objective.summarise({name: 2 * value.item() for name, value in statistics.items()})  # two such batches
    assert metrics["bits_per_char"] == pytest.approx(metrics["loss"] / 0.6931471805599453)
    _, load = objective.model.layers[1].gate(mixture_input(objective.model, batch["tokens"]).flatten(0, 1)).sums
    assert metrics["max_load"] == pytest.approx((load.max() / load.mean()).item()) and load.sum() == 48
    generator = torch.Generator().manual_seed(0)
    assert objective.sample(2, generator, length=5).shape == (2, 5)
    picture = objective.pictures(batch, generator)["expert_use"]
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3 and picture.float().std() > 1
    dense = BalancedLanguageModel(randomised(moe.dense_language_model(11, [5], 6, 0.0)))
    assert dense.pictures(batch, generator) == {} and dense(batch, "model", dense.initial_carry(3))[0].keys() == {"loss"}


def test_every_parameter_learns():
    for options in ({}, {"groups": 4}, {"experts": 2}, {"capacity_factor": 1.0}):
        objective = BalancedLanguageModel(tiny(**options))
        terms, *_ = objective(text(4, 16), "model", objective.initial_carry(4))
        torch.stack(list(terms.values())).sum().backward()
        assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---- errors ----


@pytest.mark.parametrize("call, said", [
    (lambda: NoisyTopKGate(8, 4, 5), "from 1 to the 4 experts, not 5"),
    (lambda: NoisyTopKGate(8, 4, 0), "from 1 to the 4 experts, not 0"),
    (lambda: NoisyTopKGate(8, 0, 1), "experts must be at least 1, not 0"),
    (lambda: HierarchicalGate(8, 10, 2, 4), "experts 10 do not divide into 4 groups"),
    (lambda: HierarchicalGate(8, 16, 3, 8), "from 1 to the 2 experts of a group, not 3"),
    (lambda: HierarchicalGate(8, 16, 3, 2), "from 1 to the 2 groups, not 3"),
    (lambda: MixtureOfExperts(NoisyTopKGate(8, 4, 2), 8, 0), "hidden must be at least 1, not 0"),
    (lambda: MixtureOfExperts(NoisyTopKGate(8, 4, 2), 8, 8, capacity_factor=0.0), "capacity_factor must be above 0"),
    (lambda: MixtureOfExperts(NoisyTopKGate(8, 4, 2), 8, 8)(torch.zeros(3, 7)), r"tokens of width 8, (..., 8), not (3, 7)"),
    (lambda: MixtureOfExperts(NoisyTopKGate(8, 4, 2), 8, 8)(torch.zeros(8)), "not (8,)"),
    (lambda: moe.moe_language_model(0), "vocab_size must be at least 1"),
    (lambda: moe.moe_language_model(11, units=-1), "units must be at least 1"),
    (lambda: moe.dense_language_model(11, [0]), "hidden[0] must be at least 1"),
    (lambda: tiny()(torch.zeros(3, dtype=torch.long)), "tokens must be (batch, time), not (3,)"),
    (lambda: BalancedLanguageModel(tiny(), w_load=-1.0), "must not be negative"),
    (lambda: BalancedLanguageModel(tiny(), unit="byte"), "unit must be token, char or word"),
])  # fmt: skip
def test_errors_are_one_sentence(call, said):
    assert said in message(call, ValueError)


# ---- claims ----


def clusters(generator: torch.Generator, experts: int = 8, d: int = 16):
    """Points around `experts` centres, each cluster with a linear map of its own: (n) -> points (n, d), their images (n, d)."""
    centres = 2 * torch.randn(experts, d, generator=generator)
    maps = torch.randn(experts, d, d, generator=generator) / d**0.5

    def draw(n: int):
        which = torch.randint(experts, (n,), generator=generator)
        x = centres[which] + torch.randn(n, d, generator=generator)
        return x, torch.einsum("nij,nj->ni", maps[which], x)

    return draw


def trained(network: nn.Module, w_importance: float, w_load: float, seed: int) -> tuple[float, dict[str, float], list[float]]:
    """Mean squared error on new points, how their experts are used, and the load of each, after 1,500 steps of Adam."""
    draw = clusters(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3, fused=True)
    for _ in range(1500):
        x, target = draw(512)
        uses = []
        y = network(x, uses) if isinstance(network, MixtureOfExperts) else network(x)
        loss = F.mse_loss(y, target)
        for use in uses:
            loss = loss + w_importance * use.losses["importance"] + w_load * use.losses["load"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, target = draw(4096)
    uses = []
    with torch.no_grad():
        y = network.eval()(x, uses) if isinstance(network, MixtureOfExperts) else network(x)
    used = {name: value.item() for use in uses for name, value in use.statistics().items()}
    return F.mse_loss(y, target).item(), used, [load for use in uses for load in use.load.tolist()]


def mixture(seed: int, experts: int = 16) -> MixtureOfExperts:
    torch.manual_seed(seed)
    return MixtureOfExperts(NoisyTopKGate(16, experts, 2), 16, 32)


@pytest.mark.claim
def test_the_losses_keep_all_experts_in_use(claim):
    """Table 6 in small: both losses, or either, against none."""
    seed = claim.seed(7)
    found = {weights: trained(mixture(seed), *weights, seed) for weights in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2), (0.1, 0.1))}

    def draw():
        figure, axes = panels("Two losses keep all experts in use", 4, sharey=True)
        titles = ("no loss", "w_importance 0.2", "w_load 0.2", "0.1 each")
        for axis, title, (_, _, load) in zip(axes, titles, found.values()):
            axis.bar(range(1, 17), [100 * each / sum(load) for each in sorted(load, reverse=True)], 0.9, color=ORANGE if title == "no loss" else BLUE)
            axis.set(title=title, xlabel="expert", xticks=[1, 16])
            level(axis, 100 / 16, "even" if axis is axes[0] else "")
        axes[0].set_ylabel("share of the points (%)")
        return figure

    claim(draw, seed=seed, **{f"w_{a}_{b}": {"mse": mse, **used} for (a, b), (mse, used, _) in found.items()})
    mse, used, _ = found[0.1, 0.1]
    # Thresholds by seeds 0 to 2: max_load 1.04, 1.08, 1.05, without losses 2.4, 2.2, 3.1; cv_load 0.02 to 0.04, without 0.79, 0.76, 0.83;
    # mse 0.0002, 0.0002, 0.0020, where a dense network has 0.2. Seed 3, unseen: 1.24, 2.3, 0.16, 0.89, 0.008.
    assert used["max_load"] < 1.3 < 1.8 < found[0.0, 0.0][1]["max_load"], found
    assert used["cv_load"] < 0.2 < 0.5 < found[0.0, 0.0][1]["cv_load"], found
    assert mse < 0.02, found


@pytest.mark.claim
def test_experts_add_capacity_at_equal_computation(claim):
    """Two of 16 experts of 32 hidden units work for a point; so do the 64 of the dense network."""
    seed = claim.seed(7)
    torch.manual_seed(seed)
    dense = nn.Sequential(nn.Linear(16, 64, bias=False), nn.ReLU(), nn.Linear(64, 16, bias=False))
    dense_mse, _, _ = trained(dense, 0.0, 0.0, seed)
    errors = {experts: trained(mixture(seed, experts), 0.1, 0.1, seed)[0] for experts in (2, 4, 8, 16, 32)}
    mse = errors[16]

    def draw():
        figure, axis = panels("More experts, the same computation, less error")
        curves(axis, {"": (list(errors), list(errors.values()))}, xlabel="experts, of which two work for a point", ylabel="mean squared error",
               xscale="log", yscale="log")  # fmt: skip
        axis.set_xticks(list(errors))
        level(axis, dense_mse, "dense network")
        return figure

    claim(draw, seed=seed, mse_dense=dense_mse, mse_mixture=mse)
    # Thresholds by seeds 0 to 2: mixture 0.0002, 0.0002, 0.0020, dense 0.198, 0.213, 0.203. Seed 3, unseen: 0.008, 0.306.
    assert mse < dense_mse / 5, (mse, dense_mse)
