"""Models out of folders, the hub, runs, files and the package, and back into folders: the same outputs to the bit, errors of one sentence."""

import copy
import json
import pickle
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

import hubconf
import zoo
from tests.helpers import message
from tests.test_frozen import COMMON, LORA, VIT
from tests.tiny import TINY
from tests.toys import without_curves
from zoo import weights
from zoo.cli import main
from zoo.config import compose
from zoo.hub import export, from_pretrained, places, push_to_hub, save_pretrained, sources
from zoo.hub.sources import WeightsError, build, target_of
from zoo.schema import check_call
from zoo.signature import parameters
from zoo.training.loop import run

ROOT = Path(__file__).parents[1]


def refused(call) -> str:
    return message(call, ValueError)


def random(name: str) -> torch.nn.Module:
    """A tiny model of which nothing is as it was initialised."""
    model = build(name, TINY[name][0], name)
    with torch.no_grad():
        for value in model.parameters():
            value.uniform_(-0.3, 0.3)
        for value in model.buffers():
            if value.is_floating_point():
                value.uniform_(0.5, 1)  # some are variances
    return model.eval()


def outputs(model: torch.nn.Module, inputs: tuple) -> list[torch.Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, torch.Tensor)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(x.dtype == y.dtype and torch.equal(x, y) and x.isfinite().all() for x, y in zip(a, b))


# ---- folders ----


@pytest.mark.parametrize("name", TINY)
def test_a_folder_gives_the_same_model_back(name, tmp_path):
    model, (arguments, inputs) = random(name), TINY[name]
    batch = inputs()
    assert save_pretrained(model, tmp_path / "mine", name, **arguments) == tmp_path / "mine"
    back = from_pretrained(tmp_path / "mine")
    assert type(back) is type(model) and not back.training and back.made_by == {"preset": name, "arguments": arguments}
    assert same(outputs(back, batch), outputs(model, batch))
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["parameters"] == sum(p.numel() for p in model.parameters()) and config["version"] == zoo.__version__
    assert len({value.data_ptr() for value in model.state_dict().values()}) >= len(load_file(tmp_path / "mine" / "model.safetensors"))


def test_every_preset_can_stand_in_a_config_json():
    """Its arguments can be read, none is called as one of ours, and what is required can be told."""
    ours = {"name", "weights", "skip", "model", "folder", "preset", "run", "network", "repo_id", "private"}
    for preset in zoo.list_models():
        assert check_call("model", {"_target_": target_of(preset)}, ())
        assert not ours & set(parameters(target_of(preset))), preset
        assert sources.preset_of(target_of(preset)) == preset


def test_models_know_what_made_them_and_stay_ordinary(tmp_path):
    model = zoo.create_model("resnet20", num_classes=3)
    assert model.made_by == {"preset": "resnet20", "arguments": {"num_classes": 3}}
    assert copy.deepcopy(model).made_by == pickle.loads(pickle.dumps(model)).made_by == model.made_by
    model.fc = torch.nn.Linear(64, 5)
    said = refused(lambda: save_pretrained(model, tmp_path))
    assert "this model has 'fc.weight' of shape (5, 64), but in resnet20(num_classes=3) it is (3, 64)" in said
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path, num_classes=5)
    assert from_pretrained(tmp_path).fc.out_features == 5
    save_pretrained(from_pretrained(tmp_path), tmp_path)  # over the files that it came from
    assert torch.equal(from_pretrained(tmp_path).fc.weight, model.fc.weight)


def test_the_card_names_paper_arguments_and_size(tmp_path):
    save_pretrained(zoo.create_model("resnet20", num_classes=3), tmp_path)
    card = (tmp_path / "README.md").read_text()
    for said in ("library_name: paper-zoo", "- arxiv:1512.03385", "`resnet20(num_classes=3)`, 269,267 parameters", "None were recorded"):
        assert said in card


def test_a_model_of_transformers_can_be_saved_as_ours(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_positions=9, n_embd=8, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "theirs")
    model = from_pretrained(tmp_path / "theirs")
    save_pretrained(model, tmp_path / "ours")
    tokens = torch.randint(20, (2, 7))
    assert same(outputs(from_pretrained(tmp_path / "ours"), (tokens,)), outputs(model, (tokens,)))


def test_a_preset_takes_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertForPreTraining(transformers.BertConfig(vocab_size=20, max_position_embeddings=12, **sizes)).save_pretrained(tmp_path)
    whole = zoo.create_model("bert_base", weights=tmp_path)
    assert whole.kind == "pretraining" and whole.made_by["arguments"]["d_model"] == 8
    said = refused(lambda: zoo.create_model("bert_base", weights=tmp_path, head="classification", outputs=3))
    assert "has no weights for 'head.linear.weight'; skip=['head.linear.*'] passes over it" in said
    fresh = zoo.create_model("bert_base", weights=tmp_path, head="classification", outputs=3, skip=["head.*", "next.*"])
    assert torch.equal(fresh.pooler.weight, whole.pooler.weight) and fresh.head.linear.out_features == 3
    assert "which is no bert_tiny" in refused(lambda: zoo.create_model("bert_tiny", weights=tmp_path))


def test_weights_of_another_shape_are_told_with_the_remedy(tmp_path):
    save_pretrained(zoo.create_model("resnet20"), tmp_path)
    said = refused(lambda: zoo.create_model("resnet20", weights=tmp_path, num_classes=7))
    assert "'fc.weight' of shape (10, 64), but in resnet20(num_classes=7) it is (7, 64); skip=['fc.*'] passes over it" in said
    model = zoo.create_model("resnet20", weights=str(tmp_path), num_classes=7, skip=["fc.*"])
    assert model.fc.out_features == 7 and torch.equal(model.conv1.weight, from_pretrained(tmp_path).conv1.weight)
    # The same shapes do not make the same model: strides differ here, and shortcuts there.
    assert "weights of resnet20(), which is no plain20" in refused(lambda: zoo.create_model("plain20", weights=tmp_path))
    assert "which is no zaremba_small" in refused(lambda: zoo.create_model("zaremba_small", weights=tmp_path))


def test_a_vit_takes_weights_of_another_resolution(tmp_path):
    model = zoo.create_model("vit_ti16", image_size=32, num_classes=2)
    save_pretrained(model, tmp_path)
    larger = zoo.create_model("vit_ti16", weights=tmp_path, image_size=48)
    assert larger.positions.table.shape[0] == 10 and torch.equal(larger.head.weight, model.head.weight)


def test_a_file_fits_or_is_refused(tmp_path):
    file, state = tmp_path / "mine.safetensors", zoo.create_model("resnet20").state_dict()
    save_file(state, file)
    assert torch.equal(zoo.create_model("resnet20", weights=file).fc.weight, state["fc.weight"])
    assert "doesn't say what model it is of" in refused(lambda: from_pretrained(file))
    save_file({name: value for name, value in state.items() if name != "fc.bias"}, file)
    assert "has no weights for 'fc.bias'; skip=['fc.*']" in refused(lambda: zoo.create_model("resnet20", weights=file))
    save_file(state | {"extra": torch.ones(1)}, file)
    assert "has 'extra', for which the model has no place; skip=['extra']" in refused(lambda: zoo.create_model("resnet20", weights=file))
    assert zoo.create_model("resnet20", weights=file, skip=["extra"])
    file.write_bytes(b"\x80\x04no safetensors")
    assert "cannot be read as safetensors" in refused(lambda: zoo.create_model("resnet20", weights=file))
    torch.save(state, tmp_path / "mine.pt")
    assert "is no .safetensors file: python -m zoo convert" in refused(lambda: zoo.create_model("resnet20", weights=tmp_path / "mine.pt"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"preset": "resnet21"}, "no preset is called 'resnet21'; did you mean"),
        ({"preset": "resnet.ResNet", "arguments": {"depths": [1]}}, "model.block is missing"),
        ({"preset": "..training.loop.run"}, "preset must be a name, and arguments a map"),
        ({"preset": "training.loop.run"}, "does not define training.loop.run"),
        ({"preset": "lora.convert.to_peft"}, "is nothing that can be called as model"),
        ({"preset": 3}, "preset must be a name, and arguments a map"),
        ({"arguments": {"num_clases": 3}}, "unknown key 'model.num_clases'; did you mean model.num_classes"),
        ({"arguments": {"num_classes": "three"}}, "model.num_classes must be a whole number"),
        ({"arguments": {"_target_": "os.system"}}, "'fc.weight' of shape (3, 64), but by config.json it should be (10, 64)"),
        ({"arguments": [3]}, "preset must be a name, and arguments a map"),
    ],
)
def test_a_config_json_of_somebody_else_is_checked_and_runs_nothing(change, said, tmp_path):
    save_pretrained(zoo.create_model("resnet20", num_classes=3), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert said in refused(lambda: from_pretrained(tmp_path))


def test_what_cannot_be_saved_is_told(tmp_path):
    plain = TINY["resnet20"][0]
    assert "nothing says which preset made this model" in refused(lambda: save_pretrained(build("resnet20", plain, ""), tmp_path))
    said = refused(lambda: save_pretrained(build("resnet20", plain, ""), tmp_path, "resnet20", in_channels=object()))
    assert "the arguments of resnet20 cannot be written into config.json" in said
    assert "unknown key 'model.widht'" in refused(lambda: save_pretrained(build("resnet20", plain, ""), tmp_path, "resnet20", widht=4))


# ---- the hub ----


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that is a folder."""

    def download(repo_id, allow_patterns, ignore_patterns):
        assert allow_patterns == ["*.safetensors", "*.json", "*.txt"] and ignore_patterns == ["*/*"]
        if not (tmp_path / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more lines")
        return str(tmp_path / repo_id)

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return f"https://example.org/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            for file in Path(folder_path).iterdir():
                (tmp_path / repo_id / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return tmp_path


def test_a_model_goes_to_the_hub_and_comes_back(hub):
    model = zoo.create_model("resnet20", num_classes=3)
    assert push_to_hub(model, "somebody/small") == "https://example.org/somebody/small"
    assert sorted(file.name for file in (hub / "somebody" / "small").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(from_pretrained("somebody/small").fc.weight, model.fc.weight)
    assert torch.equal(zoo.create_model("resnet20", weights="somebody/small").fc.weight, model.fc.weight)


def test_without_a_connection_one_sentence_says_so(hub):
    said = refused(lambda: from_pretrained("nobody/nothing"))
    assert said.startswith("'nobody/nothing' is no folder here, and it could not be fetched from the hub (LocalEntryNotFoundError)")


def test_offline_the_real_client_asks_nobody(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "could not be fetched from the hub" in refused(lambda: zoo.create_model("resnet20", weights="nobody/nothing"))


def test_a_refusal_of_the_hub_is_told(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("401 Client Error\nbody")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    said = refused(lambda: push_to_hub(zoo.create_model("resnet20"), "somebody/small"))
    assert said == "'somebody/small' could not be written to the hub (OSError: 401 Client Error)"


# ---- runs ----

RESNET = "model={_target_: zoo.papers.resnet.CifarResNet, depth: 20, in_channels: 1, num_classes: 10}"
GAN = ["paper=gan", "trainer.steps=2", "trainer.eval_every=null", "trainer.draw_every=null", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    without_curves()
    folder = tmp_path_factory.mktemp("runs")
    short = [*COMMON, "trainer.steps=2"]
    assert run(compose(["name=toy/resnet", RESNET, *short, "trainer.ema=0.5", f"run_dir={folder / 'resnet'}"])) == 0
    assert run(compose(["name=toy/base", f"model={VIT}", *short, f"run_dir={folder / 'base'}"])) == 0
    assert run(compose([*LORA, *short, f"init={folder / 'base'}", f"run_dir={folder / 'lora'}"])) == 0
    assert run(compose([*GAN, f"run_dir={folder / 'gan'}"])) == 0
    assert main("evaluate", [f"run={folder / 'resnet'}", "device=cpu"]) == 0
    return folder


def test_a_run_gives_its_average(runs):
    average = load_file(runs / "resnet" / "ema.safetensors")
    for model in (from_pretrained(runs / "resnet"), zoo.create_model("resnet20", weights=runs / "resnet")):
        assert not model.training and all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())
    assert model.made_by == {"preset": "resnet20", "arguments": {"in_channels": 1, "num_classes": 10}}  # its depth is the preset's own
    assert "num_classes=10), which is no resnet56" in refused(lambda: zoo.create_model("resnet56", weights=runs / "resnet"))


def test_a_run_upon_a_frozen_base_gives_the_whole_model(runs):
    model = from_pretrained(runs / "lora")
    state, base, own = model.state_dict(), load_file(runs / "base" / "model.safetensors"), load_file(runs / "lora" / "ema.safetensors")
    for name, value in state.items():
        assert torch.equal(value, own[name] if name in own else base[name]), name
    assert not all(p.requires_grad for p in model.parameters())
    save_pretrained(model, runs / "lora_folder", run=runs / "lora")
    images = torch.rand(2, 1, 8, 8)
    assert same(outputs(from_pretrained(runs / "lora_folder"), (images,)), outputs(model, (images,)))


def test_of_several_networks_one_is_chosen(runs):
    assert "has the networks generator, discriminator: choose one by network=..." in refused(lambda: from_pretrained(runs / "gan"))
    generator = from_pretrained(runs / "gan", network="generator")
    average = load_file(runs / "gan" / "ema.safetensors")
    assert all(torch.equal(value, average[f"generator.{name}"]) for name, value in generator.state_dict().items())
    assert "which is no gan_mnist_generator" in refused(lambda: zoo.create_model("gan_mnist_generator", weights=runs / "gan"))
    assert "not 'critic'" in refused(lambda: from_pretrained(runs / "gan", network="critic"))


def test_an_unfinished_run_is_told(runs, tmp_path):
    (tmp_path / "config.yaml").write_text((runs / "base" / "config.yaml").read_text())
    assert "no weights there; give a finished run's directory" in refused(lambda: from_pretrained(tmp_path))


def test_the_card_of_a_run_has_its_numbers(runs, tmp_path, capsys):
    assert main("export", [f"run={runs / 'resnet'}", f"to={tmp_path}"]) == 0
    accuracy = json.loads((runs / "resnet" / "metrics.json").read_text())["metrics"]["accuracy"]
    card = (tmp_path / "README.md").read_text()
    for said in (f"| accuracy | {accuracy:.4g} |", "`resnet.CifarResNet(depth=20, in_channels=1, num_classes=10)`", "- seed: 0"):
        assert said in card
    model = from_pretrained(tmp_path)
    with torch.no_grad():
        model.fc.bias += 1
    said = refused(lambda: save_pretrained(model, tmp_path, run=runs / "resnet"))
    assert "the weights of this model are not those of the run" in said
    capsys.readouterr()


# ---- what ships ----


def test_a_run_becomes_weights_that_ship(runs, tmp_path, monkeypatch, capsys):
    for module in (weights, export, places):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    words = [f"run={runs / 'resnet'}", "as=digits", "dtype=fp16"]
    assert main("export", words) == 1
    assert "trained resnet.CifarResNet, which is no preset by itself" in capsys.readouterr().err
    assert main("export", [*words, "preset=resnet20"]) == 0
    model, average = zoo.create_model("resnet20", weights="digits"), load_file(runs / "resnet" / "ema.safetensors")
    assert torch.equal(model.fc.weight, average["fc.weight"].half().float())
    assert weights.about("resnet20", "digits")["run"]["metrics"]["accuracy"] >= 0
    monkeypatch.setattr(export, "LIMIT", 1000)
    assert main("export", [*words, "preset=resnet20"]) == 1
    assert "bytes are more than the 1,000 that ship" in capsys.readouterr().err
    for wrong, said in [
        (["as=x"], "give run=<run directory> and either to=<folder> or as="),
        ([*words, "to=x"], "either to=<folder> or as="),
        ([*words, "presset=resnet20"], "did you mean preset?"),
        ([f"run={runs / 'resnet'}", "as=../x", "preset=resnet20"], "letters, digits and _ make a name"),
        ([*words[:2], "preset=resnet20", "dtype=int8"], "dtype must be one of fp32, fp16, bf16"),
    ]:
        assert main("export", wrong) == 2 and said in capsys.readouterr().err
    (runs / "base" / "metrics.json").unlink(missing_ok=True)
    assert main("export", [f"run={runs / 'base'}", "as=digits", "preset=vit_b16"]) == 1
    assert "which is no vit_b16" in capsys.readouterr().err


SHIPPED = [(preset, name) for preset, names in weights.shipped().items() for name in names]


@pytest.mark.parametrize("preset, name", SHIPPED)
def test_what_ships_is_small_and_says_where_it_comes_from(preset, name):
    file, about = weights.FOLDER / f"{preset}-{name}.safetensors", weights.about(preset, name)
    assert file.stat().st_size <= export.LIMIT
    assert about["preset"] == preset and re.fullmatch("[0-9a-f]{40}", about["run"]["trained_on"]["commit"])
    assert zoo.create_model(preset, weights=name).made_by == {"preset": preset, "arguments": about["arguments"]}


def test_the_shipped_resnet20_reads_digits():
    from zoo.data import digits

    found = weights.about("resnet20", "digits")["run"]
    test = digits(**{key: value for key, value in found["config"]["data"].items() if key in parameters("zoo.data.digits")}, seed=0).test
    model, right = zoo.create_model("resnet20", weights="digits"), 0
    for (address,) in test.sweeps(360):
        batch = test.fetch(address)
        right += int((outputs(model, (batch["image"],))[0].argmax(1) == batch["label"]).sum())
    assert right / len(test) == pytest.approx(found["metrics"]["accuracy"] / 100, abs=0.005)


def test_the_shipped_language_model_knows_the_manual():
    """On the Python that it was trained with to the figure recorded, on others near it."""
    from zoo.data import manual

    data, found = manual(seed=0, root="unused"), weights.about("zaremba_small", "manual")["run"]["metrics"]
    stream = data.test.tokens[:4001][None]
    (logits, *_) = outputs(zoo.create_model("zaremba_small", weights="manual"), (stream[:, :-1],))
    bits = torch.nn.functional.cross_entropy(logits[0], stream[0, 1:]).item() / torch.log(torch.tensor(2.0)).item()
    assert bits == pytest.approx(found["bits_per_char"], abs=0.4)


def test_names_that_do_not_ship_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no weights of that name ship with resnet20 (digits)" in refused(lambda: zoo.create_model("resnet20", weights="digts"))
    assert "no weights of that name ship with resnet56 (none do)" in refused(lambda: zoo.create_model("resnet56", weights="digits"))
    assert "there is no digits" in refused(lambda: zoo.create_model("resnet56", weights="./digits"))


def test_torch_hub_finds_every_preset():
    assert all(getattr(hubconf, name).args == (name,) for name in zoo.list_models()) and hubconf.dependencies == ["torch", "einops", "safetensors"]
    model = torch.hub.load(str(ROOT), "resnet20", source="local", weights="digits")
    assert model.made_by["preset"] == "resnet20"
    assert "269,722 parameters" in hubconf.resnet20.__doc__


def test_the_package_is_typed():
    assert (ROOT / "zoo" / "py.typed").is_file()
    assert zoo.list_models("*vit*") == sorted(name for name in zoo.list_models() if "vit" in name) != []
    assert zoo.hub.WeightsError is WeightsError
