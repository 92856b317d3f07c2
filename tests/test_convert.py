"""python -m zoo convert: weights in somebody else's names into ours, checked by outputs; what is refused, in one line. Converters by themselves are
tested with their papers."""

import re

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from tests.helpers import message
from tests.tiny import BERT
from zoo.cli import main
from zoo.hub import from_pretrained
from zoo.objectives import Classification
from zoo.training.init import start_from, weights_file


def told(capsys, *words: str, code: int = 1) -> str:
    """The one line of a refusal."""
    assert main("convert", list(map(str, words))) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 500
    return said


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a ResNet, as torchvision has them."""
    renamed = {re.sub(r"^stages\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name): value for name, value in state.items()}
    return {name.replace(".shortcut.", ".downsample."): value for name, value in renamed.items()}


@pytest.fixture
def theirs():
    from torchvision.models import resnet18

    model = resnet18(num_classes=3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running" in name:
                value.uniform_(0.5, 1)
    return model.eval()


def test_a_resnet_of_torchvision_out_of_a_checkpoint(theirs, tmp_path, capsys):
    """As DataParallel names it, inside a checkpoint, and from before batches were counted."""
    state = {f"module.{name}": value for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "theirs.pth")
    out = tmp_path / "deep" / "ours.safetensors"
    assert main("convert", [str(tmp_path / "theirs.pth"), "--to", "resnet18", f"--out={out}", "num_classes=3"]) == 0
    assert "in the names of torchvision" in capsys.readouterr().out
    model, images = zoo.create_model("resnet18", weights=out, num_classes=3), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert close(model(images), theirs(images))


def test_weights_that_load_but_mean_another_network_are_refused(tmp_path, capsys):
    torch.manual_seed(0)
    model = zoo.create_model("resnet50_v1_5", width=4).eval()
    file = tmp_path / "theirs.safetensors"
    save_file(torchvision_names(model.state_dict()), file)
    assert "computes something else: --to resnet50_v1_5" in told(capsys, file, "--to", "resnet50", "width=4")
    assert main("convert", [str(file), "to=resnet50_v1_5", "width=4", f"out={tmp_path / 'folder'}"]) == 0
    back, images = from_pretrained(tmp_path / "folder"), torch.randn(2, 3, 64, 48)
    assert back.made_by == {"preset": "resnet50_v1_5", "arguments": {"width": 4}}
    with torch.no_grad():
        assert torch.equal(back(images), model(images))


def test_folders_of_transformers(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    reference = transformers.BertForPreTraining(transformers.BertConfig(vocab_size=20, max_position_embeddings=12, **sizes)).eval()
    reference.save_pretrained(tmp_path / "bert")
    arguments = [f"{name}={value}" for name, value in (BERT | {"head": "pretraining"}).items()]
    assert main("convert", [str(tmp_path / "bert"), "--to", "bert_base", "--out", str(tmp_path / "ours"), *arguments]) == 0
    assert "names of transformers" in capsys.readouterr().out
    tokens = torch.randint(20, (2, 7))
    with torch.no_grad():
        assert close(from_pretrained(tmp_path / "ours")(tokens)[0], reference(tokens).prediction_logits)


def test_a_vit_of_timm(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    reference = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3).eval()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    out = tmp_path / "ours.safetensors"
    assert main("convert", [str(tmp_path), "--to", "vit_ti16", "--out", str(out), "image_size=32", "num_classes=3"]) == 0
    assert "names of timm" in capsys.readouterr().out
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert close(zoo.create_model("vit_ti16", weights=out, image_size=32, num_classes=3)(images), reference(images))


def test_our_own_names_in_a_pickle(tmp_path, capsys):
    model = zoo.create_model("vae_mnist", image_size=8, hidden=4)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    out = tmp_path / "mine.safetensors"
    assert main("convert", [str(tmp_path / "mine.pt"), "--to", "vae_mnist", "--out", str(out), "image_size=8", "hidden=4"]) == 0
    assert load_file(out).keys() == model.state_dict().keys() and "names of zoo" in capsys.readouterr().out


def test_what_does_not_fit_is_told_by_the_nearest_converter(theirs, tmp_path, capsys):
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    said = told(capsys, file, "--to", "resnet18")
    assert "read as torchvision, has 'fc.weight' of shape (3, 512), but it is (1000, 512) in resnet18(); arguments go behind it" in said
    assert "read as torchvision, has no 'stages.0.2." in told(capsys, file, "--to", "resnet34", "num_classes=3")
    assert "names such as 'conv1.weight' are none that vae_mnist has in zoo" in told(capsys, file, "--to", "vae_mnist")
    assert "'conv1.weight' has no place in the ViT" in told(capsys, file, "--to", "vit_b16", "--from", "timm")
    torch.save({**theirs.state_dict(), "more": torch.ones(1)}, file)
    assert "has 'more', for which there is no place" in told(capsys, file, "--to", "resnet18", "num_classes=3")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give one file, folder or hub id, and --to <preset>"),
        (["other.pt"], "give one file, folder or hub id, and --to <preset>"),
        (["other.pt", "--to"], "--to needs a value"),
        (["--to", "resnet51"], "no preset is called 'resnet51'; did you mean"),
        (["--to", "resnet18", "--from", "keras"], "resnet has converters from zoo, torchvision"),
        (["--to", "transformer_tiny", "--from", "torch"], "from_torch needs embedding besides the weights: call it in Python"),
    ],
)
def test_a_wrong_command_line(words, said, tmp_path, capsys):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert said in told(capsys, tmp_path / "a.pt", *words, code=2)


def test_arguments_of_the_preset_are_checked(tmp_path, capsys):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert "unknown key 'model.num_clases'" in told(capsys, tmp_path / "a.pt", "--to", "resnet18", "num_clases=3")


class Custom(nn.Linear):
    pass


def test_files_that_are_no_state_dict_run_nothing(tmp_path, capsys):
    torch.save(Custom(2, 2), tmp_path / "whole.pt")
    assert "it holds more than tensors, which would have to be run" in told(capsys, tmp_path / "whole.pt", "--to", "resnet18")
    (tmp_path / "broken.bin").write_bytes(b"\x80\x04nothing")
    assert "broken.bin cannot be read" in told(capsys, tmp_path / "broken.bin", "--to", "resnet18")
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    assert "broken.npz cannot be read" in told(capsys, tmp_path / "broken.npz", "--to", "resnet18")
    torch.save({"epoch": 3}, tmp_path / "no_weights.pt")
    assert "no_weights.pt holds no state dict" in told(capsys, tmp_path / "no_weights.pt", "--to", "resnet18")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    assert "list.pt holds no state dict" in told(capsys, tmp_path / "list.pt", "--to", "resnet18")
    (tmp_path / "notes.md").write_text("")
    assert "give a file that ends in .safetensors, .npz" in told(capsys, tmp_path / "notes.md", "--to", "resnet18")
    assert "there is no file or folder" in told(capsys, tmp_path / "absent.pt", "--to", "resnet18")
    (tmp_path / "empty").mkdir()
    assert "has none of model.safetensors" in told(capsys, tmp_path / "empty", "--to", "resnet18")


def test_arrays_of_the_authors_of_vit(tmp_path, capsys):
    """An .npz whose names no converter knows."""
    import numpy as np

    np.savez(tmp_path / "theirs.npz", a=np.ones(1))
    assert "names such as 'a' are none that vit_b16 has in zoo, timm" in told(capsys, tmp_path / "theirs.npz", "--to", "vit_b16")


# ---- init=... of a run ----


def test_a_run_starts_from_weights_on_the_hub_in_the_names_of_timm(tmp_path, monkeypatch):
    """Fine-tuning as the paper's: other classes, a larger image, a new head."""
    timm = pytest.importorskip("timm")
    reference = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    (tmp_path / "vit").mkdir()
    save_file(reference.state_dict(), tmp_path / "vit" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **kwargs: str(tmp_path / repo_id.split("/")[1]))
    images = torch.randn(2, 3, 32, 32)
    same, larger = (Classification(zoo.create_model("vit_ti16", image_size=size, num_classes=3).eval()) for size in (32, 64))
    for objective in (same, larger):
        head = objective.model.head.weight.clone()
        start_from(objective, "somebody/vit", ["head.*"])
        assert torch.equal(objective.model.head.weight, head)
    with torch.no_grad():
        assert close(same.model.forward_features(images), reference.forward_head(reference.forward_features(images), pre_logits=True))
    assert larger.model.positions.table.shape[-2] == 17 and torch.equal(larger.model.embedding.weight, same.model.embedding.weight)


def test_a_run_starts_from_a_file_of_torchvision_unless_it_means_another_network(theirs, tmp_path):
    file = tmp_path / "theirs.safetensors"
    save_file(theirs.state_dict(), file)
    objective, images = Classification(zoo.create_model("resnet18", num_classes=3).eval()), torch.randn(2, 3, 64, 48)
    start_from(objective, str(file), [])
    with torch.no_grad():
        assert close(objective.model(images), theirs(images))
    save_file(torchvision_names(zoo.create_model("resnet50_v1_5", width=4).state_dict()), file)
    start_from(Classification(zoo.create_model("resnet50_v1_5", width=4)), str(file), [])
    said = message(lambda: start_from(Classification(zoo.create_model("resnet50", width=4)), str(file), []))
    assert said.endswith("a network that computes something else: resnet50_v1_5")
    save_file({name: value for name, value in theirs.state_dict().items() if name != "layer3.1.bn2.bias"}, file)
    assert "has no tensor 'stages.2.1.bn2.bias'" in message(lambda: start_from(objective, str(file), []))


def test_an_adapter_alone_is_no_beginning(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter without its base: give the directory of its run" in message(lambda: weights_file(str(tmp_path)))
