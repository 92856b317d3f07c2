"""Switch Transformer: sizes, parity with transformers, routing, capacity, balancing loss, decoder, errors, claims."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.figures import BLUE, ORANGE, curves, level, panels, smooth
from tests.helpers import message
from zoo.papers import switch_transformer as switch
from zoo.papers.mixture_of_experts import HierarchicalGate, MixtureOfExperts
from zoo.papers.switch_transformer import RoutedLanguageModel, SwitchGate, SwitchLanguageModel
from zoo.papers.switch_transformer.model import RelativePositions

EXACT = dict(rtol=1e-10, atol=1e-10)


def randomised(module: nn.Module) -> nn.Module:
    """In fp64, with weights that keep a signal's size and norms that are not 1: none of them can be swapped or forgotten unnoticed."""
    module.double()
    for p in module.parameters():
        nn.init.uniform_(p, 0.5, 1.5) if p.ndim == 1 else nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return module


def tiny(**options) -> SwitchLanguageModel:
    return randomised(SwitchLanguageModel(**{"vocab_size": 11, "depth": 4, "d_model": 12, "d_ff": 10, "n_heads": 3, "experts": 4, **options}))


def text(batch: int = 3, length: int = 8) -> dict[str, torch.Tensor]:
    stream = torch.randint(11, (batch, length + 1))
    return {"tokens": stream[:, :-1], "targets": stream[:, 1:].clone()}


@pytest.mark.parametrize("preset, options, parameters", [
    ("switch_decoder_base", {}, 3_730_459_776), ("switch_decoder_base", {"experts": 8}, 332_520_576),
    ("switch_decoder_base", {"experts": 1}, 134_302_848), ("switch_decoder_tiny", {}, 2_649_600),
])  # fmt: skip
def test_sizes(preset, options, parameters):
    with torch.device("meta"):
        model = getattr(switch, preset)(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters


# ---- parity with transformers ----


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")


def in_fp64(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if hasattr(part, "jitter_noise"):
            part.dtype = torch.double  # of the router, which a configuration can't set
    return randomised(module)


def config(theirs, **options):
    sizes = {"vocab_size": 11, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_heads": 3, "num_experts": 4, "num_decoder_layers": 4}
    return theirs.SwitchTransformersConfig(
        **sizes, num_sparse_decoder_layers=2, num_layers=4, num_sparse_encoder_layers=2, dropout_rate=0.0, router_jitter_noise=0.0,
        is_decoder=True, use_cache=False, attn_implementation="eager", **options)  # fmt: skip


@pytest.mark.parametrize("expert_capacity, drops", [(64, False), (3, True)])
def test_the_layer_equals_transformers(theirs, expert_capacity, drops):
    """One text: theirs counts an expert's tokens text by text, ours in the whole batch, as the paper does."""
    torch.manual_seed(0)
    reference = in_fp64(theirs.SwitchTransformersSparseMLP(config(theirs, expert_capacity=expert_capacity)))
    ours = MixtureOfExperts(SwitchGate(12, 4, jitter=0.0), 12, 10, capacity_factor=expert_capacity * 4 / 16).double()
    ours.gate.router.weight.data = reference.router.classifier.weight.data.clone()
    for key, name in (("w1", "wi"), ("w2", "wo")):
        setattr(ours, key, nn.Parameter(torch.stack([getattr(expert, name).weight.data.T for expert in reference.experts.values()])))
    x = torch.randn(1, 16, 12, dtype=torch.double)
    uses, weights = [], torch.randn_like(x)
    y, expected = ours(x, uses), reference(x)
    torch.testing.assert_close(y, expected, **EXACT)
    assert bool(uses[0].dropped > 0) == drops
    inputs = [ours.gate.router.weight, ours.w1, ours.w2]
    router, w1, w2 = torch.autograd.grad((y * weights).sum(), inputs)
    (expected * weights).sum().backward()
    experts = reference.experts.values()
    gradient = lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    torch.testing.assert_close(router, reference.router.classifier.weight.grad, **EXACT)
    torch.testing.assert_close(w1, torch.stack([gradient(expert.wi.weight).T for expert in experts]), **EXACT)
    torch.testing.assert_close(w2, torch.stack([gradient(expert.wo.weight).T for expert in experts]), **EXACT)


def as_ours(name: str, tensors: Callable[[str], torch.Tensor], layer: str) -> torch.Tensor:
    """The tensor of theirs, by their name, that belongs to a parameter of a block of ours. Their layer.1 is attention to an encoder, unused."""
    attention, feed_forward = f"block.{layer}.layer.0", f"block.{layer}.layer.2"
    experts = lambda key: torch.stack([tensors(f"{feed_forward}.mlp.experts.expert_{i}.{key}.weight").T for i in range(4)])
    return {
        "attention.qkv.weight": lambda: torch.cat([tensors(f"{attention}.SelfAttention.{key}.weight") for key in "qkv"]),
        "attention.out.weight": lambda: tensors(f"{attention}.SelfAttention.o.weight"),
        "norm1.weight": lambda: tensors(f"{attention}.layer_norm.weight"),
        "norm2.weight": lambda: tensors(f"{feed_forward}.layer_norm.weight"),
        "feed_forward.0.weight": lambda: tensors(f"{feed_forward}.mlp.wi.weight"),
        "feed_forward.3.weight": lambda: tensors(f"{feed_forward}.mlp.wo.weight"),
        "feed_forward.gate.router.weight": lambda: tensors(f"{feed_forward}.mlp.router.classifier.weight"),
        "feed_forward.w1": lambda: experts("wi"),
        "feed_forward.w2": lambda: experts("wo"),
    }[name]()


def from_theirs(name: str, tensors: Callable[[str], torch.Tensor]) -> torch.Tensor:
    outside = {"embedding.weight": "embed_tokens.weight", "norm.weight": "final_layer_norm.weight",
               "positions.bias.weight": "block.0.layer.0.SelfAttention.relative_attention_bias.weight"}  # fmt: skip
    if name in outside:
        return tensors(outside[name])
    _, layer, inner = name.split(".", 2)
    return as_ours(inner, tensors, layer)


def test_the_decoder_equals_that_of_transformers_without_an_encoder(theirs, monkeypatch):
    """In which norms are in fp32; here in fp64, too, so that the rest can be compared exactly."""
    norm = lambda self, x: self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
    monkeypatch.setattr(theirs.SwitchTransformersLayerNorm, "forward", norm)
    torch.manual_seed(0)
    reference = in_fp64(theirs.SwitchTransformersStack(config(theirs, expert_capacity=1000))).eval()
    ours = tiny(capacity_factor=None).eval()
    state = dict(reference.named_parameters())
    names = [name for name in ours.state_dict() if not name.startswith("decoder")]
    with torch.no_grad():
        for name in names:
            ours.get_parameter(name).copy_(from_theirs(name, state.__getitem__))
    tokens = torch.randint(11, (2, 150))  # longer than the last bucket begins
    features, expected = ours.forward_features(tokens), reference(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(features, expected, **EXACT)
    weights = torch.randn_like(features)
    found = dict(zip(names, torch.autograd.grad((features * weights).sum(), [ours.get_parameter(name) for name in names])))
    (expected * weights).sum().backward()
    for name in names:
        gradient = lambda key: state[key].grad if state[key].grad is not None else torch.zeros_like(state[key])
        torch.testing.assert_close(found[name], from_theirs(name, gradient), **EXACT)


def test_the_balancing_loss_equals_that_of_transformers(theirs):
    gate, x = randomised(SwitchGate(12, 4)).eval(), torch.randn(20, 12, dtype=torch.double)
    p = F.linear(x, gate.router.weight).softmax(-1)
    loss = gate.losses(*gate.totals(*gate(x).sums))["balance"]
    torch.testing.assert_close(loss, 4 * (F.one_hot(p.argmax(1), 4).double().mean(0) * p.mean(0)).sum(), **EXACT)
    torch.testing.assert_close(loss, theirs.load_balancing_loss_func(p[None], p.argmax(-1)[None]), rtol=1e-7, atol=0)  # f in fp32 there


# ---- routing ----


def test_a_token_gets_its_best_expert_times_p():
    gate, x = randomised(SwitchGate(12, 5)).eval(), torch.randn(30, 12, dtype=torch.double)
    layer = randomised(MixtureOfExperts(gate, 12, 7)).eval()
    p = F.linear(x, gate.router.weight).softmax(-1)
    best = p.argmax(1)
    expected = torch.stack([p[n, i] * (torch.relu(x[n] @ layer.w1[i]) @ layer.w2[i]) for n, i in enumerate(best)])
    torch.testing.assert_close(layer(x), expected, **EXACT)
    importance, load = gate.totals(*gate(x).sums)
    torch.testing.assert_close(importance, p.sum(0), **EXACT)
    assert load.tolist() == best.bincount(minlength=5).tolist()


def test_an_even_load_has_a_balancing_loss_of_1_and_a_single_busy_expert_one_of_e():
    gate = SwitchGate(3, 4)
    assert gate.losses(torch.full((4,), 2.0), torch.full((4,), 2.0))["balance"] == 1
    assert gate.losses(torch.tensor([8.0, 0, 0, 0]), torch.tensor([8.0, 0, 0, 0]))["balance"] == 4


def test_only_the_gate_sees_the_jitter_and_only_in_training():
    gate, x = SwitchGate(6, 4, jitter=0.5), torch.randn(200, 6)
    torch.testing.assert_close(gate.eval()(x).weights, gate(x).weights)
    assert not torch.equal(gate.train()(x).weights, gate(x).weights)
    layer = MixtureOfExperts(SwitchGate(6, 1, jitter=0.5), 6, 8)  # one expert, p = 1: what it sees is x itself
    torch.testing.assert_close(layer.train()(x), torch.relu(x @ layer.w1[0]) @ layer.w2[0])


def test_routing_is_in_fp32_where_the_rest_is_in_bf16():
    layer, x = MixtureOfExperts(SwitchGate(16, 4, jitter=0.0), 16, 24), torch.randn(64, 16)
    expected = F.linear(x, layer.gate.router.weight).softmax(-1).max(1)
    with torch.autocast("cpu", torch.bfloat16):
        routing = layer.gate(x)
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(routing.weights[:, 0], expected.values) and torch.equal(routing.experts[:, 0], expected.indices)
    assert layer.to(torch.bfloat16).gate(x.bfloat16()).weights.dtype == torch.float32


def test_every_second_layer_has_experts_and_one_expert_is_a_dense_model():
    sparse = lambda **options: [isinstance(block.feed_forward, MixtureOfExperts) for block in tiny(**options).blocks]
    assert sparse() == [False, True, False, True]
    assert sparse(every=1) == [True] * 4 and sparse(every=3) == [False, False, True, False]
    assert sparse(experts=1) == [False] * 4


# ---- the decoder ----


def test_no_token_sees_a_later_one():
    for options in ({}, {"gate": "noisy_top_k", "k": 2}):
        model, tokens = tiny(**options).eval(), text()["tokens"]
        changed = tokens.clone()
        changed[:, 5:] = (changed[:, 5:] + 1) % 11
        torch.testing.assert_close(model(changed)[:, :5], model(tokens)[:, :5], **EXACT)
        assert not torch.allclose(model(changed)[:, 5], model(tokens)[:, 5])


def test_distances_share_buckets_from_16_on():
    positions = RelativePositions(1)
    positions.bias.weight.data = torch.arange(32.0)[:, None]
    bias = positions(200)[0]
    assert bias[199, 184:].tolist() == list(range(15, -1, -1))  # up to distance 15 a bucket each
    assert bias[199, 0] == 31 == bias[199, 199 - 128]
    assert (bias.triu(1)[0, 1:] == -torch.inf).all()


def test_initial_weights():
    """Section 2.4: standard deviation sqrt(0.1 / n), nothing beyond two of them; W_q as T5's, divided by sqrt(d_k)."""
    torch.manual_seed(0)
    model = SwitchLanguageModel(50, depth=2, d_model=64, d_ff=256, n_heads=4, experts=8)
    narrower = 0.8796  # the standard deviation of a normal distribution cut at +-2
    linears = [(block.attention.out.weight, 64) for block in model.blocks] + [(model.blocks[0].feed_forward[3].weight, 256)]
    mixture = model.blocks[1].feed_forward
    q, k, v = model.blocks[0].attention.qkv.weight.split(64)
    embeddings = [(model.embedding.weight, 1)]
    for weight, n in [*linears, *embeddings, (mixture.w1, 64), (mixture.w2, 256), (mixture.gate.router.weight, 64), (q, 64 * 16), (k, 64), (v, 64)]:
        std = (0.1 / n) ** 0.5
        assert weight.abs().max() <= 2 * std and weight.std().item() == pytest.approx(narrower * std, rel=0.1)


@pytest.mark.parametrize("options", [{}, {"gate": "noisy_top_k"}, {"experts": 1}, {"capacity_factor": None}])
def test_every_parameter_learns(options):
    torch.manual_seed(0)
    objective = RoutedLanguageModel(tiny(**options))
    terms, _ = objective(text(8, 16), "model")
    torch.stack(list(terms.values())).sum().backward()
    silent = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_objective_adds_up_as_the_trainer_expects():
    objective = RoutedLanguageModel(tiny(experts=5), alpha=0.03, unit="char")
    objective.eval()  # without jitter, so that the gates can be asked again
    batch = text()
    batch["targets"][0, 5:] = -100
    terms, logs = objective(batch, "model")
    counts = objective.count(batch, "model")
    nats = F.cross_entropy(objective.model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
    torch.testing.assert_close(terms["loss"] / counts["loss"], nats, **EXACT)
    inputs = []
    for block in objective.model.blocks[1::2]:
        block.feed_forward.register_forward_pre_hook(lambda module, arguments: inputs.append((module.gate, arguments[0])))
    objective.model(batch["tokens"])
    expected = sum(gate.losses(*gate(x.flatten(0, 1)).sums)["balance"] for gate, x in inputs)
    torch.testing.assert_close(terms["balance"], expected, **EXACT)
    assert len(inputs) == 2 and objective.weights["balance"] == 0.03 and counts["balance"] == 1
    assert logs.keys() == {"nats_per_char", "cv_importance", "cv_load", "max_load"} <= counts.keys()
    assert objective.train()(batch, "model")[1].keys() == {*logs, "dropped"}
    noisy = RoutedLanguageModel(tiny(gate="noisy_top_k"))
    assert noisy(batch, "model")[0].keys() == {"loss", "importance", "load"}


def test_metrics_samples_and_pictures():
    objective = RoutedLanguageModel(tiny(), unit="char").eval()
    statistics = objective.evaluate(text())
    metrics = objective.summarise({name: 3 * value.item() for name, value in statistics.items()})  # three such batches
    assert metrics["bits_per_char"] == pytest.approx(metrics["loss"] / 0.6931471805599453)
    assert 1 <= metrics["max_load"] <= 4 and metrics.keys() >= {"perplexity", "cv_load", "cv_importance"}
    generator = torch.Generator().manual_seed(0)
    assert objective.sample(2, generator, length=5, prompt=torch.tensor([1, 2])).shape == (2, 5)
    picture = objective.pictures(text(), generator)["expert_use"]
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3 and picture.float().std() > 1
    assert RoutedLanguageModel(tiny(experts=1)).pictures(text(), generator) == {}


def test_a_block_takes_any_gate():
    block = randomised(switch.model.Block(12, 3, MixtureOfExperts(HierarchicalGate(12, 16, 2, 4), 12, 10), dropout=0.0))
    uses = []
    y = block(torch.randn(2, 5, 12, dtype=torch.double), RelativePositions(3)(5), uses)
    assert y.shape == (2, 5, 12) and uses[0].losses.keys() == {"importance", "load"}


# ---- errors ----


@pytest.mark.parametrize("call, said", [
    (lambda: tiny(n_heads=5), "d_model 12 does not divide into n_heads 5 heads"),
    (lambda: tiny(depth=0), "depth must be at least 1, not 0"),
    (lambda: tiny(experts=0), "experts must be at least 1, not 0"),
    (lambda: tiny(every=5), "every 5 is more than depth 4"),
    (lambda: tiny(gate="top_k"), "unknown gate 'top_k': use 'switch' or 'noisy_top_k'"),
    (lambda: tiny(gate="noisy_top_k", k=5), "from 1 to the 4 experts, not 5"),
    (lambda: tiny(capacity_factor=-1.0), "capacity_factor must be above 0"),
    (lambda: tiny()(torch.zeros(3, 0, dtype=torch.long)), "at least one token, not (3, 0)"),
    (lambda: RoutedLanguageModel(tiny(), alpha=-0.1), "must not be negative"),
    (lambda: RoutedLanguageModel(tiny(), unit="byte"), "unit must be token, char or word"),
])  # fmt: skip
def test_errors_are_one_sentence(call, said):
    assert said in message(call, ValueError)


# ---- claims ----


def sources(generator: torch.Generator, count: int = 8, symbols: int = 16):
    """Texts of as many Markov chains, each of its own: (n, length) -> (n, length) tokens."""
    transitions = (3 * torch.randn(count, symbols, symbols, generator=generator)).softmax(-1)

    def draw(n: int, length: int) -> torch.Tensor:
        which, tokens = torch.randint(count, (n,), generator=generator), [torch.randint(symbols, (n,), generator=generator)]
        for _ in range(length - 1):
            tokens.append(torch.multinomial(transitions[which, tokens[-1]], 1, generator=generator)[:, 0])
        return torch.stack(tokens, 1)

    return draw


def trained(seed: int, alpha: float, **options) -> tuple[dict[str, float], list[float], list[float]]:
    """Metrics on new texts after 500 steps of Adam, and the percentage of tokens dropped in the last 100; the loss of each step; the load of each
    expert of the last layer."""
    draw = sources(torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    model = SwitchLanguageModel(16, depth=2, d_model=32, d_ff=32, n_heads=2, every=1, **options)
    objective = RoutedLanguageModel(model, alpha=alpha)
    optimizer, dropped, losses, uses = torch.optim.Adam(model.parameters(), 5e-3, fused=True), [], [], []
    for step in range(500):
        tokens = draw(64, 25)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        terms, logs = objective(batch, "model")
        counts = objective.count(batch, "model")
        optimizer.zero_grad()
        sum(value * objective.weights.get(name, 1.0) / counts[name] for name, value in terms.items()).backward()
        optimizer.step()
        losses.append(terms["loss"].item() / counts["loss"])
        if step >= 400 and "dropped" in logs:
            dropped.append(logs["dropped"].item())
    tokens = draw(512, 25)
    with torch.no_grad():
        statistics = objective.eval().evaluate({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        model(tokens[:, :-1], uses)
    metrics = objective.summarise({name: value.item() for name, value in statistics.items()}) | {"dropped": sum(dropped) / max(len(dropped), 1)}
    return metrics, losses, uses[-1].load.tolist() if uses else []


@pytest.mark.claim
def test_experts_help_at_equal_computation_and_the_loss_keeps_them_in_use(claim):
    """8 experts against none, as many steps and multiplications; with the balancing loss and without."""
    seed = claim.seed(7)
    dense, dense_losses, _ = trained(seed, alpha=0.0, experts=1)
    sparse, losses, load = trained(seed, alpha=0.01, experts=8, capacity_factor=1.25)
    unbalanced, _, uneven = trained(seed, alpha=0.0, experts=8, capacity_factor=None)

    def draw():
        figure, (left, right) = panels("Eight experts learn faster than none, at equal computation", 2)
        lines = {"8 experts": losses, "dense": dense_losses}
        curves(left, {name: (range(10, 501), smooth(each, 10)) for name, each in lines.items()}, xlabel="updates", ylabel="loss (nats a token)")
        for shift, loads, colour, label in ((-0.2, load, BLUE, "with the loss"), (0.2, uneven, ORANGE, "without")):
            shares = torch.tensor(loads).sort(descending=True).values / sum(loads)
            right.bar(torch.arange(1, 9).numpy() + shift, 100 * shares.numpy(), 0.4, color=colour, label=label)
        right.set(xlabel="expert, by load", ylabel="share of the tokens (%)", xticks=range(1, 9))
        right.legend(fontsize=8)
        level(right, 12.5, "")
        return figure

    claim(draw, seed=seed, dense=dense, sparse=sparse, unbalanced=unbalanced)
    # Thresholds by seeds 0 to 2: gain 0.126, 0.099, 0.113; dropped 1.2, 1.0, 2.5; max_load 1.28, 1.25, 1.33; ratio of cv_load 2.6, 3.4, 1.7.
    # Seed 3, unseen: 0.104, 2.6, 1.33, 2.6.
    assert sparse["loss"] < dense["loss"] - 0.05, (sparse, dense)
    assert sparse["dropped"] < 5 and sparse["max_load"] < 1.5, sparse
    assert unbalanced["cv_load"] > 1.3 * sparse["cv_load"], (unbalanced, sparse)
