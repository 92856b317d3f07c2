"""The numbers: every one in the documents has a record, every record the configuration that its row names."""

import copy
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from docs import tables
from docs.estimates import fingerprint, work_of
from tests.helpers import message
from zoo import results
from zoo.catalog import PAPERS
from zoo.cli import main
from zoo.config import compose, paper_configs
from zoo.errors import ConfigError
from zoo.metrics import importance, meaning
from zoo.training.specimen import items_of, specimen, varies
from zoo.training.throughput import iteration_work, work_of_fakes

ROOT = Path(__file__).parent.parent
if not (ROOT / "results").is_dir():
    pytest.skip("results/ is part of the repository only", allow_module_level=True)
FOUND = results.records(ROOT / "results")
ESTIMATES = json.loads((ROOT / "results" / "estimates.json").read_text())


# ---- what stands in the documents ----


def test_documents_say_what_the_records_say():
    """Else: python docs/tables.py."""
    assert [str(path.relative_to(ROOT)) for path, text in tables.documents().items() if path.read_text() != text] == []


@pytest.mark.parametrize("name", sorted(FOUND))
def test_records_are_those_of_a_row(name):
    """A change of a configuration file is told where its numbers stand; run it again, or let `python docs/tables.py` mark the row."""
    assert name in paper_configs(), "a record of a configuration that is no more: it would vanish from the tables"
    shown = (ROOT / "docs" / "results.md").read_text()
    for record in FOUND[name]:
        text = json.dumps(record["config"], sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == record["config_sha256"], "edited by hand"
        if changed := results.changes(record):
            lines = [line for line in shown.splitlines() if f"| `{name}` |" in line]
            assert all(results.EARLIER in line for line in lines), changed
    seen = [(record["split"], record["seed"]) for record in FOUND[name]]
    assert len(set(seen)) == len(seen), "two records of a seed would count as two seeds"
    assert results.stated(name) == results.composed(name)["expect"]


def test_every_claim_test_has_a_record_and_a_picture_that_its_card_shows():
    """Else: ZOO_RECORD=1 pytest -m claim tests/papers/test_<paper>.py. The card's first picture leads it; others may be linked."""
    folder = ROOT / "results" / "claims"
    found = {file.stem: json.loads(file.read_text())["picture"] for file in folder.glob("*.json")}
    pictures = {file.name: file.stat().st_size for file in folder.glob("*.png")}
    assert set(pictures) == set(found.values()) and max(pictures.values()) < 60_000
    tests = [file.read_text() for file in (ROOT / "tests" / "papers").glob("test_*.py")]
    assert set(found) == {name for text in tests for name in re.findall(r"@pytest\.mark\.claim\ndef (\w+)", text)}
    heads = {key: (ROOT / "zoo" / "papers" / key / "README.md").read_text().split("**Claim.**")[0] for key in PAPERS}
    assert [key for key, head in heads.items() if not re.search(r"!\[.+\]\(\.\./\.\./\.\./results/claims/\w+\.png\)", head)] == []
    assert sorted(name for head in heads.values() for name in re.findall(r"results/claims/(\w+\.png)\)", head)) == sorted(found.values())


@pytest.mark.slow
def test_the_papers_numbers_are_those_of_the_composed_configurations():
    assert all(results.stated(name) == compose([f"paper={name}"])["expect"] for name in paper_configs())


# ---- what a change is ----


def changed(edit, name="resnet"):
    record = copy.deepcopy(FOUND[name][0])
    edit(record["config"], record)
    return results.changes(record)


@pytest.mark.parametrize(
    "edit, found",
    [
        (lambda cfg, record: None, {}),
        (lambda cfg, record: cfg["optim"].update(lr=0.2), {"optim.lr": (0.2, 0.1)}),
        (lambda cfg, record: cfg["model"].pop("depth"), {"model.depth": (None, 14)}),
        (lambda cfg, record: cfg["trainer"].update(steps=10), {"trainer.steps": (10, 1000)}),
        (lambda cfg, record: cfg["trainer"].pop("clip"), {}),  # younger than the record
        (lambda cfg, record: cfg["data"].pop("pad"), {}),  # younger, and as configs/data/digits.yaml has it
        (lambda cfg, record: cfg["data"].pop("augment"), {"data.augment": (None, ["pad_crop"])}),
        (lambda cfg, record: cfg.pop("init_skip"), {}),
        (lambda cfg, record: cfg["trainer"].update(device="cuda", eval_every=1, parallel="fsdp"), {}),
        (lambda cfg, record: cfg["evaluation"].update(fid={"samples": 10}), {"evaluation.fid": ({"samples": 10}, {})}),
        (lambda cfg, record: (cfg["evaluation"].update(fid={"samples": 10}), record.update(command="evaluate.py evaluation.fid.samples=10")), {}),
    ],
)
def test_what_a_run_computes_is_compared_and_not_how_it_ran(edit, found):
    assert changed(edit) == found


# ---- rows ----


def record(value, seed=0, **others):
    return {**copy.deepcopy(FOUND["resnet"][0]), "name": "resnet/cifar10_resnet20", "metrics": {"error": value}, "seed": seed, **others}


@pytest.fixture
def unchanged(monkeypatch):
    monkeypatch.setattr(results, "changes", lambda record: {"optim.lr": (0.1, 0.2)} if record.get("old") else {})


def test_a_row_tells_mean_and_spread_over_seeds_beside_the_papers_number(unchanged):
    (row,) = results.rows("resnet/cifar10_resnet20", [record(8.0), record(9.5, seed=1)])
    assert row.cells[1:6] == ("error", "8.75 (table 6)", "8.75 (8 to 9.5)", "0, 1", "1000")


def test_what_is_unfinished_or_of_an_earlier_configuration_says_so(unchanged):
    (row,) = results.rows("resnet/cifar10_resnet20", [record(8.0, partial=True, step=500, old=True), record(9.0, seed=1)])
    assert row.here == "8.5 (8 to 9), partial, recorded with an earlier configuration" and row.steps == "500, 1000"
    (row,) = results.rows("resnet/cifar10_resnet20", [record(8.0, metrics={"accuracy": 92.0})])
    assert row.here == "not measured" and row.paper


def test_training_items_are_not_set_beside_the_papers_number(unchanged):
    assert [row.paper for row in results.rows("resnet/cifar10_resnet20", [record(8.0), record(1.0, split="train")])] == ["", "8.75 (table 6)"]


def test_a_papers_one_row_is_the_nearest_to_its_number_or_the_quick_run(unchanged):
    names = ["resnet/cifar10_resnet20", "resnet/cifar10_resnet32", "resnet"]
    assert results.headline(names, {}).cells == ("resnet", "", "", "not yet run", "", "", "")
    quick = {"resnet": FOUND["resnet"]}
    assert results.headline(names, quick).metric == "accuracy"
    both = {**quick, "resnet/cifar10_resnet20": [record(12.0)], "resnet/cifar10_resnet32": [record(7.6, name="resnet/cifar10_resnet32")]}
    assert results.headline(names, both).name == "resnet/cifar10_resnet32"


def test_a_variant_that_took_longest_gives_way_to_the_row_that_it_varies(unchanged):
    of = {name: f"switch_transformer/tiny_shakespeare_{name}" for name in ("switch", "noisy_top_k")}
    seconds = {"switch": 10.0, "noisy_top_k": 20.0}
    found = {of[name]: [record(2.0, name=of[name], seconds=seconds[name], metrics={"perplexity": 4.0})] for name in seconds}
    assert results.headline(of.values(), found).name == of["switch"]
    assert results.headline(of.values(), {of["noisy_top_k"]: found[of["noisy_top_k"]]}).name == of["noisy_top_k"]


# ---- the command ----


def test_every_metric_of_the_tables_is_explained_and_has_a_rank():
    told = {row.metric.split(" (")[0] for each in tables.rows().values() for row in each if row.metric}
    assert {name for name in told if meaning(name) is None} == set()
    assert all(f"| `{name.split('_by_')[0]}` | " in tables.metrics_table() for name in told)
    assert sorted(["nearest", "fid_by_some_run", "error", "accuracy", "of_my_own"], key=importance) == ["accuracy", "fid_by_some_run", "nearest",
                                                                                                      "error", "of_my_own"]  # fmt: skip


def test_the_command_prints_a_papers_rows(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main("results", ["lstm/ptb_small*"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["configuration", "lstm/ptb_small", "lstm/ptb_small_cpu"]
    assert re.search(r"perplexity +114.5 \(Zaremba et al. 2014, table 1\) +11\d\.\d +0 +30199 ", said[1])
    assert main("results", ["lstm/ptb_large"]) == 0
    assert "78.4 (Zaremba et al. 2014, table 1)  not yet run" in capsys.readouterr().out


def test_the_command_says_what_it_lacks(tmp_path, monkeypatch):
    assert "did you mean resnet" in message(lambda: results.results_command(["resent"]), ConfigError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "zoo" / "results.py"))
    assert "call it from a checkout" in message(lambda: results.results_command(["vae"]), ConfigError)


def test_torch_is_not_loaded_for_a_table():
    code = "import sys; from zoo.cli import main; main('results', ['vae']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


# ---- estimates ----


def test_every_configuration_has_been_counted():
    """Else: python docs/estimates.py, then python docs/tables.py."""
    assert list(ESTIMATES["runs"]) == list(paper_configs())
    for name in FOUND:  # the others take long to compose
        cfg, counted = results.composed(name), ESTIMATES["runs"][name]
        assert (counted["of"], counted["steps"], counted["items"]) == (fingerprint(cfg), cfg["trainer"]["steps"], items_of(cfg)), name


def test_the_flops_of_a_network_are_counted_without_data():
    """torchvision's ResNet-18 multiplies 1,814 million times an image; that of table 2 lacks three projections, and no layer below the first needs a
    gradient."""
    first, projection = 112 * 112 * 64 * 3 * 49, 28 * 28 * 64 * 128
    found, _ = work_of(compose(["paper=resnet/imagenet_resnet18"]))
    assert found == pytest.approx(2 * (3 * (1814e6 - 3 * projection) - first), rel=1e-3)


@pytest.mark.parametrize("name", ["adapters/rte", "bert", "gpt_2", "lora/e2e_medium", "lstm/reber_batch", "roberta", "transformer", "vae"])
def test_a_specimen_is_what_the_objective_takes(name):
    cfg = compose([f"paper={name}"])
    batch = specimen(cfg, 3)
    assert all(len(value) == 3 for value in batch.values())
    assert varies(cfg) == (name in ("adapters/rte", "lora/e2e_medium", "transformer"))
    assert items_of(cfg) == (16 if name == "transformer" else cfg["data"]["batch_size"])


def test_each_turn_of_a_game_counts_the_gradients_of_its_own_network():
    from zoo.objectives import Classification

    class Game(Classification):
        turns = ("model", "other")

        def __init__(self):
            super().__init__(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5)))
            self.other = torch.nn.Linear(5, 4)

        def forward(self, batch, turn):
            return {"loss": self.other(self.model(batch["image"])).sum()}, {}

    batch = {"image": torch.zeros(3, 1, 2, 3)}
    forward = 2 * 3 * (6 * 5 + 5 * 4)
    assert iteration_work(Game(), batch).flops == 2 * forward + 2 * 3 * (5 * 4 + 6 * 5) + 2 * 3 * 5 * 4


def test_experts_are_counted_which_the_meta_device_does_not_know(capfd):
    from zoo.papers.mixture_of_experts import MixtureOfExperts, NoisyTopKGate

    class Routed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), MixtureOfExperts(NoisyTopKGate(8, experts=4, k=2), 8, 16))

        def forward(self, batch, turn):
            return {"loss": self.model(batch["x"]).sum()}, {}

    tokens, first, gates, experts = 3, 8 * 8, 2 * 8 * 4, 2 * 2 * 8 * 16
    objective, random = Routed(), torch.get_rng_state()
    assert iteration_work(objective, {"x": torch.zeros(tokens, 8)}).flops == 2 * tokens * (2 * first + 3 * (gates + experts))
    assert torch.equal(torch.get_rng_state(), random) and capfd.readouterr() == ("", "")  # nothing that a training would notice


def test_an_lstm_is_one_operator_of_the_cpu_and_all_of_its_arithmetic_on_the_meta_device():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.LSTM(8, 16, batch_first=True)

        def forward(self, batch, turn):
            return {"loss": self.model(batch["x"])[0].sum()}, {}

    batch = {"x": torch.zeros(2, steps := 50, 8)}
    apart, fused = iteration_work(Recurrent(), batch), work_of_fakes(Recurrent(), batch, fused_rnn=True)
    assert apart.flops == 2 * 2 * steps * (2 * 4 * 16 * 8 + 3 * 4 * 16 * 16) - 2 * 2 * 4 * 16 * 16  # the first state needs no gradient
    assert fused.operators < 3 * steps and apart.operators > 10 * steps


def test_what_cannot_be_counted_is_no_fault():
    class Uncopied(torch.nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")

    assert iteration_work(Uncopied(2, 2), {"image": torch.zeros(3, 2)}) is None


def test_hours_are_told_with_what_they_leave_out():
    each = {"flops_per_item": 989e12 * 0.4 * 1800, "operators": 90, "items": 2, "micro_batches": 4, "steps": 20, "at_most": False}
    runs = {"a/b": each, "a/c": {**each, "at_most": True, "steps": 1}, "a/d": {**each, "flops_per_item": None},
            "a/e": {**each, "flops_per_item": 1e9, "steps": 10_000_000}, "a/f": {**each, "flops_per_item": None, "steps": 0},
            "a/g": {**each, "flops_per_item": 989e10, "steps": 1, "at_most": True}, "a/h": {**each, "operators": None}}  # fmt: skip
    told = [results.gpu_hours(name, {"share": 0.4, "peak_tflops": 989, "launch_us": 10, "runs": runs}) for name in ("a", *runs, "a/z")]
    assert told == ["", "20", "at most 1", "not counted", "10", "no training", "< 0.01", "20", "not counted"]
