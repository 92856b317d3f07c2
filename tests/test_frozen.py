"""Runs of which only a part learns, upon weights that lie elsewhere: they store what they trained, and go on only upon the same weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import message
from tests.test_resume import assert_identical, contents, last
from tests.toys import without_curves
from zoo.config import compose
from zoo.errors import ConfigError, NoCheckpointError
from zoo.evaluation.command import evaluate_command
from zoo.training import checkpoint as checkpoints
from zoo.training.checkpoint import digest
from zoo.training.first_stage import load_frozen
from zoo.training.loop import run
from zoo.training.schedule import Schedule

VIT = "{_target_: zoo.papers.vit.ViT, image_size: 8, patch_size: 4, in_channels: 1, depth: 2, d_model: 16, n_heads: 2, dropout: 0.1, num_classes: 10}"
COMMON = ["data=digits", "data.valid=100", "data.batch_size=24", "objective._target_=zoo.objectives.Classification", "optim={name: adamw, lr: 1e-2}",
          "trainer.steps=6", "trainer.log_every=1", "trainer.save_every=2", "trainer.keep=100", "trainer.device=cpu"]  # fmt: skip
LORA = ["name=toy/lora", f"model={{_target_: zoo.papers.lora.adapted, base: {VIT}, rank: 2, alpha: 4, targets: ['qkv:qv'], train: [head]}}",
        "init_skip=['*.lora.*', 'head.*']", "trainer.ema=0.9", *COMMON]  # fmt: skip


def lora(base: Path, folder: Path, *overrides: str) -> dict:
    return compose([*LORA, f"init={base}", f"run_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A base, and an adapter trained on it."""
    without_curves()
    folder = tmp_path_factory.mktemp("frozen")
    assert run(compose(["name=toy/base", f"model={VIT}", *COMMON, f"run_dir={folder / 'base'}"])) == 0
    assert run(lora(folder / "base", folder / "lora")) == 0
    return folder


@pytest.fixture
def damaged(runs):
    """The base is another one for a while."""
    file = runs / "base" / "model.safetensors"
    kept = file.read_bytes()
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    yield
    file.write_bytes(kept)


def test_only_what_learns_is_stored(runs):
    tensors, _, manifest = checkpoints.load_checkpoint(last(runs / "lora"))
    for state in (tensors["weights"], tensors["ema"], load_file(runs / "lora" / "model.safetensors"), load_file(runs / "lora" / "ema.safetensors")):
        assert len(state) == 2 * 2 + 2 and all(".lora." in name or "head." in name for name in state)
    assert manifest["frozen"] == {"init": digest(runs / "base" / "model.safetensors")}


def test_the_frozen_part_is_that_of_the_base(runs):
    base = load_file(runs / "base" / "model.safetensors")
    for name, value in load_frozen(str(runs / "lora")).objective.model.state_dict().items():
        if ".lora." not in name and not name.startswith("head."):
            assert value.equal(base[name]), name


@pytest.mark.parametrize("step", [2, 4])
def test_resuming_ends_bit_identical(runs, tmp_path, step):
    folder = shutil.copytree(runs / "lora", tmp_path / "lora")
    (folder / "model.safetensors").unlink()
    for path in checkpoints.steps(folder / "checkpoints"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    assert run(lora(runs / "base", folder)) == 0
    assert_identical(contents(last(folder)), contents(last(runs / "lora")))
    assert (folder / "model.safetensors").read_bytes() == (runs / "lora" / "model.safetensors").read_bytes()
    assert json.loads((folder / "environment.json").read_text())["init_sha256"] == digest(runs / "base" / "model.safetensors")


def test_final_and_unfinished_weights_are_evaluated_upon_the_base(runs, tmp_path):
    told = [json.loads(line) for line in (runs / "lora" / "metrics.jsonl").read_text().splitlines()][-1]
    assert evaluate_command([f"run={runs / 'lora'}", "device=cpu"]) == 0
    whole = json.loads((runs / "lora" / "metrics.json").read_text())["metrics"]
    assert whole["accuracy"] == told["test/accuracy"] and whole["loss"] == pytest.approx(told["test/loss"], rel=1e-6)
    folder = shutil.copytree(runs / "lora", tmp_path / "lora")
    (folder / "model.safetensors").unlink()
    assert evaluate_command([f"run={folder}", "device=cpu"]) == 0
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == whole


def test_another_base_is_refused(runs, tmp_path, damaged):
    folder = shutil.copytree(runs / "lora", tmp_path / "lora")
    (folder / "model.safetensors").unlink()
    told = message(lambda: run(lora(runs / "base", folder)), NoCheckpointError)
    assert "the frozen weights of 'init' are not those that the run began with: put their file back" in told
    told = message(lambda: evaluate_command([f"run={runs / 'lora'}", "device=cpu"]), ConfigError)
    assert "the frozen weights of 'init' are not those that" in told


def test_another_base_is_noticed_without_checkpoints_and_under_another_run(runs, tmp_path, damaged):
    folder = shutil.copytree(runs / "lora", tmp_path / "lora")
    shutil.rmtree(folder / "checkpoints")
    for use in (lambda: evaluate_command([f"run={folder}", "device=cpu"]), lambda: load_frozen(str(folder))):
        assert "the frozen weights of 'init' are not those that" in message(use, ConfigError)
    told = message(lambda: run(lora(folder, tmp_path / "next", "init_skip=[]")), ConfigError)
    assert "was trained upon other weights than" in told and str(runs / "base") in told


def test_a_base_that_moved_is_named_on_the_command_line(runs, tmp_path):
    base, folder = shutil.move(shutil.copytree(runs / "base", tmp_path / "b"), tmp_path / "moved"), shutil.copytree(runs / "lora", tmp_path / "lora")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(runs / "base"), "nowhere"))
    assert evaluate_command([f"run={folder}", f"init={base}", "device=cpu"]) == 0


def test_a_run_that_lacks_a_tensor_does_not_get_it_from_the_run_before(runs, tmp_path):
    """Only what a run left to its base comes from there."""
    assert run(compose(["name=toy/second", f"model={VIT}", *COMMON, f"run_dir={tmp_path / 'second'}", f"init={runs / 'base'}"])) == 0
    told = message(lambda: run(lora(tmp_path / "second", tmp_path / "lora", "init_skip=[]")), ConfigError)
    assert str(tmp_path / "second") in told and "has no tensor" in told and "name it in init_skip" in told


def test_frozen_tensors_are_not_told_to_start_afresh(runs, tmp_path):
    wide = VIT.replace("d_model: 16", "d_model: 24")
    told = message(lambda: run(lora(runs / "base", tmp_path / "lora", f"model.base={wide}")), ConfigError)
    assert "it is frozen and would stay as it is: give the weights that this model is for" in told
    alone = shutil.copy(runs / "lora" / "model.safetensors", tmp_path)
    assert "give the run's directory" in message(lambda: run(lora(alone, tmp_path / "lora", "init_skip=[]")), ConfigError)


def test_what_init_names_is_looked_for_before_the_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.loop.build_data", None)
    assert "nowhere: no weights there" in message(lambda: run(lora(Path("nowhere"), tmp_path / "lora")), ConfigError)


def test_a_run_ends_with_its_adapter_in_the_format_of_peft(runs):
    from zoo.papers.lora.convert import from_peft

    model = load_frozen(str(runs / "base")).objective.model
    from_peft(model, str(runs / "lora" / "adapter"))
    ours, images = load_frozen(str(runs / "lora")).objective.model, torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.eval()(images), ours(images), rtol=1e-5, atol=1e-5)
    assert "lora_A" in " ".join(load_file(runs / "lora" / "adapter" / "adapter_model.safetensors"))


def test_a_missing_base_is_named(runs, tmp_path):
    folder = shutil.copytree(runs / "lora", tmp_path / "lora")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(runs / "base"), "nowhere"))
    assert "nowhere: no weights there" in message(lambda: evaluate_command([f"run={folder}", "device=cpu"]), ConfigError)


def test_a_run_tells_what_it_began_with_and_what_begins_afresh(runs, tmp_path, capsys):
    for name, skip, told in (("a", "head.*", "afresh: head.weight, head.bias"), ("b", "fc.*", "afresh: nothing has such a name"), ("c", "", "")):
        words = [f"model={VIT}", f"init={runs / 'base'}", f"init_skip=[{skip}]", f"run_dir={tmp_path / name}", "trainer.steps=1"]
        assert run(compose(["name=toy/next", *COMMON, *words])) == 0
        assert f"began with the weights of {runs / 'base'}{'; ' if told else ''}{told}\n" in capsys.readouterr().out


def test_a_run_may_begin_with_an_adapted_one(runs, tmp_path):
    """As the paper's runs on MRPC and RTE begin with the adapter of MNLI."""
    assert run(lora(runs / "lora", tmp_path / "next", "init_skip=[]", "trainer.steps=1", "trainer.ema=null", "optim.lr=0.0")) == 0
    ours, theirs = (load_frozen(str(folder)).objective.state_dict() for folder in (tmp_path / "next", runs / "lora"))
    assert all(value.equal(ours[name]) for name, value in theirs.items() if name in ours)
    sha256 = f"{digest(runs / 'lora' / 'ema.safetensors')}+{digest(runs / 'base' / 'model.safetensors')}"
    assert checkpoints.load_checkpoint(last(tmp_path / "next"))[2]["frozen"] == {"init": sha256}


def test_the_share_that_is_trained_is_told(runs, tmp_path, capsys):
    assert run(lora(runs / "base", tmp_path / "run", "trainer.steps=1")) == 0
    trained = sum(value.numel() for value in load_file(tmp_path / "run" / "model.safetensors").values())
    every = trained + sum(v.numel() for n, v in load_file(runs / "base" / "model.safetensors").items() if not n.startswith("head."))
    assert f"toy/lora: {every:,} parameters, {trained:,} of them trained on cpu" in capsys.readouterr().out


def test_frozen_matrices_of_16_bits_change_nothing(runs, tmp_path):
    curves = []
    for name, frozen in (("wide", "null"), ("light", "bf16")):
        keys = ["trainer.precision=bf16", f"trainer.frozen_precision={frozen}"]
        assert run(lora(runs / "base", tmp_path / name, *keys)) == 0
        curves.append([json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
    assert curves[0] == curves[1] and len(curves[0]) >= 6
    assert_identical(contents(last(tmp_path / "wide"))["tensors"], contents(last(tmp_path / "light"))["tensors"])


def test_only_matrices_that_autocast_rounds_are_kept_in_16_bits():
    from zoo.training.precision import lighten

    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Embedding(2, 2), "c": torch.nn.LayerNorm(2), "d": torch.nn.Linear(2, 2),
                                 "e": torch.nn.Linear(2, 2, bias=False), "f": torch.nn.Conv1d(1, 1, 1)})  # fmt: skip
    model["e"].weight = model["b"].weight  # tied
    model.requires_grad_(False)
    model["d"].requires_grad_(True)
    lighten(model, "bf16")
    assert {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16} == {"a.weight", "f.weight"}


def test_what_computes_in_fp32_whatever_the_rest_does_keeps_its_weights():
    from tests.toys import quiet_switch
    from zoo.training.precision import lighten

    model = quiet_switch(97).requires_grad_(False)
    lighten(model, "bf16")
    kept = {name for name, p in model.named_parameters() if p.ndim == 2 and p.dtype == torch.float32}
    assert "blocks.1.feed_forward.gate.router.weight" in kept and model.decoder.weight.dtype == torch.bfloat16


def test_frozen_batch_norms_are_not_synchronised():
    from zoo.training.distributed import synchronise_batch_norm

    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm1d(3, affine=False)))
    model[1][0].requires_grad_(False)
    synchronise_batch_norm(model)
    kinds = [type(model[0]), *map(type, model[1])]
    assert kinds == [torch.nn.SyncBatchNorm, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm]


def test_frozen_precision_goes_with_precision_only(runs, tmp_path):
    told = message(lambda: lora(runs / "base", tmp_path, "trainer.frozen_precision=bf16"), ConfigError)
    assert "trainer.frozen_precision=bf16 needs trainer.precision=bf16" in told


def test_warmup_may_be_a_share_of_the_run():
    of_share, of_updates = (Schedule({"name": "linear", "warmup": warmup}, 1.0, 459, 1.0) for warmup in (0.1, 46))
    assert [of_share.lr(n) for n in range(460)] == [of_updates.lr(n) for n in range(460)]
    assert "schedule.warmup must be a whole number" in message(lambda: compose(["paper=vit", "schedule.warmup=1.5"]), ConfigError)
