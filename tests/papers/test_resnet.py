"""ResNet: parameter counts, parity with torchvision, shortcuts, strides, initialisation, errors, claims."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.figures import BLUE, ORANGE, curves, panels
from zoo.objectives.classification import Classification
from zoo.papers import resnet
from zoo.papers.resnet import BasicBlock, Bottleneck, BottleneckV1_5, CifarResNet, ResNet
from zoo.papers.resnet.convert import from_torchvision
from zoo.papers.resnet.model import SubsampleAndPad

COUNTS = {  # by shortcut; None stands for the default
    "resnet18": {"A": 11_515_688, None: 11_689_512, "C": 12_043_816},
    "resnet34": {"A": 21_623_848, None: 21_797_672, "C": 22_716_840},
    "resnet50": {"A": 22_780_456, None: 25_557_032, "C": 40_128_552},
    "resnet101": {"A": 41_772_584, None: 44_549_160, "C": 76_981_288},
    "resnet152": {"A": 57_416_232, None: 60_192_808, "C": 107_335_720},
    "resnet50_v1_5": {None: 25_557_032},
    "resnet101_v1_5": {None: 44_549_160},
    "resnet152_v1_5": {None: 60_192_808},
    "resnet20": {None: 269_722, "B": 272_474},
    "resnet32": {None: 464_154, "B": 466_906},
    "resnet44": {None: 658_586, "B": 661_338},
    "resnet56": {None: 853_018, "B": 855_770},
    "resnet110": {None: 1_727_962, "B": 1_730_714},
    "resnet1202": {None: 19_421_274},
    "plain18": {None: 11_515_688},  # a shortcut A has no parameters, so that a plain net has those of shortcut A
    "plain34": {None: 21_623_848},
    "plain20": {None: 269_722},
    "plain32": {None: 464_154},
    "plain44": {None: 658_586},
    "plain56": {None: 853_018},
    "plain110": {None: 1_727_962},
}


@pytest.fixture
def uninitialised(monkeypatch):
    """Leaves initialisation out where only shapes matter or all values are overwritten: it would take most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts(preset, uninitialised):
    for option, parameters in COUNTS[preset].items():
        with torch.device("meta"):
            model = getattr(resnet, preset)(**({"shortcut": option} if option else {}))
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_counts_above_are_those_of_every_preset():
    assert set(COUNTS) == {name for name in resnet.__all__ if name.startswith(("resnet", "plain"))}


@pytest.mark.parametrize("preset", ["plain18", "plain34", "plain20", "plain56"])
def test_plain_nets_have_no_shortcut(preset, uninitialised):
    with torch.device("meta"):
        blocks = [block for stage in getattr(resnet, preset)().stages for block in stage]
    assert all(block.shortcut is None for block in blocks)


def randomise(model):
    """Every parameter and buffer, so that no swapped tensor hides behind ones and zeros; scaled so that signals keep their size."""
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.random_(1, 100)
        elif name.endswith("running_var") or tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)


@pytest.mark.parametrize("theirs, ours", [("resnet18", "resnet18"), ("resnet50", "resnet50_v1_5")])
def test_outputs_gradients_and_statistics_equal_torchvision(theirs, ours, uninitialised):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, theirs)(num_classes=5).double(), getattr(resnet, ours)(num_classes=5).double()
    torch.manual_seed(0)
    randomise(theirs.to_empty(device="cpu"))
    ours.to_empty(device="cpu").load_state_dict(from_torchvision(theirs.state_dict()))
    images = torch.randn(2, 3, 33, 40, dtype=torch.double)
    close = lambda a, b: (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())
    for training in (False, True):
        outputs = ours.train(training)(images), theirs.train(training)(images)
        assert close(*outputs)
        for model, output in zip((ours, theirs), outputs):
            model.zero_grad()
            output.square().sum().backward()
        expected = from_torchvision({name: p.grad for name, p in theirs.named_parameters()} | dict(theirs.named_buffers()))
        found = {name: p.grad for name, p in ours.named_parameters()} | dict(ours.named_buffers())
        assert found.keys() == expected.keys()
        assert [name for name in found if not close(found[name], expected[name])] == []


def test_the_stride_lies_on_the_first_1x1_and_in_v1_5_on_the_3x3(uninitialised):
    with torch.device("meta"):
        first, later = resnet.resnet50().stages[1][:2]
        moved = resnet.resnet50_v1_5().stages[1][0]
        basic = resnet.resnet18().stages[1][0]
    assert [conv.stride[0] for conv in (first.conv1, first.conv2, first.conv3, first.shortcut[0])] == [2, 1, 1, 2]
    assert [conv.stride[0] for conv in (moved.conv1, moved.conv2, moved.conv3, moved.shortcut[0])] == [1, 2, 1, 2]
    assert [conv.stride[0] for conv in (later.conv1, later.conv2, later.conv3)] == [1, 1, 1]
    assert [conv.stride[0] for conv in (basic.conv1, basic.conv2)] == [2, 1]


def test_shortcut_a_takes_every_second_pixel_and_appends_zeros():
    x = torch.randn(2, 3, 5, 8)  # an odd side, too: as many pixels are left as after a 3x3 convolution of stride 2
    y = SubsampleAndPad(new_channels=2, stride=2)(x)
    assert y.shape == (2, 5, 3, 4) == BasicBlock(3, 5, stride=2, shortcut="A")(x).shape
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, BottleneckV1_5])
def test_without_a_residual_a_block_hands_its_input_on_and_a_plain_block_nothing(block):
    x = torch.rand(2, 8, 6, 4)
    for option, expected in [("A", x), ("B", x), (None, torch.zeros_like(x))]:
        same = block(8, 8 if block is BasicBlock else 2, shortcut=option)
        nn.init.zeros_(same.bn2.weight if block is BasicBlock else same.bn3.weight)
        assert torch.equal(same(x), expected)


def test_projections_stand_where_the_shape_changes_and_under_c_everywhere(uninitialised):
    projected = lambda option: [[isinstance(block.shortcut, nn.Sequential) for block in stage] for stage in CifarResNet(14, option).stages]
    assert projected("A") == [[False, False]] * 3
    assert projected("B") == [[False, False], [True, False], [True, False]]
    assert projected("C") == [[True, True]] * 3
    with torch.device("meta"):  # the bottlenecks of conv2_x widen 64 channels to 256, without a stride
        assert [isinstance(block.shortcut, nn.Sequential) for block in resnet.resnet50().stages[0]] == [True, False, False]


def test_convolutions_start_he_normal_in_their_inputs():
    torch.manual_seed(0)
    for module in ResNet(Bottleneck, (1, 1, 1, 1), width=32).modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize("option", ["A", "B", "C", None])
@pytest.mark.parametrize("build", [
    lambda **kwargs: CifarResNet(14, width=4, **kwargs),
    lambda **kwargs: ResNet(BasicBlock, (1, 2, 1, 1), width=4, **kwargs),
    lambda **kwargs: ResNet(Bottleneck, (1, 2, 1, 1), width=4, **kwargs),
])  # fmt: skip
def test_every_parameter_receives_a_gradient(build, option):
    torch.manual_seed(0)
    model = build(shortcut=option, num_classes=6, in_channels=2).double()
    images = torch.randn(8, 2, 40, 24, dtype=torch.double)
    features = model.forward_features(images)
    assert features.shape == (8, model.fc.in_features)
    logits = model(images)
    assert logits.shape == (8, 6)
    F.cross_entropy(logits, torch.arange(8) % 6).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("depth", [2, 18, 21, 0, -4])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth {depth} is not 6n \+ 2 with n >= 1: use 8, 14, 20"):
        CifarResNet(depth)


@pytest.mark.parametrize("option", ["D", "a", "", False])
def test_an_unknown_shortcut_is_refused(option):
    with pytest.raises(ValueError, match=f"unknown shortcut {option!r}: use 'A' .*'B' .*'C' .* or None"):
        resnet.resnet20(shortcut=option)
    with pytest.raises(ValueError, match="unknown shortcut"):
        resnet.resnet50(shortcut=option)


def test_the_score_map_holds_the_logits_of_every_window():
    """Up to the padding: a window inside a larger image sees what lies around it, a crop sees zeros. With one window they are the same."""
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1, 1), width=4, num_classes=5).eval()
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model.score_map(images)[:, :, 0, 0], model(images))
    larger = torch.randn(1, 3, 256, 320)
    scores = model.score_map(larger)
    assert scores.shape == (1, 5, 2, 4)
    features = model.feature_map(larger)
    torch.testing.assert_close(scores[0, :, 1, 2], model.fc(features[0, :, 1:8, 2:9].mean((1, 2))))


def test_responses_are_those_of_every_3x3_layer_before_relu_and_addition():
    from zoo.papers.resnet.pictures import pictures, responses

    torch.manual_seed(0)
    model = CifarResNet(8, width=4).eval()
    images = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        found = responses(model, images)
        first = model.bn1(model.conv1(images))
        block = model.stages[0][0]
        second = block.bn1(block.conv1(F.relu(first)))
        third = block.bn2(block.conv2(F.relu(second)))
    assert len(found) == 7
    assert found[:3] == pytest.approx([first.std().item(), second.std().item(), third.std().item()], rel=1e-5)
    picture = pictures(model, images, images)["responses"]
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3 and picture.float().std() > 1
    assert len(responses(ResNet(Bottleneck, (1, 1, 1, 1), width=4), images)) == 4


def training_losses(model, images, labels, seed):
    """Mean loss of each of 8 epochs, by the recipe of section 4.2 without its augmentation."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    objective, losses = Classification(model), []
    for _ in range(8):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(64):
            loss = objective({"image": images[rows], "label": labels[rows]}, "model")[0]["loss"]
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(images))
    return losses


@pytest.mark.claim
def test_depth_harms_a_plain_net_in_training_and_shortcuts_remedy_it(claim):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:1437, None] / 16
    images, labels = images - images.mean(0), torch.tensor(digits.target[:1437])
    seed, found = claim.seed(7), {}
    for preset in ("plain20", "plain56", "resnet20", "resnet56"):
        torch.manual_seed(seed)
        model = getattr(resnet, preset)(width=8, in_channels=1)
        found[preset] = training_losses(model, images, labels, seed)
    losses = {preset: each[-1] for preset, each in found.items()}

    def draw():
        figure, axes = panels("56 layers learn only with shortcuts", 2, sharey=True)
        for axis, name, title in zip(axes, ("plain", "resnet"), ("plain nets", "residual nets")):
            lines = {f"{depth} layers": (range(1, 9), found[f"{name}{depth}"]) for depth in (20, 56)}
            curves(axis, lines, (BLUE, ORANGE), title=title, xlabel="epoch", yscale="log")
        axes[0].set_ylabel("training loss (nats)")
        return figure

    claim(draw, seed=seed, **{f"training_loss_{name}": loss for name, loss in losses.items()})
    # Thresholds by seeds 0 to 2: plain20 0.16, 0.10, 0.12; plain56 1.6, 1.6, 2.2; resnet56 0.023, 0.025, 0.009. Seed 3, unseen: 0.085, 2.21, 0.013.
    assert losses["plain56"] > 3 * losses["plain20"], losses
    assert losses["resnet56"] < 0.3 * losses["plain56"], losses
