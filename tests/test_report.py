"""report.html of a run, the comparison of runs, the gallery of papers: what they tell, and that no file of a run can break or abuse them."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.helpers import message
from tests.toys import toy
from zoo import report, results
from zoo.catalog import PAPERS
from zoo.cli import main
from zoo.errors import ConfigError
from zoo.evaluation import pictures
from zoo.report.chart import Axis, Line, chart, number, short, thinned
from zoo.report.comparison import differing, labels
from zoo.report.run import read_run
from zoo.report.single import single
from zoo.training.loop import run

ROOT = Path(__file__).parent.parent
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Document(HTMLParser):
    """Tags with their attributes, and the text outside the style sheet."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.current = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.current = tag
        self.texts.append("" if tag == "wbr" else " ")

    def handle_data(self, data):
        if self.current != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(file: Path) -> Document:
    return Document(file.read_text(encoding="utf-8"))


def training(steps: int, loss: float = 2.0, factor: float = 1.0) -> list[dict]:
    """What a run logs: every 10 steps, and an evaluation every 20."""
    records = []
    for step in range(10, steps + 1, 10):
        records.append({"step": step, "loss": factor * loss / step, "grad_norm": 1.0, "lr": 0.1, "epoch": step / 100, "seconds": step / 2,
                        "items_per_second": 100.0 + step, "memory_mib": 512.0})  # fmt: skip
        if step % 20 == 0:
            records.append({"step": step, "valid/loss": 1.1 * loss / step, "valid/accuracy": 50 + step / 10})
    return records


def make(folder: Path, records: list[dict] | None = None, result: dict | None = None, **cfg) -> Path:
    """A run directory without any training."""
    folder.mkdir(parents=True)
    config = {"model": {"width": 8}, "optim": {"lr": 0.1}, "name": "resnet/quick", "seed": 0, "run_dir": str(folder), "expect": None,
              "trainer": {"steps": 100}, **cfg}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {"python": "3.11", "hardware": "a CPU", "commit": "0123abcd", "command": ["train.py", "paper=resnet", "optim.lr=0.1"], "seed": 0}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (training(100) if records is None else records)))
    if result:
        about = {"name": config["name"], "split": "test", "step": 100, "weights": "raw, final (model.safetensors)"}
        (folder / "metrics.json").write_text(json.dumps({**about, **result}))
    return folder


def draw(file: Path, size: tuple[int, int] = (20, 10)) -> None:
    from PIL import Image

    file.parent.mkdir(exist_ok=True)
    Image.effect_noise(size, 50).save(file)


# ---- a run's page ----


def test_a_page_tells_what_the_run_did_and_how_to_do_it_again(tmp_path, capsys):
    expect = {"metric": "accuracy", "paper": 92.0, "source": "table 6", "tolerance": 0.5}
    folder = make(tmp_path / "run", result={"metrics": {"loss": 0.1, "accuracy": 91.7}, "texts": {"bleu_signature": "case:mixed"}}, expect=expect)
    draw(folder / "pictures" / "confusion.png")
    draw(folder / "pictures" / "samples-00000050.png")
    draw(folder / "pictures" / "curves.png")
    (folder / "pictures" / "translations.txt").write_text("a < b")
    assert main("report", [str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    page = read(folder / "report.html")
    for part in ("resnet/quick", PAPERS["resnet"].title, "ResNet, quick run", "finished: 100 steps", "92 (table 6)", "91.7", "0.3 below the paper's",
                 "within the tolerance of 0.5", "test split after 100 steps; weights: raw, final", "case:mixed", "50 s", "a CPU", "0123abcd",
                 f"python evaluate.py run={folder}", "python train.py paper=resnet optim.lr=0.1", "samples, step 50", "a < b",
                 "width: 8", "items answered right"):  # fmt: skip
        assert part in page.text, part
    assert [image["alt"] for image in page.all("img")] == ["confusion", "samples, step 50"]  # the curves are drawn anew
    said = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    assert said[0] == "loss against step: training from 0.2 to 0.02; valid from 0.11 to 0.022"
    assert [text.split(" against")[0] for text in said] == ["loss", "accuracy", "learning rate", "gradient norm", "items a second"]
    assert read_run(folder).overrides == {"optim.lr": 0.1}


def test_everything_is_inside_the_page(tmp_path):
    folder = make(tmp_path / "run")
    draw(folder / "pictures" / "samples.png")
    page = Document(single(read_run(folder)))
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href", "srcset", "data", "action")]
    assert len(addresses) == 1 and addresses[0].startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", single(read_run(folder)))
    assert any("default-src 'none'" in meta.get("content", "") for meta in page.all("meta"))


def test_what_files_hold_is_text_and_nothing_else(tmp_path):
    """Names, keys, values, commands, file names and texts of a run directory that somebody sent."""
    records = [{"step": step, HOSTILE: 1.0 / step, f"valid/{HOSTILE}": 2.0, "loss": 1.0} for step in (1, 2)]
    result = {"metrics": {HOSTILE: 1.0}, "split": HOSTILE, "weights": HOSTILE, "texts": {HOSTILE: HOSTILE}, "step": 2}
    folder = make(tmp_path / "run", records, result, name=HOSTILE, expect={"metric": HOSTILE, "paper": 1, "source": HOSTILE, "tolerance": 1})
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "command": [HOSTILE, f"{HOSTILE}={HOSTILE}"], "hardware": HOSTILE}))
    draw(folder / "pictures" / f"{HOSTILE.replace('/', '')}.png")
    (folder / "pictures" / "x.txt").write_text(HOSTILE)
    other = make(tmp_path / "other", name="resnet/quick")
    main("report", [str(folder)])
    main("report", [str(folder), str(other), f"to={tmp_path / 'both.html'}"])
    for file in (folder / "report.html", tmp_path / "both.html"):
        page = read(file)
        assert HOSTILE in page.text  # shown as it is
        assert not page.all("script") and all("onerror" not in attributes for _, attributes in page.tags)
        assert all(image["src"].startswith("data:") for image in page.all("img"))


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-20]), "1 damaged line(s) left out"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\x00\n[1]\n{}\n{\"step\": \"x\", \"loss\": 1}\n"), "4 damaged line(s) left out"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 1e999, "lr": 1}'), "not finite"),
        (lambda run: (run / "metrics.jsonl").write_text("[" * 100_000), "1 damaged line(s)"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n{"step": 3, "seconds": 9}'), "last 1"),
        (lambda run: (run / "metrics.jsonl").unlink(), "finished: 100 steps"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "finished: 100 steps"),
        (lambda run: (run / "metrics.json").write_text("{"), "metrics.json is damaged"),
        (lambda run: (run / "metrics.json").write_text('{"metrics": [1], "step": "x", "texts": 3}'), "valid split after 100 steps"),
        (lambda run: (run / "metrics.json").write_text('{"metrics": {"a": "x", "b": true, "accuracy": 91.5}, "step": 100}'), "91.5"),
        (lambda run: (run / "environment.json").write_text("[]"), "environment.json is damaged"),
        (lambda run: (run / "environment.json").write_text('{"command": 7, "hardware": ["x"]}'), "finished"),
        (lambda run: (run / "environment.json").unlink(), "finished"),
        (lambda run: (run / "config.yaml").write_text("a: [b"), "config.yaml is damaged"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml is damaged"),
        (lambda run: (run / "config.yaml").write_text("name: [1]\ntrainer: 3\nexpect: x\n1: {2: 3}\n"), "[1]"),
        (lambda run: (run / "config.yaml").unlink(), "finished"),
        (lambda run: (run / "pictures" / "samples.png").write_bytes((run / "pictures" / "samples.png").read_bytes()[:60]), "samples.png is damaged"),
        (lambda run: (run / "pictures" / "samples.png").write_text(""), "samples.png is damaged"),
        (lambda run: shutil.rmtree(run / "pictures"), "finished"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_left_out_and_told(damage, told, tmp_path, monkeypatch, capsys):
    run, sound = (make(tmp_path / name, result={"metrics": {"accuracy": 91.0}}) for name in ("run", "sound"))
    draw(run / "pictures" / "samples.png")
    damage(run)
    monkeypatch.chdir(tmp_path)
    assert main("report", [str(run)]) == 0 and told in read(run / "report.html").text
    assert main("report", [str(run), str(sound)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("release", sorted((ROOT / "tests" / "fixtures").glob("run-*")), ids=lambda path: path.name)
def test_runs_of_earlier_releases_have_a_page(release):
    page = Document(single(read_run(release)))
    assert "unfinished: step 2 of 6" in page.text and "not been evaluated" in page.text


def test_an_evaluation_from_before_the_run_went_on_is_not_its_result(tmp_path):
    folder = make(tmp_path / "run", result={"metrics": {"accuracy": 12.0}, "step": 40})
    assert read_run(folder).final.metrics["accuracy"] == 60.0  # what was logged at step 100


def test_the_papers_number_stands_beside_held_out_items_only(tmp_path):
    expect = {"metric": "accuracy", "paper": 92.0, "source": "table 6"}
    on_training = make(tmp_path / "a", result={"metrics": {"accuracy": 99.0}, "split": "train"}, expect=expect)
    assert "table 6" not in Document(single(read_run(on_training))).text.split("Configuration and environment")[0]
    unevaluated = make(tmp_path / "b", training(10), expect=expect)
    assert "% not measured 92 (table 6)" in Document(single(read_run(unevaluated))).text


def test_losses_of_unlike_units_have_charts_of_their_own(tmp_path):
    """The LSTM on PTB sums the training loss over twenty words, and tells the validation loss a word."""
    titles = lambda factor: re.findall(r"<figcaption>([^<]*)<", single(read_run(make(tmp_path / f"{factor}", training(100, factor=factor)))))
    assert titles(1.0)[:2] == ["loss", "accuracy"] and titles(20.0)[:3] == ["loss, training", "loss, held out", "accuracy"]


def test_large_pictures_are_made_smaller_and_very_many_are_left_in_the_folder(tmp_path):
    folder = make(tmp_path / "run")
    draw(folder / "pictures" / "large.png", (3000, 1000))
    for step in range(40):
        draw(folder / "pictures" / f"samples-{step:08d}.png")
    text = single(read_run(folder))
    page = Document(text)
    assert page.all("img")[0]["width"] == "1200" and page.all("img")[0]["src"].startswith("data:image/webp")
    images = [image["alt"] for image in page.all("img")]
    assert images[:4] == ["large", "samples, step 39", "samples, step 0", "samples, step 2"] and len(images) == 22 and "19 more in" in page.text
    assert len(text) < 1_500_000 < (folder / "pictures" / "large.png").stat().st_size


# ---- charts ----


def test_axes_have_round_numbers():
    ticks = lambda values, **how: [text for _, text in Axis(values, 200, **how).ticks]
    assert ticks([0.0, 9.0]) == ["0", "2", "4", "6", "8"]
    assert ticks([1e-4, 1.0], logarithmic=True) == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert ticks([1.0, 60.0], logarithmic=True) == ["1", "2", "5", "10", "20", "50"]
    assert len(ticks([3.0, 3.0])) > 1 and len(ticks([0.0, 0.0])) > 1  # a constant
    assert short([0, 5000, 10000]) == ["0", "5k", "10k"] and short([2000, 4000]) == ["2000", "4000"] and short([1e-5]) == ["1e-5"]
    assert [number(x) for x in (91.234567, 36000, 0.00001234, -2.5)] == ["91.23", "36,000", "1.234e-05", "-2.5"]


def test_the_axis_is_logarithmic_where_values_span_much():
    scale = lambda ys, **how: "log scale" in chart("loss", [Line("a", [1, 2, 3], ys, 0)], **how)
    assert scale([100.0, 1.0, 0.1]) and not scale([3.0, 2.0, 1.0]) and not scale([100.0, 1.0, 0.0]) and not scale([100.0, 1.0, 0.1], bent=False)


def test_thinning_keeps_every_spike_and_the_order():
    points = [(x, 1.0) for x in range(100_000)]
    points[77_777] = (77_777, 9.0)
    points[5] = (5, -9.0)
    kept = thinned(points)
    assert len(kept) <= 400 and kept == sorted(kept) and {points[5], points[77_777]} <= set(kept)
    assert len(chart("loss", [Line("a", *zip(*points), 0)])) < 12_000
    assert thinned(points[:400]) == points[:400]


# ---- comparison ----


def test_one_record_is_no_curve_and_the_page_says_so(tmp_path):
    assert "makes no curve" in single(read_run(make(tmp_path / "short", training(10))))
    assert "makes no curve" not in single(read_run(make(tmp_path / "long", training(20))))


def test_a_folder_of_runs_names_them(tmp_path, capsys):
    make(tmp_path / "paper" / "row", training(10))
    assert main("report", [str(tmp_path)]) == 2
    assert f"is no run directory: it has neither config.yaml nor metrics; below it lie {tmp_path / 'paper' / 'row'}" in capsys.readouterr().err


def test_runs_are_compared_by_what_came_out_and_what_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for lr in (0.05, 0.1):
        make(tmp_path / "sweep" / f"lr-{lr}", training(100, loss=lr), {"metrics": {"accuracy": 90 + lr}}, optim={"lr": lr}, logger={"name": str(lr)})
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert main("report", [*map(str, sorted((tmp_path / "sweep").iterdir())), "sweep/lr-0.1"]) == 0  # a run that is named twice counts once
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["run", "accuracy", "training", "time", "items", "a", "second", "steps", "split"]
    assert lines[1:] == [["lr-0.05", "90.05", "50", "s", "155", "100", "test"], ["lr-0.1", "90.1", "50", "s", "155", "100", "test"], ["report.html"]]
    assert err.count("\n") == 1 and "left out, since" in err and "multirun.yaml" in err
    page = read(tmp_path / "report.html")
    assert "optim.lr" in page.text and "trainer.steps" not in page.text and "logger" not in page.text and "run_dir" not in page.text
    charts = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert "loss (valid) against step: lr-0.05 from 0.00275 to 0.00055; lr-0.1 from 0.0055 to 0.0011" in charts
    assert any(text.startswith("loss (training) against seconds") for text in charts)
    assert main("report", ["sweep/lr-0.05", "sweep/lr-0.1"]) == 0  # over a page of ours


def test_labels_and_differences(tmp_path):
    folders = [make(tmp_path / "a", seed=1), make(tmp_path / "a" / "b", model={"depth": 3}), make(tmp_path / "c" / "d")]
    runs = [read_run(folder) for folder in folders]
    assert labels(runs) == ["a", "a/b", "c/d"] and labels(runs[:2]) == ["a", "b"]
    assert differing(runs) == {"model.width": [8, "", 8], "seed": [1, 0, 0], "model.depth": ["", 3, ""]}
    assert differing(runs[:1] * 2) == {}


def test_files_of_others_are_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make(tmp_path / name)
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    for words, named in ((["a", "b"], "report.html"), (["a", "to=report.html"], "report.html"), (["a", "to=folder"], "folder"),
                         (["a", "to=report.html/x.html"], "report.html/x.html")):  # fmt: skip
        assert main("report", words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith(f"error: {named} ")
    assert (tmp_path / "report.html").read_text() == "mine" and not (tmp_path / "a" / "report.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "folder", "report.html"]
    assert main("report", ["a", "b", "to=new/other.html"]) == 0 and (tmp_path / "new" / "other.html").is_file()


@pytest.mark.parametrize("command, words, named", [
    ("report", ["runs/nowhere"], "runs/nowhere"),
    ("report", ["empty"], "no run directory"),
    ("report", ["empty", "empty"], "none of these"),
    ("report", ["run=empty"], "takes run directories"),
    ("report", ["to=x.html"], "takes run directories"),
    ("report", ["empty", "to="], "names one file"),
    ("gallery", ["resnet"], "resnet"),
    ("gallery", ["to=a", "to=b"], "names one file"),
])  # fmt: skip
def test_wrong_words_are_answered_in_one_line(command, words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(command, words) == 2
    assert named in capsys.readouterr().err.splitlines()[-1] and [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_help(capsys):
    assert main("report", []) == 2 and main("report", ["--help"]) == 0 and main("gallery", ["-h"]) == 0
    assert capsys.readouterr().out.count("usage:") == 3


def test_torch_is_not_loaded_for_a_page(tmp_path):
    make(tmp_path / "run")
    code = "import sys; from zoo.cli import main; main('report', sys.argv[1:]); sys.exit(bool({'torch', 'matplotlib', 'hydra'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], cwd=ROOT, capture_output=True).returncode == 0


# ---- when it is written ----


def test_a_training_ends_with_its_page_and_so_does_one_that_is_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "curves", lambda folder: folder / "pictures" / "curves.png")
    assert run(toy("classifier", tmp_path / "run", "trainer.max_time=1e-6")) == 0
    assert "unfinished: step 1 of 6" in read(tmp_path / "run" / "report.html").text
    assert run(toy("classifier", tmp_path / "run")) == 0
    assert f"report         {tmp_path / 'run' / 'report.html'}\n" in capsys.readouterr().out
    assert "finished: 6 steps" in read(tmp_path / "run" / "report.html").text
    from zoo.evaluation.command import evaluate_command

    assert evaluate_command([f"run={tmp_path / 'run'}", "model._target_=tests.toys.Mlp"]) == 0
    assert "weights: raw, final" in read(tmp_path / "run" / "report.html").text
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'run' / 'report.html'}\n")


def test_a_page_that_cannot_be_written_costs_nothing_but_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "curves", lambda folder: folder / "pictures" / "curves.png")
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert run(toy("classifier", tmp_path / "run")) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("warning: no report: ") and "evaluate  " in out and "report  " not in out
    monkeypatch.setattr(report, "single", lambda run: 1 / 0)
    assert report.save_report(tmp_path / "run") is None
    assert capsys.readouterr().err == "warning: no report: ZeroDivisionError: division by zero\n"


# ---- gallery ----

IN_A_CHECKOUT = pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="results/ is part of the repository only")


@IN_A_CHECKOUT
def test_the_gallery_has_every_paper_by_year(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main("gallery", [f"to={tmp_path / 'pages' / 'all.html'}"]) == 0
    page = read(tmp_path / "pages" / "all.html")
    links = [link["href"] for link in page.all("a")]
    cards = [(tmp_path / "pages" / link).resolve() for link in links]
    assert sorted(cards) == sorted(ROOT / "zoo" / "papers" / key / "README.md" for key in PAPERS) and all(card.is_file() for card in cards)
    years = [PAPERS[card.parent.name].year for card in cards]
    assert years == sorted(years)
    assert "In a plain recurrent network an error that flows back in time vanishes or explodes." in page.text and "**" not in page.text
    assert all(image["src"].startswith("data:") and image["alt"] for image in page.all("img"))
    assert len(page.all("img")) >= len(list((ROOT / "results" / "pictures").glob("*.png")))
    for image in ("gan/fashion_mnist_small: samples", "vae/mnist_2d: manifold"):
        assert image in page.text
    row = results.headline(results.names("lstm"), results.records(ROOT / "results"))
    assert f"{row.name}: {row.metric} {row.here}" in page.text


@IN_A_CHECKOUT
def test_pictures_of_runs_are_small_and_of_recorded_runs():
    found = results.records(ROOT / "results")
    for file in (ROOT / "results" / "pictures").iterdir():
        assert "/".join(file.stem.split("-")[:-1]) in found and file.stat().st_size < 60_000, file.name


def test_each_picture_belongs_to_its_paper_and_papers_without_have_their_number(tmp_path):
    from zoo.report.gallery import gallery

    (tmp_path / "claims").mkdir()
    tests = {"test_gates": "test_lstm_tasks", "test_vq": "test_vq_vae", "test_without_picture": "test_vae", "test_other": "test_ranks"}
    for test, file in tests.items():
        (tmp_path / "claims" / f"{test}.json").write_text(json.dumps({"command": f"pytest -m claim tests/papers/{file}.py::{test}"}))
        if test != "test_without_picture":
            draw(tmp_path / "claims" / f"{test}.png")
    draw(tmp_path / "pictures" / "vae-manifold.png")
    parts = gallery(tmp_path, tmp_path / "gallery.html").split("<article>")[1:]
    shown = {re.search(r'papers/(\w+)/README.md"', part)[1]: Document(part).all("img") for part in parts}
    assert {key: [image["alt"] for image in images] for key, images in shown.items() if images} == {
        "lstm": ["gates"], "vq_vae": ["vq"], "vae": ["vae: manifold"]}  # fmt: skip
    assert all("not yet run" in part for part in parts)


def test_the_gallery_of_an_installed_package_says_what_it_lacks(tmp_path, monkeypatch):
    from zoo.report import command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "__file__", str(tmp_path / "zoo" / "report" / "command.py"))
    assert "call it from a checkout" in message(lambda: command.gallery_command([]), ConfigError)


# ---- in a browser ----

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!doctype html><title>measuring</title><iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const seen = document.querySelector("iframe").contentDocument, root = seen.documentElement;
  const enlarged = e => e.tagName == "text" ? e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width : 1;
  const small = [...seen.querySelectorAll("p, td, th, li, dd, dt, text")].filter(e => enlarged(e) * parseFloat(getComputedStyle(e).fontSize) < 9.5);
  const broken = [...seen.images].filter(image => !image.naturalWidth);
  document.body.textContent = JSON.stringify({{width: root.clientWidth, needed: root.scrollWidth, small: small.length, broken: broken.length,
    charts: seen.querySelectorAll("svg[role=img]").length}});
}})</script>"""


def measured(page: Path, width: int, folder: Path) -> dict:
    """What a browser makes of a page in a window of this width."""
    harness = folder / "harness.html"
    harness.write_text(MEASURE.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([BROWSER, *words, f"--user-data-dir={folder / 'profile'}", harness.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r"<body>(.*?)</body>", done.stdout, re.DOTALL)[1]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_pages_fit_a_phone_and_a_desk(tmp_path, monkeypatch):
    """At 360 pixels nothing has to be scrolled sideways but wide tables and commands in their own boxes, and no text is tiny."""
    monkeypatch.chdir(tmp_path)
    long = {f"inception_score_by_resnet_fashion_mnist_resnet20_{i}_{'x' * 40}": 1.0 for i in range(12)}
    result = {"metrics": long, "texts": {"signature": "y" * 300}}
    folder = make(tmp_path / "run", result=result, name=f"resnet/{'long' * 30}", model={"wide": "z" * 200})
    draw(folder / "pictures" / "samples.png", (2000, 500))
    (folder / "pictures" / "samples.txt").write_text("w" * 3000)
    others = [str(make(tmp_path / f"{'other' * 12}-{i}", optim={"lr": i})) for i in range(9)]
    pages = {"one": [str(folder), "to=one.html"], "many": [str(folder), *others, "to=many.html"]}
    for words in pages.values():
        assert main("report", words) == 0
    for name, charts in {"one": 5, "many": 7}.items():
        for width in (360, 1200):
            found = measured(tmp_path / f"{name}.html", width, tmp_path)
            assert found == {"width": width, "needed": width, "small": 0, "broken": 0, "charts": charts}, (name, width)


@pytest.mark.slow
@IN_A_CHECKOUT
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_gallery_fits_a_phone_and_a_desk(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    main("gallery", [f"to={tmp_path / 'gallery.html'}"])
    for width in (360, 1200):
        found = measured(tmp_path / "gallery.html", width, tmp_path)
        assert found["needed"] == width and not found["small"] and not found["broken"]
