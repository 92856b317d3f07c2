"""ViT: parameter counts, parity with torchvision, timm, transformers and the official layout, positions, heads, dropout, initialisation, pictures,
errors; and two of the paper's claims in small.
"""

import json
import math
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.figures import bare, bars, curves, panels
from zoo.config import compose
from zoo.papers import vit
from zoo.papers.vit import ViT, interpolate_positions
from zoo.papers.vit.convert import from_official, from_timm, from_torchvision, from_transformers, to_timm
from zoo.papers.vit.hybrid import ResNetStem, StdConv
from zoo.papers.vit.pictures import pictures, position_similarity, rollout, rollout_over_patches
from zoo.training.loop import run

COUNTS = {
    "vit_ti16": 5_717_416,
    "vit_s16": 22_050_664,
    "vit_s32": 22_878_952,
    "vit_b16": 86_567_656,
    "vit_b32": 88_224_232,
    "vit_l16": 304_326_632,
    "vit_l32": 306_535_400,
    "vit_h14": 632_045_800,
    "vit_r50_b16": 98_659_112,
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest value


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts(preset):
    with torch.device("meta"):
        model = getattr(vit, preset)()
    assert sum(p.numel() for p in model.parameters()) == COUNTS[preset]


def test_the_counts_above_are_those_of_every_preset():
    assert set(COUNTS) == {name for name in vit.__all__ if name.startswith("vit_")}


@pytest.mark.parametrize("options, parameters", [
    ({"image_size": 384}, 86_859_496),
    ({"pretraining_head": True}, 86_567_656 + 768 * 768 + 768),
    ({"pool": "mean"}, 86_567_656 - 2 * 768),  # neither a class token nor its position
    ({"positions": None}, 86_567_656 - 197 * 768),
    ({"positions": "2d"}, 86_567_656 - 196 * 768 + 2 * 14 * 384),
    ({"num_classes": 10, "in_channels": 1}, 86_567_656 - 990 * 769 - 2 * 16 * 16 * 768),
])  # fmt: skip
def test_parameter_counts_of_the_variants_of_b16(options, parameters):
    with torch.device("meta"):
        model = vit.vit_b16(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters


TINY = dict(image_size=(24, 16), patch_size=4, depth=3, d_model=24, n_heads=3, num_classes=5)


def tiny(**options) -> ViT:
    return randomised(ViT(**{**TINY, **options}).double())


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter, so that no swapped tensor hides behind ones and zeros; scaled so that signals keep their size."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(std=p[0].numel() ** -0.5)
    return model


def close(found, expected, tolerance=1e-10) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def assert_equal(ours, theirs, convert, images, dtype):
    """Logits and the gradients of all parameters and of the images, after copying their weights; in training and in evaluation."""
    ours, theirs, images = ours.to(dtype), randomised(theirs.to(dtype)), images.to(dtype)
    ours.load_state_dict(convert(theirs.state_dict()))
    logits = lambda output: getattr(output, "logits", output)
    for training in (True, False):
        found, inputs = {}, images.clone().requires_grad_()
        expected, their_inputs = {}, images.clone().requires_grad_()
        found["logits"], expected["logits"] = ours.train(training)(inputs), logits(theirs.train(training)(their_inputs))
        for model, output in ((ours, found["logits"]), (theirs, expected["logits"])):
            model.zero_grad()
            output.square().sum().backward()
        found |= {"images": inputs.grad} | {name: p.grad for name, p in ours.named_parameters()}
        expected |= {"images": their_inputs.grad} | convert({name: p.grad for name, p in theirs.named_parameters()})
        assert found.keys() == expected.keys()
        assert [name for name in found if not close(found[name], expected[name], TOLERANCE[dtype])] == []


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hidden", [False, True])
def test_outputs_and_gradients_equal_torchvision(hidden, dtype):
    models = pytest.importorskip("torchvision").models
    theirs = models.VisionTransformer(16, 4, 3, 3, 24, 96, num_classes=5, representation_size=24 if hidden else None)
    assert_equal(ViT(**{**TINY, "image_size": 16}, pretraining_head=hidden), theirs, from_torchvision, torch.randn(4, 3, 16, 16), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ours, theirs", [
    ({}, {}),
    ({"pool": "mean"}, {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    ({"positions": None}, {"pos_embed": "none"}),
    ({"in_channels": 2}, {"in_chans": 2}),
])  # fmt: skip
def test_outputs_and_gradients_equal_timm(ours, theirs, dtype):
    models = pytest.importorskip("timm").models
    theirs = models.VisionTransformer(img_size=(24, 16), patch_size=4, depth=3, embed_dim=24, num_heads=3, num_classes=5, **theirs)
    assert_equal(ViT(**TINY, **ours), theirs, from_timm, torch.randn(4, ours.get("in_channels", 3), 24, 16), dtype)


def hybrid_of_timm(depths=(1, 2), image_size=(32, 48)):
    """timm's hybrid with the epsilon of the authors' group norms."""
    models, layers = pytest.importorskip("timm").models, pytest.importorskip("timm.layers")
    backbone = models.vision_transformer_hybrid._resnetv2(depths)
    for module in backbone.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    embed = partial(layers.HybridEmbed, backbone=backbone)
    return models.VisionTransformer(
        img_size=image_size, patch_size=1, depth=2, embed_dim=24, num_heads=3, num_classes=5, embed_layer=embed
    )


def enlarge_standardised_weights(theirs: nn.Module):
    """Their size does not matter, except beside the epsilon, which timm adds to the variance and the authors to the deviation: it vanishes."""
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "backbone" in name and p.ndim == 4:
                p.mul_(1e6)


TINY_HYBRID = {**TINY, "image_size": (32, 48), "patch_size": 1, "depth": 2, "resnet": (1, 2)}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_gradients_of_the_hybrid_equal_timm(dtype):
    theirs, ours = randomised(hybrid_of_timm().to(dtype)), ViT(**TINY_HYBRID).to(dtype)
    enlarge_standardised_weights(theirs)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(2, 3, 32, 48, dtype=dtype)
    for training in (True, False):
        outputs = ours.train(training)(images), theirs.train(training)(images)
        assert close(*outputs, TOLERANCE[dtype])
        for model, output in zip((ours, theirs), outputs):
            model.zero_grad()
            output.square().sum().backward()
        expected = from_timm({name: p.grad for name, p in theirs.named_parameters()})
        found = {name: p.grad for name, p in ours.named_parameters()}
        assert found.keys() == expected.keys()
        slack = 1 if dtype == torch.float64 else 10  # weights of standardised convolutions have gradients that are small differences
        assert [name for name in found if not close(found[name], expected[name], slack * TOLERANCE[dtype])] == []


@pytest.mark.parametrize("size", [(37, 51), (38, 64), (39, 41)])
def test_the_stem_pads_odd_sizes_as_timm_does(size):
    theirs, ours = randomised(hybrid_of_timm().double()), ViT(**TINY_HYBRID).double()
    enlarge_standardised_weights(theirs)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    images = torch.randn(2, 3, *size, dtype=torch.double)
    found = ours.stem(images)
    assert found.shape == (2, 512, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    assert close(found, theirs.patch_embed.backbone(images))


def test_convolutions_of_the_stem_are_standardised_with_the_epsilon_of_the_official_code():
    conv = StdConv(3, 4, 5).double()
    with torch.no_grad():
        conv.weight.mul_(1e-4)  # small enough for 1e-5 to matter
    weight = conv.weight.flatten(1)
    expected = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True, unbiased=False) + 1e-5)
    images = torch.randn(2, 3, 9, 7, dtype=torch.double)
    torch.testing.assert_close(conv(images), F.conv2d(images, expected.view_as(conv.weight), padding=2))


def transformers_model(kind: str, **options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, image_size=(24, 16), patch_size=4,
        layer_norm_eps=1e-6, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_gradients_equal_transformers(dtype):
    theirs = transformers_model("ViTForImageClassification")
    assert_equal(ViT(**TINY), theirs, from_transformers, torch.randn(4, 3, 24, 16), dtype)


def test_the_pooler_of_transformers_is_the_hidden_layer_of_the_pretraining_head():
    theirs, ours = randomised(transformers_model("ViTModel").double()), tiny(pretraining_head=True)
    missing, unexpected = ours.load_state_dict(from_transformers(theirs.state_dict()), strict=False)
    assert (missing, unexpected) == (["head.weight", "head.bias"], [])
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    assert close(ours(images), ours.head(theirs(images).pooler_output))
    assert close(ours.forward_features(images), theirs(images).last_hidden_state[:, 0])


def test_published_files_of_transformers_have_other_names():
    state = transformers_model("ViTForImageClassification").state_dict()
    older = {}
    for name, value in state.items():
        name = name.replace("vit.layers.", "vit.encoder.layer.").replace(".attention.o_proj.", ".attention.output.dense.")
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f".attention.{new}.", f".attention.attention.{old}.")
        older[name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")] = value
    assert "vit.encoder.layer.2.attention.attention.key.bias" in older and len(older) == len(state)
    new, old = from_transformers(state), from_transformers(older)
    assert new.keys() == old.keys() == ViT(**TINY).state_dict().keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, TINY_HYBRID])
def test_to_timm_is_the_way_back(options):
    state = tiny(**options).state_dict()
    back = from_timm(to_timm(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def official_arrays(grid=(4, 4), depth=2, d_model=24, n_heads=3, num_classes=5, hybrid=False, linen=False) -> dict:
    """Random arrays under the names and in the shapes of the authors' npz files; `linen`: as their code names them today."""
    d = d_model // n_heads
    shapes = {"cls": (1, 1, d_model), "Transformer/posembed_input/pos_embedding": (1, 1 + grid[0] * grid[1], d_model)}
    shapes |= {"embedding/kernel": (1, 1, 512, d_model) if hybrid else (4, 4, 3, d_model), "embedding/bias": (d_model,)}
    shapes |= {"Transformer/encoder_norm/scale": (d_model,), "Transformer/encoder_norm/bias": (d_model,)}
    shapes |= {"head/kernel": (d_model, num_classes), "head/bias": (num_classes,)}
    norm2, attention, mlp = ("LayerNorm_1", 0, 0) if linen else ("LayerNorm_2", 1, 3)
    for layer in range(depth):
        prefix = f"Transformer/encoderblock_{layer}/"
        for norm in ("LayerNorm_0", norm2):
            shapes |= {f"{prefix}{norm}/scale": (d_model,), f"{prefix}{norm}/bias": (d_model,)}
        for name in ("query", "key", "value"):
            here = f"{prefix}MultiHeadDotProductAttention_{attention}/{name}/"
            shapes |= {f"{here}kernel": (d_model, n_heads, d), f"{here}bias": (n_heads, d)}
        here = f"{prefix}MultiHeadDotProductAttention_{attention}/out/"
        shapes |= {f"{here}kernel": (n_heads, d, d_model), f"{here}bias": (d_model,)}
        shapes |= {f"{prefix}MlpBlock_{mlp}/Dense_0/kernel": (d_model, 4 * d_model), f"{prefix}MlpBlock_{mlp}/Dense_0/bias": (4 * d_model,)}
        shapes |= {f"{prefix}MlpBlock_{mlp}/Dense_1/kernel": (4 * d_model, d_model), f"{prefix}MlpBlock_{mlp}/Dense_1/bias": (d_model,)}
    if hybrid:
        shapes |= {"conv_root/kernel": (7, 7, 3, 64), "gn_root/scale": (1, 1, 1, 64), "gn_root/bias": (1, 1, 1, 64)}
        for block, units, width, channels in ((1, 1, 64, 64), (2, 2, 128, 256)):
            for unit in range(1, units + 1):
                here, inputs = f"block{block}/unit{unit}/", channels if unit == 1 else 4 * width
                kernels = {"1": (1, 1, inputs, width), "2": (3, 3, width, width), "3": (1, 1, width, 4 * width)}
                if unit == 1:
                    kernels["_proj"] = (1, 1, inputs, 4 * width)
                for name, shape in kernels.items():
                    norm = (1, 1, 1, shape[-1])
                    shapes |= {f"{here}conv{name}/kernel": shape, f"{here}gn{name}/scale": norm, f"{here}gn{name}/bias": norm}
    return {name: torch.randn(shape).mul(0.3).numpy() for name, shape in shapes.items()}


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_official_layout_is_read_as_timm_reads_it(hybrid, tmp_path):
    models = pytest.importorskip("timm").models
    numpy = pytest.importorskip("numpy")
    arrays = official_arrays(hybrid=hybrid)
    numpy.savez(tmp_path / "weights.npz", **arrays)
    size = 32 if hybrid else 16
    if hybrid:
        theirs, ours = hybrid_of_timm(image_size=(32, 32)), ViT(**{**TINY_HYBRID, "image_size": 32})
    else:
        theirs = models.VisionTransformer(img_size=16, patch_size=4, depth=2, embed_dim=24, num_heads=3, num_classes=5)
        ours = ViT(**{**TINY, "image_size": 16, "depth": 2})
    theirs.load_pretrained(str(tmp_path / "weights.npz"))
    with numpy.load(tmp_path / "weights.npz") as file:
        ours.load_state_dict(from_official(file))
    expected = from_timm(theirs.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    images = torch.randn(3, 3, size, size)
    assert close(ours(images), theirs(images), 1e-3 if hybrid else 1e-5)  # 1e-3: the epsilons of the standardised convolutions differ


def test_the_official_layout_has_newer_names_and_a_pretraining_head():
    older, newer = official_arrays(), official_arrays(linen=True)
    newer = dict(zip(newer, older.values()))
    from_older, from_newer = from_official(older), from_official(newer)
    assert from_older.keys() == from_newer.keys()
    assert all(torch.equal(from_older[name], from_newer[name]) for name in from_older)
    kernel = torch.randn(24, 24)
    state = from_official({**older, "pre_logits/kernel": kernel.numpy(), "pre_logits/bias": torch.zeros(24)})
    assert torch.equal(state["pre_logits.weight"], kernel.T)
    ViT(**{**TINY, "image_size": 16, "depth": 2}, pretraining_head=True).load_state_dict(state)


@pytest.mark.parametrize("convert, source", [
    (from_timm, "timm"), (from_torchvision, "torchvision"), (from_transformers, "transformers"), (from_official, "official layout"), (to_timm, "zoo"),
])  # fmt: skip
def test_a_converter_names_what_it_does_not_know(convert, source):
    with pytest.raises(ValueError, match=f"'fc_norm.weight' has no place in the ViT that these names of .*{source} are for"):
        convert({"fc_norm.weight": torch.ones(3)})


FULL_SIZE = [
    ("vit_ti16", "timm", "vit_tiny_patch16_224"),
    ("vit_s16", "timm", "vit_small_patch16_224"),
    ("vit_s32", "timm", "vit_small_patch32_224"),
    ("vit_b16", "torchvision", "vit_b_16"),
    ("vit_b32", "torchvision", "vit_b_32"),
    ("vit_l16", "timm", "vit_large_patch16_224"),
    ("vit_l32", "torchvision", "vit_l_32"),
    ("vit_h14", "torchvision", "vit_h_14"),
]


@pytest.mark.slow
@pytest.mark.parametrize("preset, library, name", FULL_SIZE)
def test_full_size_presets_equal_their_oracle(preset, library, name):
    pytest.importorskip(library)
    from timm import create_model
    from torchvision.models import get_model

    with torch.device("meta"):
        theirs = create_model(name) if library == "timm" else get_model(name)
        ours = getattr(vit, preset)()
    theirs = randomised(theirs.to_empty(device="cpu")).eval()
    convert = from_timm if library == "timm" else from_torchvision
    ours.load_state_dict(convert(theirs.state_dict()), assign=True)  # one copy of the 2.5 GB of vit_h14
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert close(ours.eval()(images), theirs(images), 1e-5)


@pytest.mark.slow
def test_the_full_size_hybrid_equals_timm():
    timm = pytest.importorskip("timm")
    theirs = randomised(timm.create_model("vit_base_r50_s16_224", num_classes=1000)).eval()
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    enlarge_standardised_weights(theirs)
    with torch.device("meta"):
        ours = vit.vit_r50_b16()
    ours.load_state_dict(from_timm(theirs.state_dict()), assign=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert close(ours.eval()(images), theirs(images), 1e-4)  # fp32, some eighty layers


def test_a_patch_is_embedded_by_one_linear_map_and_the_class_token_comes_first():
    model = tiny()
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    z = model.tokens(images)
    assert z.shape == (2, 1 + 6 * 4, 24)
    patch = images[1, :, 8:12, 4:8].flatten()  # third row, second column: patch 2 * 4 + 1
    expected = model.embedding.weight.flatten(1) @ patch + model.embedding.bias + model.positions.table[1 + 9]
    torch.testing.assert_close(z[1, 1 + 9], expected)
    torch.testing.assert_close(z[0, 0], model.class_token[0, 0] + model.positions.table[0])


def test_forward_features_is_what_the_head_reads_and_stands_before_the_pretraining_layer():
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    for pool in ("class", "mean"):
        model = tiny(pool=pool)
        features = model.forward_features(images)
        assert features.shape == (2, 24)
        assert torch.equal(model(images), model.head(features))
        hidden = tiny(pool=pool, pretraining_head=True)
        hidden.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(hidden.forward_features(images), features)
        assert torch.equal(hidden(images), hidden.head(torch.tanh(hidden.pre_logits(features))))


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("positions, notices", [(None, False), ("1d", True), ("2d", True)])
def test_without_positions_the_order_of_the_patches_is_lost(positions, notices, pool):
    model = tiny(positions=positions, pool=pool)
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, torch.randperm(24)]
    shuffled = F.fold(patches.permute(0, 1, 3, 4, 2).flatten(1, 3), (24, 16), 4, stride=4)
    assert not torch.equal(shuffled, images)
    assert close(model(shuffled), model(images)) != notices


def test_2d_positions_put_the_column_before_the_row():
    model = tiny(positions="2d")
    table, positions = model.positions(), model.positions
    assert torch.equal(table[0], positions.token[0])
    assert torch.equal(table[1 + 2 * 4 + 3], torch.cat([positions.x[3], positions.y[2]]))
    assert tiny(positions="2d", pool="mean").positions().shape == (24, 24)


@pytest.mark.parametrize("old, new", [(3, (5, 5)), (14, (24, 24)), (7, (4, 9)), (5, (5, 5)), (4, (1, 1))])
@pytest.mark.parametrize("class_token", [True, False])
def test_positions_are_interpolated_as_in_the_official_code(old, new, class_token):
    ndimage = pytest.importorskip("scipy.ndimage")
    table = torch.randn(class_token + old * old, 6, dtype=torch.double)
    found = interpolate_positions(table, new)
    grid = table[int(class_token) :].view(old, old, 6).numpy()
    expected = torch.tensor(ndimage.zoom(grid, (new[0] / old, new[1] / old, 1), order=1)).reshape(-1, 6)
    torch.testing.assert_close(found[int(class_token) :], expected)
    assert torch.equal(found[: int(class_token)], table[: int(class_token)])


def test_positions_are_interpolated_as_timm_does_with_aligned_corners():
    resample = pytest.importorskip("timm.layers").resample_abs_pos_embed
    table = torch.randn(1 + 49, 6)
    expected = resample(table[None], [12, 9], interpolation="bilinear", antialias=False, align_corners=True)[0]
    torch.testing.assert_close(interpolate_positions(table, (12, 9)), expected)


@pytest.mark.parametrize("positions", ["1d", "2d", None])
@pytest.mark.parametrize("pool", ["class", "mean"])
def test_weights_load_at_another_resolution(positions, pool):
    small = tiny(image_size=16, positions=positions, pool=pool)
    state = small.state_dict()
    same = tiny(image_size=16, positions=positions, pool=pool).adapt_state(state)
    assert all(same[name] is state[name] for name in state)
    large = tiny(image_size=(24, 32), positions=positions, pool=pool)
    large.load_state_dict(large.adapt_state(state))
    if positions:
        expected = interpolate_positions(small.positions(), (6, 8))
        torch.testing.assert_close(large.positions(), expected)
    assert large(torch.randn(2, 3, 24, 32, dtype=torch.double)).shape == (2, 5)


def test_other_differences_are_left_to_load_state_dict():
    state = tiny(image_size=16, positions="2d").state_dict()
    model = tiny()
    with pytest.raises(RuntimeError, match=r"Missing key.*positions\.table"):
        model.load_state_dict(model.adapt_state(state))


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_dropout_follows_the_sum_with_positions_and_every_dense_layer_but_q_k_v(pool, monkeypatch):
    seen = []
    monkeypatch.setattr(F, "dropout", lambda x, p, training, inplace=False: seen.append((tuple(x.shape[1:]), p, training)) or x)
    model, images = tiny(pool=pool, dropout=0.1, depth=2), torch.randn(2, 3, 24, 16, dtype=torch.double)
    model(images)
    T, last = (25, 1) if pool == "class" else (24, 24)  # nothing reads the patches of the last layer where there is a class token
    places = [(T, 24), (T, 24), (T, 96), (T, 24), (last, 24), (last, 96), (last, 24)]
    assert seen == [(place, 0.1, True) for place in places]
    seen.clear()
    model.eval()(images)
    assert {training for *_, training in seen} == {False}


def test_initialisation_is_that_of_the_official_code():
    model = ViT(image_size=64, patch_size=8, depth=2, d_model=192, n_heads=3, pretraining_head=True)
    fan_in = 3 * 8 * 8
    for weight, variance, bound in (
        (model.embedding.weight, 1 / fan_in, 2 / 0.8796 / fan_in**0.5),
        (model.pre_logits.weight, 1 / 192, 2 / 0.8796 / 192**0.5),
        (model.blocks[1].attention.qkv.weight, 1 / 192, (3 / 192) ** 0.5),  # Xavier-uniform: 2 / (fan_in + fan_out)
        (model.blocks[1].attention.out.weight, 1 / 192, (3 / 192) ** 0.5),
        (model.blocks[1].mlp.fc1.weight, 2 / (5 * 192), (6 / (5 * 192)) ** 0.5),
        (model.blocks[1].mlp.fc2.weight, 2 / (5 * 192), (6 / (5 * 192)) ** 0.5),
    ):
        assert weight.var().item() == pytest.approx(variance, rel=0.03)
        assert 0.98 * bound < weight.abs().max() <= 1.001 * bound
    assert model.positions.table.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.blocks[0].mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.1)
    for zero in (model.class_token, model.head.weight, model.head.bias, model.embedding.bias, model.blocks[0].attention.qkv.bias):
        assert not zero.any()
    halves = ViT(image_size=64, patch_size=8, d_model=192, n_heads=3, depth=1, positions="2d").positions
    assert [table.std().item() for table in (halves.x, halves.y)] == pytest.approx([0.02, 0.02], rel=0.1)
    stem = ResNetStem((1, 1), 3)
    assert stem.conv.weight.var().item() == pytest.approx(1 / (3 * 49), rel=0.06)
    assert not stem.stages[1][0].norm3.weight.any() and stem.stages[1][0].norm2.weight.all()


@pytest.mark.parametrize("options", [
    {}, {"pool": "mean"}, {"positions": "2d"}, {"positions": None}, {"pretraining_head": True}, {"in_channels": 1}, TINY_HYBRID,
])  # fmt: skip
def test_every_parameter_receives_a_gradient(options):
    model = tiny(**options)
    images = torch.randn(4, *model.input_shape, dtype=torch.double)
    F.cross_entropy(model(images), torch.arange(4)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_attention_maps_are_those_that_forward_uses():
    model = tiny()
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    maps = model.attention_maps(images)
    assert maps.shape == (2, 3, 3, 25, 25)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 3, 25, dtype=torch.double))
    z = model.tokens(images)
    for layer, block in enumerate(model.blocks):
        x = block.norm1(z)
        mixed = maps[:, layer] @ block.attention.heads(x)[2]
        torch.testing.assert_close(block.attention.out(mixed.transpose(1, 2).flatten(2)), block.attention(x))
        z = block(z)


def test_attention_maps_equal_transformers():
    theirs, ours = randomised(transformers_model("ViTForImageClassification", attn_implementation="eager").double()), tiny()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    expected = torch.stack(theirs(images, output_attentions=True).attentions, 1)
    torch.testing.assert_close(ours.attention_maps(images), expected.double(), rtol=1e-5, atol=1e-7)  # their softmax is in fp32


def test_rollout_of_uniform_attention_has_a_closed_form():
    """Each layer is (I + J / T) / 2, and J J = T J: the product of L of them is I / 2^L + (1 - 1 / 2^L) J / T."""
    T, L = 5, 3
    found = rollout(torch.full((2, L, 4, T, T), 1 / T, dtype=torch.double))
    expected = torch.eye(T, dtype=torch.double) / 2**L + (1 - 0.5**L) / T
    torch.testing.assert_close(found, expected.expand(2, T, T))


def test_rollout_multiplies_later_layers_from_the_left():
    maps = torch.randn(1, 2, 3, 4, 4, dtype=torch.double).softmax(-1)
    first, second = ((maps[0, layer].mean(0) + torch.eye(4)) / 2 for layer in (0, 1))
    torch.testing.assert_close(rollout(maps)[0], second @ first)


def test_rollout_over_patches_reads_the_class_token_or_the_mean():
    images = torch.randn(2, 3, 24, 16, dtype=torch.double)
    for pool in ("class", "mean"):
        model = tiny(pool=pool)
        flow = rollout(model.attention_maps(images))
        expected = flow[:, 0, 1:] if pool == "class" else flow.mean(1)
        found = rollout_over_patches(model, images)
        assert found.shape == (2, 6, 4)
        torch.testing.assert_close(found.flatten(1), expected)


@pytest.mark.parametrize("options", [{}, {"pool": "mean"}, {"positions": "2d"}])
def test_position_similarity_compares_patches_not_the_class_token(options):
    model = tiny(**options)
    similarity = position_similarity(model)
    assert similarity.shape == (6, 4, 6, 4)
    table = model.positions()[-24:]
    expected = F.cosine_similarity(table[4 * 5 + 2], table[4 * 1 + 3], dim=0)
    torch.testing.assert_close(similarity[5, 2, 1, 3], expected)


@pytest.mark.parametrize("options, names", [
    ({}, {"attention_rollout", "position_similarity"}),
    ({"positions": None, "in_channels": 1}, {"attention_rollout"}),
])  # fmt: skip
def test_pictures_are_drawn(options, names):
    model = tiny(**options)
    images = torch.randn(3, *model.input_shape, dtype=torch.double)
    drawn = pictures(model, images, torch.rand(images.shape))
    assert set(drawn) == names
    for picture in drawn.values():
        assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[-1] == 3 and picture.float().std() > 10
    assert drawn["attention_rollout"].shape == (3 * (24 * 4 + 4), 3 * (16 * 4 + 4), 3)  # 24 x 16 pixels are enlarged fourfold


def test_no_positions_cannot_be_compared():
    with pytest.raises(ValueError, match="positions=None: there are no position embeddings"):
        position_similarity(tiny(positions=None))


@pytest.mark.parametrize("options, message", [
    ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16: use 224, for instance"),
    ({"image_size": (224, 100)}, "image_size 100 is not a multiple of patch_size 16: use 96, for instance"),
    ({"image_size": 8}, "image_size 8 is not a multiple of patch_size 16: use 16, for instance"),
    ({"image_size": 0}, "image_size 0 is not a multiple of patch_size 16: use 16, for instance"),
    ({"image_size": (224, 224, 3)}, r"image_size must be one side or \(height, width\), not \(224, 224, 3\)"),
    ({"patch_size": 1, "resnet": (3, 4, 9), "image_size": 200}, "200 is not a multiple of patch_size 1 x 16, the stride of the ResNet: use 192"),
    ({"resnet": (3, 0)}, r"resnet \[3, 0\] has no stage, or one without blocks"),
    ({"resnet": ()}, r"resnet \[\] has no stage"),
    ({"depth": 0}, "depth must be at least 1, not 0"),
    ({"patch_size": 0}, "patch_size must be at least 1, not 0"),
    ({"n_heads": -1}, "n_heads must be at least 1, not -1"),
    ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
    ({"d_model": 100}, "d_model 100 does not divide into n_heads 12 heads of equal width"),
    ({"d_model": 9, "n_heads": 3, "positions": "2d"}, "positions '2d' give half of d_model to each axis: 9 is odd"),
    ({"pool": "max"}, r"unknown pool 'max': use 'class' .* or 'mean'"),
    ({"positions": "3d"}, "unknown positions '3d': use '1d', '2d' or None"),
])  # fmt: skip
def test_bad_arguments_are_refused_with_one_sentence(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ViT(**options)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (2, 1, 24, 16), (2, 3, 24, 20), (3, 24, 16), (2, 24, 16, 3)])
def test_images_that_do_not_fit_are_refused_with_one_sentence(shape):
    with pytest.raises(ValueError, match=r"images of shape .* do not fit this model, which takes \(B, 3, 24, 16\): resize them, or build it"):
        tiny()(torch.zeros(shape, dtype=torch.double))


@pytest.mark.parametrize("rows", [2 * 3, 12, 51])
def test_a_table_that_is_not_square_is_refused(rows):
    with pytest.raises(ValueError, match=f"a table of {rows} positions does not belong to a square grid"):
        interpolate_positions(torch.zeros(rows, 4), (3, 3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs a configuration of the paper as it is shipped, but for the seed and the words, once; its accuracy on the test digits in percent and its
    folder."""

    @cache
    def run_once(row: str, seed: int, *words: str) -> tuple[float, Path]:
        folder = tmp_path_factory.mktemp(row)
        assert run(compose([f"paper=vit/{row}", f"run_dir={folder}", f"seed={seed}", "trainer.device=cpu", *words])) == 0
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["test/accuracy"], folder

    return run_once


# Accuracies of three seeds on which the margins below were chosen; seed 7 is not among them.
#   100 digits: ViT 54.7, 53.6, 51.7; ResNet-14 85.6, 79.4, 84.2.    1,297 digits: ViT 96.4, 90.8, 92.8; ResNet-14 96.4, 96.4, 96.9.
#   1,297 digits without positions: 75.0, 74.4, 73.1.
@pytest.mark.claim
def test_a_vit_needs_more_data_than_a_convolutional_net(trained, claim):
    seed, of_vit, of_resnet = claim.seed(7), {}, {}
    for n in (100, 300, 1297):
        row, words = ("digits_100", [f"data.valid={1437 - n}"]) if n == 300 else (f"digits_{n}", [])
        of_vit[n], of_resnet[n] = trained(row, seed, *words)[0], trained(f"{row}_resnet14", seed, *words)[0]
    gaps = {n: of_resnet[n] - of_vit[n] for n in of_vit}

    def draw():
        figure, axis = panels("A ViT needs more data than a convolutional net")
        curves(axis, {"ViT": (list(of_vit), list(of_vit.values())), "ResNet-14": (list(of_resnet), list(of_resnet.values()))}, ylim=(40, 100),
               xlabel="training images", ylabel="accuracy on test digits (%)", xscale="log")  # fmt: skip
        axis.set_xticks(list(of_vit))
        return figure

    claim(draw, seed=seed, gap_at_100=gaps[100], gap_at_1297=gaps[1297])
    assert gaps[100] > 15 and gaps[100] > gaps[1297] + 10, gaps


@pytest.mark.claim
def test_a_vit_needs_position_embeddings(trained, claim):
    seed = claim.seed(7)
    (with_positions, folder), (without, _) = (trained(row, seed) for row in ("digits_1297", "digits_no_position"))

    def draw():
        model = ViT(image_size=8, in_channels=1, num_classes=10, patch_size=2, depth=4, d_model=64, n_heads=4)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        similarity = position_similarity(model).detach()  # (h, w, h, w)
        maps = F.pad(similarity, (0, 1, 0, 1), value=math.nan).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:-1, :-1].numpy()
        figure, (left, right) = panels("Without position embeddings a ViT loses a fifth of the digits", 2)
        bars(left, {"learnt\npositions": with_positions, "none": without}, xlabel="accuracy on test digits (%)", xlim=(0, 118))
        drawn = right.imshow(maps, vmin=-1, vmax=1, cmap="RdBu_r")
        right.set_title("similarity of each patch's position\nwith those of all patches")
        bare(right)
        figure.colorbar(drawn, ax=right, shrink=0.7, label="cosine")
        return figure

    claim(draw, seed=seed, with_positions=with_positions, without=without)
    assert with_positions > without + 8, (with_positions, without)
