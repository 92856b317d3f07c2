"""AlexNet: counts and sizes, parity with torchvision and with two towers by hand, normalisation, initialisation, errors, figure 1."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.figures import curves, level, panels
from zoo.papers import alexnet
from zoo.papers.alexnet import AlexNet, CifarNet, OneTowerAlexNet, local_response_norm
from zoo.papers.alexnet.convert import from_torchvision
from zoo.papers.alexnet.model import LocallyConnected
from zoo.papers.alexnet.pictures import pictures

TINY = dict(widths=(4, 6, 8, 8, 6), hidden=10, num_classes=5)
COUNTS = {"alexnet": 60_965_224, "alexnet_one_tower": 61_100_840, "cifar_relu": 1_901_386, "cifar_tanh": 1_901_386}
TOLERANCES = [(torch.double, 1e-10), (torch.float, 1e-5)]


@pytest.fixture
def uninitialised(monkeypatch):
    """Leaves initialisation out where only shapes matter or all values are overwritten: it would take most of the time."""
    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts(preset):
    with torch.device("meta"):
        assert sum(p.numel() for p in getattr(alexnet, preset)().parameters()) == COUNTS[preset]


def test_layers_have_the_sizes_of_section_3_5_and_the_neurons_of_figure_2():
    with torch.device("meta"):
        model = alexnet.alexnet()
        neurons = {}
        for name, layer in model.named_children():
            layer.register_forward_hook(lambda layer, x, y, name=name: neurons.update({name: y.numel()}))
        model(torch.empty(1, 3, 224, 224))
    kernels = [list(getattr(model, f"conv{i}").weight.shape) for i in range(1, 6)]
    assert kernels == [[96, 3, 11, 11], [256, 48, 5, 5], [384, 256, 3, 3], [384, 192, 3, 3], [256, 192, 3, 3]]
    del neurons["dropout"]
    # Figure 2 prints 253,440 for the first, which its own 55x55x48 in each tower contradicts: 2 * 55 * 55 * 48 = 290,400.
    assert list(neurons.values()) == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


def randomise(model):
    """Every parameter, scaled so that signals keep their size; biases too, so that no swapped tensor hides behind zeros."""
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5) if p.ndim == 1 else p.data.normal_(std=p[0].numel() ** -0.5)


def close(a, b, tolerance):
    return b.any() and (a - b).abs().max() <= tolerance * b.abs().max()


def agree(ours, theirs, images, tolerance, rename=dict):
    """Logits and the gradients of all parameters and of the images."""
    images = [images.clone().requires_grad_() for _ in range(2)]
    torch.manual_seed(1)  # for dropout
    found = ours(images[0])
    torch.manual_seed(1)
    expected = theirs(images[1])
    assert close(found, expected, tolerance)
    weight = torch.randn(found.shape, dtype=found.dtype)
    for output in (found, expected):
        (output * weight).sum().backward()
    assert close(images[0].grad, images[1].grad, tolerance)
    expected = rename({name: p.grad for name, p in theirs.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    assert [name for name in found if not close(found[name], expected[name], tolerance)] == []


def torchvision_alexnet(widths, hidden, num_classes, dtype):
    """torchvision's AlexNet with its layers made narrower: nothing but the widths changes."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.alexnet(num_classes=num_classes)
        channels = 3
        for index, width in zip((0, 3, 6, 8, 10), widths):
            old = model.features[index]
            model.features[index] = nn.Conv2d(channels, width, old.kernel_size, old.stride, old.padding)
            channels = width
        for index, (inputs, outputs) in zip((1, 4, 6), [(36 * channels, hidden), (hidden, hidden), (hidden, num_classes)]):
            model.classifier[index] = nn.Linear(inputs, outputs)
    model = model.to(dtype).to_empty(device="cpu")
    randomise(model)
    return model


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@pytest.mark.parametrize("seed", range(3))
def test_tiny_one_tower_nets_equal_torchvision_in_training_and_evaluation(dtype, tolerance, seed):
    torch.manual_seed(seed)
    tiny = dict(widths=torch.randint(3, 9, (5,)).tolist(), hidden=int(torch.randint(8, 20, ())), num_classes=3 + seed)
    theirs = torchvision_alexnet(**tiny, dtype=dtype)
    ours = OneTowerAlexNet(**tiny).to(dtype)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    images = torch.randn(3, 3, 63 + 40 * seed, 280 - 60 * seed, dtype=dtype)
    for training in (False, True):
        ours.zero_grad(), theirs.zero_grad()
        agree(ours.train(training), theirs.train(training), images, tolerance, from_torchvision)


def test_the_full_size_preset_equals_torchvision(uninitialised):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, ours = torchvision.models.alexnet(), alexnet.alexnet_one_tower()
    randomise(theirs.to_empty(device="cpu"))
    ours.load_state_dict(from_torchvision(theirs.state_dict()), assign=True)
    agree(ours.eval(), theirs.eval(), torch.randn(1, 3, 224, 224), 1e-5, lambda named: from_torchvision(named))


def two_towers(weights, images):
    """The paper's network by hand: a convolution for each tower, torch's normalisation, whose alpha is divided by n."""
    norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    pool = nn.MaxPool2d(3, 2)

    def tower(x, layer, t, **options):
        kernels, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        half = slice(0, len(kernels) // 2) if t == 0 else slice(len(kernels) // 2, None)
        return torch.relu(F.conv2d(x, kernels[half], bias[half], **options))

    def joined(towers):
        return torch.cat(towers, 1)

    def halves(x):
        return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]

    x = joined([tower(255 * images, "conv1", t, stride=4, padding=2) for t in (0, 1)])
    x = joined([tower(part, "conv2", t, padding=2) for t, part in enumerate(halves(pool(norm(x))))])
    x = pool(norm(x))
    x = joined([tower(x, "conv3", t, padding=1) for t in (0, 1)])  # each sees both
    x = joined([tower(part, "conv4", t, padding=1) for t, part in enumerate(halves(x))])
    x = joined([tower(part, "conv5", t, padding=1) for t, part in enumerate(halves(x))])
    x = pool(x).flatten(1)
    for layer in ("fc6", "fc7"):
        x = torch.relu(F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
    return F.linear(x, weights["fc8.weight"], weights["fc8.bias"])


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
def test_grouped_convolutions_are_two_towers(dtype, tolerance):
    ours = AlexNet(image_size=100, in_channels=2, **TINY).to(dtype).eval()
    randomise(ours)
    theirs = AlexNet(image_size=100, in_channels=2, **TINY).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    theirs.forward = lambda images: two_towers(dict(theirs.named_parameters()), images)
    agree(ours, theirs, torch.randn(3, 2, 100, 100, dtype=dtype) / 50, tolerance)


def naive_norm(a, n, k, alpha, beta):
    b = torch.empty_like(a)
    maps = a.shape[1]
    for i in range(maps):
        neighbours = range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1)
        b[:, i] = a[:, i] / (k + alpha * sum(a[:, j] ** 2 for j in neighbours)) ** beta
    return b


@pytest.mark.parametrize("maps", [1, 2, 4, 5, 11])
def test_response_normalisation_is_the_printed_sum(maps):
    a = 30 * torch.randn(2, maps, 3, 4, dtype=torch.double)
    torch.testing.assert_close(local_response_norm(a), naive_norm(a, 5, 2.0, 1e-4, 0.75), rtol=1e-12, atol=0)
    other = dict(n=3, k=1.0, alpha=0.01, beta=0.5)
    torch.testing.assert_close(local_response_norm(a, **other), naive_norm(a, **other), rtol=1e-12, atol=0)
    torch.testing.assert_close(local_response_norm(a), F.local_response_norm(a, 5, 5e-4, 0.75, 2.0), rtol=1e-12, atol=0)


def test_response_normalisation_of_large_values_does_not_overflow_in_half_precision():
    a = torch.linspace(-2000, 2000, 7)[None, :, None, None]
    torch.testing.assert_close(local_response_norm(a.half()).float(), naive_norm(a, 5, 2.0, 1e-4, 0.75), rtol=0.01, atol=0.01)


def test_locally_connected_kernels_belong_to_their_position():
    layer = LocallyConnected(2, 3, side=4).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 2, 4, 4, dtype=torch.double)
    padded = F.pad(x, [1] * 4)
    expected = torch.empty(5, 3, 4, 4, dtype=torch.double)
    for row in range(4):
        for column in range(4):
            patch = padded[:, :, row : row + 3, column : column + 3].flatten(1)
            expected[:, :, row, column] = patch @ layer.weight[4 * row + column] + layer.bias[4 * row + column]
    torch.testing.assert_close(layer(x), expected)
    shared = layer.weight[:1].expand(16, -1, -1)  # with one kernel for all positions it is a convolution
    layer.weight.data, layer.bias.data = shared, torch.zeros(16, 1, 3, dtype=torch.double)
    torch.testing.assert_close(layer(x), F.conv2d(x, shared[0].T.reshape(3, 2, 3, 3), padding=1))


@pytest.mark.parametrize("lrn", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_four_layer_network_by_hand(activation, lrn):
    model = CifarNet(activation, lrn, in_channels=2, image_size=12, widths=(3, 4, 5, 6), num_classes=7).double()
    randomise(model)
    images = torch.randn(3, 2, 12, 12, dtype=torch.double) / 100
    act = getattr(torch, activation)
    norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0) if lrn else nn.Identity()
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    x = pool(norm(act(model.conv1(255 * images))))
    assert x.shape == (3, 3, 6, 6)
    x = pool(norm(act(model.conv2(x))))
    assert x.shape == (3, 4, 3, 3)
    x = act(model.local4(act(model.local3(x)))).flatten(1)
    torch.testing.assert_close(model.forward_features(images), x)
    torch.testing.assert_close(model(images), model.fc(x))


def test_initialisation_is_section_5s():
    torch.manual_seed(0)
    model = AlexNet(widths=(32, 48, 64, 64, 48), hidden=128, num_classes=50)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = getattr(model, name)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(layer.weight.mean().item()) < 5e-4
        assert (layer.bias == (name in ("conv2", "conv4", "conv5", "fc6", "fc7"))).all()


def test_the_four_layer_networks_deviations_are_the_parameter_files():
    torch.manual_seed(0)
    model = CifarNet()
    for name, std in {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc": 0.01}.items():
        assert getattr(model, name).weight.std().item() == pytest.approx(std, rel=0.05)
        assert not getattr(model, name).bias.any()


def test_pixels_of_0_to_1_become_the_papers_0_to_255():
    for build in (lambda **kwargs: AlexNet(image_size=63, **TINY, **kwargs).eval(), lambda **kwargs: CifarNet(image_size=8, **kwargs)):
        ours, raw = build(), build(pixel_range=1)
        raw.load_state_dict(ours.state_dict())
        images = torch.rand(2, 3, ours.image_size, ours.image_size) - 0.5
        torch.testing.assert_close(ours(images), raw(255 * images))


def test_dropout_halves_what_the_hidden_neurons_put_out_and_only_in_training():
    model = AlexNet(image_size=63, widths=(4, 6, 8, 8, 6), hidden=4096, num_classes=5)
    for layer in (model.fc6, model.fc7):  # all that is left of them are their biases of 1
        layer.weight.data.zero_()
    images = torch.rand(1, 3, 63, 63)
    assert (model.eval().forward_features(images) == 1).all()
    features = model.train().forward_features(images)
    assert set(features.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (features == 0).float().mean() < 0.55
    nn.init.eye_(model.fc7.weight)  # then it puts out 1 + 0 or 1 + 2, of which again a half is dropped
    features = model.forward_features(images)
    assert set(features.unique().tolist()) == {0.0, 2.0, 6.0}
    assert 0.45 < (features == 0).float().mean() < 0.55


@pytest.mark.parametrize("build, shape, features", [
    (lambda: AlexNet(image_size=130, in_channels=2, **TINY), (2, 130, 130), 10),
    (lambda: OneTowerAlexNet(in_channels=2, **TINY), (2, 90, 130), 10),
    (lambda: CifarNet("relu", True, 5, 2, 20, (3, 4, 5, 6)), (2, 20, 20), 6 * 25),
    (lambda: CifarNet("tanh", False, 5, 2, 9, (3, 4, 5, 6)), (2, 9, 9), 6 * 4),
])  # fmt: skip
def test_every_parameter_receives_a_gradient(build, shape, features):
    torch.manual_seed(0)
    model = build().double()
    randomise(model)
    images = torch.randn(6, *shape, dtype=torch.double) / 50
    assert model.forward_features(images).shape == (6, features)
    logits = model(images)
    assert logits.shape == (6, 5)
    F.cross_entropy(logits, torch.arange(6) % 5).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_smallest_image_leaves_one_pixel():
    assert AlexNet(image_size=63, **TINY).fc6.in_features == 6
    assert AlexNet(image_size=63, **TINY)(torch.zeros(1, 3, 63, 63)).shape == (1, 5)
    assert OneTowerAlexNet(**TINY)(torch.zeros(1, 3, 63, 63)).shape == (1, 5)
    assert CifarNet(image_size=8)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("build, sentence", [
    (lambda: AlexNet(num_classes=0), "num_classes is 0, but a classifier needs at least 2"),
    (lambda: OneTowerAlexNet(num_classes=1), "num_classes is 1, but"),
    (lambda: CifarNet(num_classes=-3), "num_classes is -3, but"),
    (lambda: AlexNet(image_size=62), "image_size is 62, but AlexNet's strides need 63 pixels: enlarge the images, or take CifarNet"),
    (lambda: AlexNet(widths=(96, 256, 384, 384)), "widths are .* but five even numbers are needed"),
    (lambda: AlexNet(widths=(96, 255, 384, 384, 256)), "widths are .* but five even numbers are needed"),
    (lambda: OneTowerAlexNet(widths=(64, 192)), "widths are .* but five numbers are needed"),
    (lambda: CifarNet(widths=(64, 64, 32)), "widths are .* but four numbers are needed"),
    (lambda: CifarNet(image_size=7), "image_size is 7, but"),
    (lambda: CifarNet("sigmoid"), "unknown activation 'sigmoid': use 'relu' or 'tanh'"),
    (lambda: AlexNet(**TINY)(torch.zeros(2, 3, 227, 227)), "images are 227x227 pixels, but this network takes 224x224: crop or resize them"),
    (lambda: AlexNet(**TINY)(torch.zeros(2, 1, 224, 224)), r"images are \(2, 1, 224, 224\), but this network takes \(B, 3, H, W\)"),
    (lambda: AlexNet(**TINY)(torch.zeros(3, 224, 224)), r"images are \(3, 224, 224\), but this network takes \(B, 3, H, W\)"),
    (lambda: OneTowerAlexNet(**TINY)(torch.zeros(2, 4, 224, 224)), r"images are .* but this network takes \(B, 3, H, W\)"),
    (lambda: OneTowerAlexNet(**TINY)(torch.zeros(2, 3, 224, 62)), "images are 224x62 pixels, but AlexNet's strides need 63"),
    (lambda: CifarNet()(torch.zeros(2, 3, 28, 28)), "images are 28x28 pixels, but this network takes 32x32"),
])  # fmt: skip
def test_wrong_sizes_are_refused_in_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_every_kernel(channels):
    model = CifarNet(in_channels=channels, image_size=8, widths=(18, 4, 4, 4))
    model.conv1.weight.data.zero_()
    model.conv1.weight.data[17, :, 0, 0] = 7.0
    picture = pictures(model, None, None)["conv1"]
    assert picture.shape == (2 * 24, 16 * 24, 3) and picture.dtype == torch.uint8
    last = picture[24:, 24:48]  # 18 kernels: the second of the second row; 20 pixels in a frame of 2
    assert (last[2:6, 2:6] == 255).all() and (last[6:22, 2:22] == 128).all() and (last[:2] == 255).all()
    assert (picture[2:22, 2:22] == 128).all() and (picture[24:, 48:] == 255).all()


def photographs():
    """4,000 photographs of CIFAR-10, uint8 (N, 3, 32, 32), and their labels; without their loss by JPEG where that is at hand."""
    import numpy as np
    from PIL import Image

    root = Path(os.environ.get("ZOO_DATA", "~/.cache/paper-zoo")).expanduser()
    lossless, jpeg = root / "cifar10-lossless-4000", root / "CIFAR-10-images-jpeg" / "train"
    read = lambda path: np.asarray(Image.open(path).convert("RGB"))
    if lossless.is_dir():  # an image a row, 1,000 rows a file
        images = np.concatenate([read(lossless / f"cifar10_batch_{i}.png").reshape(-1, 32, 32, 3) for i in range(4)])
        labels = [int(line) for line in (lossless / "labels.txt").read_text().split()]
    elif jpeg.is_dir():
        files = [(path, label) for label, folder in enumerate(sorted(jpeg.iterdir())) for path in sorted(folder.iterdir())[:400]]
        images, labels = np.stack([read(path) for path, _ in files]), [label for _, label in files]
    else:
        pytest.skip(f"no CIFAR-10 photographs in {root}")
    return torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)


def training_errors(activation, lr, seed, limit):
    """Training error in percent of each epoch, taken as it goes by, until it is 25 % or less; updates -> error."""
    images, labels = photographs()
    images = images / 255
    images = (images - images.mean(0)).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    model = CifarNet(activation, widths=(32, 32, 16, 16)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
    updates, errors = 0, {}
    while updates < limit:
        wrong = 0
        for rows in torch.randperm(len(images)).split(128):
            logits = model(images[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            wrong += (logits.argmax(-1) != labels[rows]).sum().item()
            updates += 1
        errors[updates] = 100 * wrong / len(images)
        if wrong <= 0.25 * len(images):
            break
    return errors


@pytest.mark.claim
def test_relu_reaches_25_percent_training_error_in_fewer_updates_than_tanh(claim):
    """Figure 1 with half the kernels and 4,000 photographs. The rates are the best of 0.001, 0.003, 0.006, 0.01 for ReLU and of 0.001, 0.003,
    0.01, 0.03, 0.06, 0.1 for tanh; there tanh needed 1.8 to 1.9 times as many updates (seeds 0 to 2), not the paper's six times."""
    seed = claim.seed(3)
    errors = {activation: training_errors(activation, lr, seed, limit=1200) for activation, lr in (("relu", 0.006), ("tanh", 0.03))}
    relu, tanh = (max(each) for each in errors.values())

    def draw():
        figure, axis = panels(f"Tanh takes {tanh / relu:.1f} times as many updates to 25 % training error")
        lines = {"ReLU": errors["relu"], "tanh": errors["tanh"]}
        curves(axis, {name: (list(each), list(each.values())) for name, each in lines.items()}, xlabel="updates", ylabel="training error (%)")
        level(axis, 25, "25 %", x=0.02, ha="left", va="top")
        axis.set_ylim(0, 100)
        return figure

    claim(draw, seed=seed, updates_with_relu=relu, updates_with_tanh=tanh, factor=tanh / relu)
    assert all(min(each.values()) <= 25 for each in errors.values()), errors
    assert tanh > 1.4 * relu, (relu, tanh)
