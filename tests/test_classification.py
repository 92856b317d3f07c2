"""Classification: the objective, the views of evaluation, the probes, the pictures."""

import pytest
import torch
from torch import nn

import zoo.data
from zoo import evaluation
from zoo.data.base import Data
from zoo.data.image_files import ImageFiles, View
from zoo.data.pixels import Images, Normaliser
from zoo.errors import ConfigError
from zoo.evaluation.mistakes import classification_pictures
from zoo.evaluation.views import accuracies
from zoo.objectives.classification import Classification
from zoo.papers.resnet import CifarResNet, ResNet
from zoo.papers.resnet.model import BasicBlock

CPU = torch.device("cpu")
GENERATOR = torch.Generator()


def classifier(num_classes, **kwargs):
    """A classification objective around a linear layer, and a batch for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)).double()
    images = torch.randn(7, 3, 2, 2, dtype=torch.double)
    return Classification(model, **kwargs), {"image": images, "label": torch.randint(num_classes, (7,))}


def test_classification_returns_sums_over_the_items():
    objective, batch = classifier(8)
    terms, logs = objective(batch, "model")
    logits = objective.model(batch["image"])
    expected = -logits.log_softmax(-1)[range(7), batch["label"]].sum()
    torch.testing.assert_close(terms["loss"], expected)
    assert logs["accuracy"] == 100 * sum(int(row.argmax() == label) for row, label in zip(logits, batch["label"]))
    assert not logs["accuracy"].requires_grad
    halves = [objective({key: value[part] for key, value in batch.items()}, "model")[0]["loss"] for part in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(sum(halves), terms["loss"])


def test_classification_sums_bf16_logits_in_fp32():
    objective, batch = classifier(8)
    objective.bfloat16()
    terms, _ = objective({**batch, "image": batch["image"].bfloat16()}, "model")
    assert terms["loss"].dtype == torch.float32


def test_label_smoothing_is_for_training_only():
    (smooth, batch), (plain, _) = classifier(8, label_smoothing=0.2), classifier(8)
    log_p = plain.model(batch["image"]).log_softmax(-1)
    expected = -(0.8 * log_p[range(7), batch["label"]] + 0.2 * log_p.mean(-1)).sum()
    torch.testing.assert_close(smooth(batch, "model")[0]["loss"], expected)
    torch.testing.assert_close(smooth.evaluate(batch)["nll"], plain.evaluate(batch)["nll"])


def test_classification_evaluates_in_fp64_and_summarises_in_percent():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    objective = Classification(nn.Identity())
    statistics = objective.evaluate({"image": logits, "label": torch.tensor([0, 4, 5, 6])})
    assert {value.dtype for value in statistics.values()} == {torch.float64}
    assert {value.shape for value in statistics.values()} == {()}
    metrics = objective.summarise({name: value.item() for name, value in statistics.items()})
    nll = logits[0].double().logsumexp(0).item() - (9 + 5 + 4 + 3) / 4
    assert metrics == pytest.approx({"accuracy": 25, "error": 75, "top5_accuracy": 50, "loss": nll})


@pytest.mark.parametrize("num_classes, has_top5", [(2, False), (5, False), (6, True)])
def test_top5_accuracy_needs_more_than_five_classes(num_classes, has_top5):
    objective, batch = classifier(num_classes)
    statistics = objective.evaluate(batch)
    assert ("correct5" in statistics) == has_top5
    assert ("top5_accuracy" in objective.summarise({name: value.item() for name, value in statistics.items()})) == has_top5


def test_mixed_labels_are_the_targets_where_there_are_any():
    objective, batch = classifier(8, label_smoothing=0.1)
    target = torch.rand(7, 8, dtype=torch.double)
    target /= target.sum(1, keepdim=True)
    log_p = objective.model(batch["image"]).log_softmax(-1)
    expected = -((0.9 * target + 0.1 / 8) * log_p).sum()
    torch.testing.assert_close(objective({**batch, "target": target}, "model")[0]["loss"], expected)
    torch.testing.assert_close(objective.evaluate({**batch, "target": target})["nll"], objective.evaluate(batch)["nll"])


def test_predictions_are_probabilities():
    objective, batch = classifier(8)
    found = objective.predict(batch)
    assert found.shape == (7, 8) and found.dtype == torch.float32
    torch.testing.assert_close(found, objective.model(batch["image"]).softmax(-1).float())


FACTS = {"channels": 3, "image_size": 32, "num_classes": 10}


@pytest.mark.parametrize("model, facts, said", [
    (CifarResNet(8), {"num_classes": 100}, "the model tells 10 classes apart and the data has 100: set model.num_classes=100"),
    (CifarResNet(8), {"channels": 1}, "the model does not take the data's images of 1 x 32 x 32 pixels: "),
    (CifarResNet(8, in_channels=1), {}, "the model does not take the data's images of 3 x 32 x 32 pixels: "),
    (nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), {}, "the model does not take the data's images of 3 x 32 x 32 pixels: "),
])  # fmt: skip
def test_a_model_that_does_not_fit_the_data_is_refused(model, facts, said):
    model.train()
    with pytest.raises(ValueError, match=said) as error:
        Classification(model).check(FACTS | facts)
    assert "\n" not in str(error.value) and model.training


def test_a_model_that_fits_is_left_as_it_was():
    model = CifarResNet(8).train()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    Classification(model).check(FACTS)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()) and torch.get_rng_state().equal(random)
    Classification(model).check({"vocab_size": 3})  # of data without images nothing is known


# --- several views


@pytest.fixture
def files(tmp_path):
    """Seven images of several shapes in three classes."""
    from PIL import Image

    for i, (width, height) in enumerate([(40, 40), (50, 40), (40, 64), (41, 47), (90, 40), (40, 40), (60, 45)]):
        for split in ("train", "test"):
            path = tmp_path / "set" / split / f"class{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=GENERATOR.manual_seed(i))
            Image.fromarray(pixels.numpy()).save(path)
    return zoo.data.images(seed=0, root=str(tmp_path), folder="set", image_size=32, resize=40, normalise="symmetric")


def test_ten_crops_are_averaged(files):
    """A predictor that sees only the mean of a crop: the crops show in what it was given, the average in what comes out."""
    seen = []

    class Judge:
        def predict(self, batch):
            seen.append(batch["image"])
            return torch.stack([batch["image"].mean((1, 2, 3)), torch.zeros(len(batch["image"]))], 1)

    image = files.test.seen_as(View(40, 40)).fetch({"index": torch.arange(3)})["image"]
    crops = [image[:, :, y : y + 32, x : x + 32] for y, x in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))]
    crops = torch.stack([side for crop in crops for side in (crop, crop.flip(-1))])  # (10, 3, C, 32, 32)
    found = evaluation.ten_crop(Judge(), files, GENERATOR, resize=40, batch_size=3)
    given = seen[0].unflatten(0, (10, 3))
    assert {crop.numpy().tobytes() for crop in given} == {crop.numpy().tobytes() for crop in crops}
    everything = files.test.seen_as(View(40, 40)).fetch({"index": torch.arange(7)})["image"]
    positive = torch.stack([c.mean((1, 2, 3)) for c in torch.cat([everything[None, ..., y : y + 32, x : x + 32]
                            for y, x in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))])]).mean(0) > 0  # fmt: skip
    correct = (files.test.labels == torch.where(positive, 0, 1)).sum().item()
    assert found == pytest.approx({"ten_crop_accuracy": 100 * correct / 7, "ten_crop_error": 100 - 100 * correct / 7})


def test_multi_scale_runs_over_whole_images(files):
    torch.manual_seed(1)
    objective = Classification(ResNet(BasicBlock, (1, 1, 1, 1), width=4, num_classes=3)).eval()
    found = evaluation.multi_scale(objective, files, GENERATOR, scales=[224, 256])
    correct = 0
    for i in range(7):
        total = 0
        for scale in (224, 256):
            image = files.test.seen_as(View(scale, None)).fetch({"index": torch.tensor([i])})["image"]
            assert min(image.shape[2:]) == scale
            for side in (image, image.flip(-1)):
                total = total + objective.model.score_map(side).mean((2, 3)).softmax(-1)
        correct += total.argmax().item() == files.test.labels[i].item()
    assert found["multi_scale_error"] == pytest.approx(100 - 100 * correct / 7)
    with pytest.raises(ConfigError, match="multi_scale needs a model with a score_map; CifarResNet has none"):
        evaluation.multi_scale(Classification(CifarResNet(8)), files, GENERATOR)


def test_views_need_files(files):
    digits = zoo.data.digits(seed=0)
    for function in (evaluation.ten_crop, evaluation.multi_scale):
        with pytest.raises(ConfigError, match="looks at image files in other sizes"):
            function(Classification(ResNet(BasicBlock, (1, 1, 1, 1), width=4)), digits, GENERATOR)
    with pytest.raises(ConfigError, match="resize 31 is smaller than the crops of data.image_size 32"):
        evaluation.ten_crop(None, files, GENERATOR, resize=31)
    assert isinstance(files.test, ImageFiles)


def test_accuracies_are_in_percent():
    probabilities = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    found = accuracies("x", [probabilities[:2], probabilities[2:]], torch.tensor([0, 4, 0]))
    assert found == pytest.approx({"x_accuracy": 100 / 3, "x_error": 200 / 3, "x_top5_error": 100 / 3})


# --- probes


class Pixels(nn.Module):
    """Features are the pixels."""

    def forward_features(self, images):
        return images.flatten(1)


def test_knn_and_linear_probe_equal_scikit_learns():
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    data, objective = zoo.data.digits(seed=0), Classification(Pixels())
    rows = lambda split: (split.fetch({"index": torch.arange(len(split))})["image"].flatten(1).double().numpy(), split.labels.numpy())
    (x, y), (x_test, y_test) = rows(data.train), rows(data.test)
    votes = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)).fit(x, y)
    assert evaluation.knn(objective, data, GENERATOR)["knn_accuracy"] == pytest.approx(100 * votes.score(x_test, y_test))
    scaler = StandardScaler().fit(x)
    line = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y)
    expected = 100 * line.score(scaler.transform(x_test), y_test)
    assert evaluation.linear_probe(objective, data, GENERATOR)["linear_probe_accuracy"] == pytest.approx(expected)


def test_probes_need_features():
    with pytest.raises(ConfigError, match="need a model with forward_features"):
        evaluation.knn(Classification(nn.Identity()), zoo.data.digits(seed=0), GENERATOR)


# --- pictures


def test_the_most_confident_mistakes_are_drawn(tmp_path, monkeypatch):
    """Logits are the image's three pixels; two of five images are wrong."""
    images = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 100, 50], [255, 0, 250], [0, 0, 200]], dtype=torch.uint8).reshape(5, 1, 1, 3)
    split = Images(images, torch.tensor([0, 1, 2, 2, 2]), Normaliser.of("unit", images))
    drawn = {}
    monkeypatch.setattr("zoo.evaluation.pictures.captioned", lambda i, c, t: drawn.update(images=i, captions=c) or t)
    data = Data(split, None, split, {"num_classes": 3}, ["cat", "dog", "fox"])
    made = classification_pictures(Classification(nn.Flatten()), data, split, 2, tmp_path, CPU)
    assert [path.name for path in made] == ["confusion.png", "mistakes.png"]
    assert drawn["captions"] == ["cat (43 %)\nis fox", "dog (40 %)\nis fox"]
    torch.testing.assert_close(drawn["images"], images[[3, 2]] / 255)
