"""Houlsby's adapters: place, counts, equality with another implementation in BERT, start near the identity, what learns, errors, claims."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.figures import BLUE, GREY, ORANGE, curves, panels, points
from tests.helpers import double, message  # noqa: F401
from tests.toys import without_curves
from zoo.config import compose
from zoo.papers.adapters import Bottleneck, apply
from zoo.papers.bert import Bert, bert_base, bert_large
from zoo.papers.vit import ViT
from zoo.training.build import build_objective
from zoo.training.loop import run


def tiny_vit():
    model = ViT(image_size=8, patch_size=4, depth=2, d_model=12, n_heads=2, num_classes=3, in_channels=1)
    nn.init.normal_(model.head.weight)  # it starts at zero, and would hide all differences
    return model


@pytest.mark.parametrize("preset, size, adapters, norms", [
    (bert_base, 64, 2_379_264, 38_400),  # 2 L (2 m d + d + m), and 2 d for each of 2 L + 1 layer norms
    (bert_base, 8, 313_536, 38_400),
    (bert_base, 256, 9_461_760, 38_400),
    (bert_large, 64, 6_343_680, 100_352),
    (bert_large, 8, 835_968, 100_352),
    (bert_large, 256, 25_227_264, 100_352),
])  # fmt: skip
def test_parameters_that_bert_is_adapted_by(preset, size, adapters, norms):
    with torch.device("meta"):
        model = preset(head="classification")
        before = sum(p.numel() for p in model.parameters())
        apply(model, size, ["layers.*.attention", "fc2"], train=["head"])
    assert sum(p.numel() for p in model.parameters()) - before == adapters
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trained.items() if ".adapter." in name) == adapters
    assert sum(count for name, count in trained.items() if "norm" in name) == norms
    assert {name for name in trained if ".adapter." not in name and "norm" not in name} == {"head.linear.weight", "head.linear.bias"}


class Theirs(nn.Module):
    """The bottleneck anew, as matrices."""

    def __init__(self, d, m):
        super().__init__()
        self.W, self.b, self.V, self.c = (nn.Parameter(torch.randn(shape) / 3) for shape in ((m, d), (m,), (d, m), (d,)))

    def forward(self, x):
        z = x @ self.W.T + self.b
        z = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
        return x + z @ self.V.T + self.c


@pytest.mark.usefixtures("double")
def test_outputs_and_gradients_equal_adapters_sewn_into_transformers_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
                                     max_position_embeddings=9, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    theirs = transformers.BertModel(config)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    in_theirs, in_ours, ours = copy.deepcopy(theirs), copy.deepcopy(theirs), Bert(30, 2, 12, 2, 20, 9, dropout=0.0)
    from zoo.papers.bert.convert import from_transformers

    ours.load_state_dict(from_transformers(theirs.state_dict()))
    sewn = []
    for layer in in_theirs.encoder.layer:
        for sub_layer in (layer.attention.output, layer.output):
            sewn.append(Theirs(12, 5))
            sub_layer.dense = nn.Sequential(sub_layer.dense, sewn[-1])
    apply(in_ours, 5, ["output.dense"])
    apply(ours, 5, ["attention", "fc2"])
    tokens = torch.randint(30, (3, 7))
    expected = in_theirs(tokens).last_hidden_state
    expected.square().sum().backward()
    for model, call in ((in_ours, lambda: in_ours(tokens).last_hidden_state), (ours, lambda: ours.forward_features(tokens))):
        adapters = [module for module in model.modules() if isinstance(module, Bottleneck)]
        assert len(adapters) == 4
        for adapter, other in zip(adapters, sewn):
            for mine, their in zip((adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias), other.parameters()):
                mine.data = their.data.clone()
        output = call()
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
        output.square().sum().backward()
        for adapter, other in zip(adapters, sewn):
            for mine, their in zip((adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias), other.parameters()):
                torch.testing.assert_close(mine.grad, their.grad, rtol=1e-10, atol=1e-10)
    norms = {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
    for name, other in norms.items():
        torch.testing.assert_close(ours.layers[1].get_submodule(name).weight.grad, in_theirs.encoder.layer[1].get_submodule(other).weight.grad)


def test_without_an_update_it_is_the_base_exactly_and_at_the_start_nearly():
    base = tiny_vit().eval()
    x = torch.randn(4, 1, 8, 8)
    model = apply(copy.deepcopy(base), 3, ["attention", "mlp"])
    difference = (model(x) - base(x)).abs().max()
    assert 0 < difference < 0.02 * base(x).abs().max()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.up.weight)
    assert torch.equal(model(x), base(x))


def test_weights_start_in_a_gaussian_cut_off_at_two_standard_deviations():
    torch.manual_seed(0)
    adapter = Bottleneck(300, 200)
    for layer in (adapter.down, adapter.up):
        assert layer.weight.abs().max().item() == pytest.approx(0.02, rel=0.01) and not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.01 * 0.8796, rel=0.01)  # what is left of the deviation
    assert Bottleneck(300, 200, init_std=1.0).up.weight.abs().max().item() == pytest.approx(2, rel=0.01)


def test_names_of_the_base_stay_and_copies_compute_the_same():
    base = tiny_vit().eval()
    before = list(base.state_dict())
    apply(base, 2, ["attention", "blocks.1.mlp"])
    new = [name for name in base.state_dict() if name not in before]
    assert [name for name in base.state_dict() if name not in new] == before
    places = ["blocks.0.attention", "blocks.1.attention", "blocks.1.mlp"]
    assert new == [f"{place}.adapter.{side}.{kind}" for place in places for side in ("down", "up") for kind in ("weight", "bias")]
    other, x = copy.deepcopy(base), torch.randn(2, 1, 8, 8)
    nn.init.ones_(base.blocks[0].attention.adapter.up.weight)
    other.load_state_dict(base.state_dict())
    assert torch.equal(other(x), base(x))
    nn.init.zeros_(other.blocks[0].attention.adapter.up.weight)
    assert not torch.equal(other(x), base(x))  # the copy has adapters of its own


def test_of_several_outputs_the_first_is_adapted():
    layer = nn.MultiheadAttention(8, 2)
    x = torch.randn(3, 2, 8)
    output, weights = layer(x, x, x)
    apply(nn.ModuleDict({"attention": layer}), 3, ["attention"])
    adapted, same = layer(x, x, x)
    assert torch.equal(adapted, layer.adapter(output)) and torch.equal(same, weights)


def test_it_compiles_in_one_piece():
    model, x = apply(tiny_vit().eval(), 2, ["attention", "mlp"]).blocks[0], torch.randn(2, 5, 12)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected, rtol=1e-5, atol=1e-6)


def test_what_learns_receives_a_gradient_and_nothing_else():
    model = apply(tiny_vit(), 2, ["attention", "mlp"], train=["head", "class_token"])
    F.cross_entropy(model(torch.randn(6, 1, 8, 8)), torch.arange(6) % 3).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "adapter" not in name and "norm" not in name} == {"head.weight", "head.bias", "class_token"}
    assert sum("norm" in name for name in trained) == 10


@pytest.mark.parametrize("options, expected", [
    ({"after": ["atention"]}, "after: nothing in the model is called 'atention'; the nearest are: attention"),
    ({"after": ["blocks.*.ffn"]}, "after: nothing in the model is called 'blocks.*.ffn'; the nearest are: blocks."),
    ({"after": "attention"}, "after must be a list of names or patterns such as [attention], not 'attention'"),
    ({"after": []}, "size must be at least 1, init_std above 0 and after not empty, not 2, 0.01 and []"),
    ({"size": 0}, "size must be at least 1"),
    ({"init_std": 0.0}, "init_std above 0"),
    ({"after": ["norm1"]}, "blocks.0.norm1 is LayerNorm without an nn.Linear, whose outputs would tell how wide its adapter must be"),
    ({"train": ["hed"]}, "train: nothing in the model is called 'hed'; the nearest are: head"),
    ({"train": "head"}, "train must be a list of names or patterns such as [head], not 'head'"),
])  # fmt: skip
def test_wrong_arguments_are_one_sentence_and_change_nothing(options, expected):
    model = tiny_vit()
    assert expected in message(lambda: apply(model, **{"size": 2, "after": ["mlp"], **options}), ValueError)
    assert all(p.requires_grad for p in model.parameters()) and not any("adapter" in name for name in model.state_dict())


def test_places_that_cannot_have_an_adapter_are_refused():
    model = apply(tiny_vit(), 2, ["mlp"])
    assert message(lambda: apply(model, 2, ["mlp"]), ValueError) == "blocks.0.mlp has an adapter already: name other modules"
    torchs = nn.TransformerEncoderLayer(8, 2)
    said = "self_attn.out_proj is never called by the nn.MultiheadAttention around it: name self_attn instead"
    assert message(lambda: apply(torchs, 2, ["out_proj"]), ValueError) == said


# Through the loop

SMALL = ["trainer.steps=4", "trainer.log_every=1", "trainer.eval_every=null", "trainer.device=cpu", "trainer.precision=fp64", "model.base.depth=1"]


def test_the_quick_run_trains_what_it_says_from_the_base_of_another_run(tmp_path):
    from safetensors.torch import load_file

    without_curves()
    assert run(compose(["paper=lora/digits_base", *SMALL[:-1], "model.depth=1", f"run_dir={tmp_path / 'base'}"])) == 0
    assert run(compose(["paper=adapters", *SMALL, f"init={tmp_path / 'base'}", f"run_dir={tmp_path / 'run'}"])) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "run"))
    changed = {name for name in set(before) & set(after) if not before[name].equal(after[name])}
    assert changed == set(before) & set(after) == {name for name in before if "norm" in name or name.startswith("head.")}
    assert {name.split(".adapter.")[0] for name in set(after) - set(before)} == {"blocks.0.attention", "blocks.0.mlp"}


def accuracy(folder, row, seed, *overrides):
    """In percent, on the test digits; and how many parameters were trained."""
    cfg = compose([f"paper={row}", f"seed={seed}", "trainer.device=cpu", f"run_dir={folder}", *overrides])
    assert run(cfg) == 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    right = next(value for record in reversed(records) for key, value in record.items() if key.startswith("test") and key.endswith("accuracy"))
    return right, sum(p.numel() for p in build_objective(cfg).parameters() if p.requires_grad)


@pytest.mark.claim
def test_adapters_are_worth_most_of_full_fine_tuning_and_must_start_near_the_identity(claim, tmp_path):
    without_curves()
    seed = claim.seed(7)
    accuracy(tmp_path / "base", "lora/digits_base", seed)
    tried = lambda name, row, *overrides: accuracy(tmp_path / name, row, seed, f"init={tmp_path / 'base'}", *overrides)
    full, head = tried("full", "lora/digits_full"), tried("head", "lora/digits_head")
    sizes = {size: tried(f"size{size}", "adapters", f"model.size={size}") for size in (2, 8, 32)}
    stds = {std: tried(f"std{std}", "adapters", f"model.init_std={std}")[0] for std in (1e-4, 0.1, 1.0, 10.0)} | {0.01: sizes[8][0]}
    found = {"full": full[0], "head": head[0], "adapters": sizes[8][0], "adapters_from_std_10": stds[10.0]}
    model = apply(ViT(8, 2, 4, 64, 4, num_classes=5, in_channels=1), 8, ["attention", "mlp"], train=["head"])
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in model.parameters())

    def draw():
        figure, (left, right) = panels("Adapters near full fine-tuning, if they start near the identity", 2, sharey=True)
        points(left, {"everything": full[::-1]}, (ORANGE,), ha="right")
        points(left, {"head alone": head[::-1]}, (GREY,), ha="left")
        points(left, {str(size): place[::-1] for size, place in sizes.items()}, (BLUE,) * 3)
        curves(left, {"": zip(*(place[::-1] for place in sizes.values()))}, xlabel="trained parameters", xscale="log", xlim=(70, 900_000),
               ylabel="accuracy on new classes (%)", title="adapters of three sizes")  # fmt: skip
        curves(right, {"": zip(*sorted(stds.items()))}, xlabel="initial standard deviation", xscale="log", title="size 8")
        return figure

    claim(draw, seed=seed, share_trained=share, **{f"accuracy_{name}": value for name, value in found.items()})
    assert share < 0.06
    # Thresholds by seeds 0 to 2: full - head 13.9, 8.3, 11.7; the adapters' share of it 0.64, 0.80, 0.43; from std 10 worse by 5.0,
    # 11.7, 12.2. Seed 3, unseen: 10.0, 0.67, 7.2. (From std 1, the paper's largest: worse by 3.3, 7.8, 3.3, and on seed 3 better by 0.6.)
    assert found["full"] - found["head"] > 5, found
    assert found["adapters"] - found["head"] > 0.3 * (found["full"] - found["head"]), found
    assert found["adapters_from_std_10"] < found["adapters"] - 2.5, found
