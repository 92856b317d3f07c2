"""Python in README, cards and docs runs; names and links lead to what they say; the worked example is a paper that trains; the site builds."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy
import pytest
import torch

from docs import links as code_links
from tests.documents import ROOT, anchors, blocks, images, links, named, pages
from tests.helpers import offline  # noqa: F401
from tests.papers.test_ddpm import theirs_of
from tests.papers.test_vit import official_arrays
from zoo.catalog import PAPERS
from zoo.papers.lora import apply
from zoo.papers.roberta import roberta_base

CARDS = {page.parent.name: page for page in pages() if page.parent.parent.name == "papers"}

# ---- Python of the cards ----

META = ("adapters", "alexnet", "resnet", "roberta", "vit")  # full-size models, without memory for their weights
TINY = {"vocab_size": 90, "depth": 2, "d_model": 32, "n_heads": 2, "d_ff": 32, "max_length": 12}
SMALLER = {  # what takes too long is made smaller
    "bert": {"bert_base(": "bert_base(**TINY, "},
    "ddpm": {"unet_cifar10())  ": "unet_small(), 50)  ", "num_classes=10))": "num_classes=10), 50)", "unet_cifar10": "unet_small", "500": "25"},
    "lora": {"roberta_base(": "roberta_base(**TINY, "},
    "mixture_of_experts": {"experts=256": "experts=8", "experts=4096": "experts=64"},
    "transformer": {"transformer_base": "transformer_tiny"},
    "vit": {"vit_b16": "vit_ti16"},
    "vq_vae": {"sample(16,": "sample(1,"},
}
THEIRS = {  # published weights: random ones stand in
    'weights="IMAGENET1K_V1"': "weights=None",
    'diffusers.UNet2DModel.from_pretrained("google/ddpm-cifar10-32")': "unet()",
    'transformers.MarianMTModel.from_pretrained("Helsinki-NLP/opus-mt-de-en")': "marian()",
}
MASKED = "tokens, segments, attend = ids(2, 7), ids(2, 7) % 2, ids(2, 7) > 0"
SETUP = {  # before the first block, the second, ...
    "adapters": [MASKED],
    "alexnet": ["images = torch.rand(2, 3, 224, 224)"],
    "bert": [f"{MASKED}; folder('bert-base-uncased', 'bert')"],
    "ddpm": ["images, a, b = torch.rand(3, 2, 1, 8, 8); mask = images > 0.5"],
    "gan": ["images = torch.rand(16, 1, 28, 28)"],
    "gpt_2": ["tokens, next_tokens, pad, B = ids(2, 7), ids(2, 1), 0, 2", "folder('gpt2', 'gpt2'); theirs = folder('gpt2-medium', 'gpt2')"],
    "lora": ["tokens = ids(3, 7)", "model, base = with_adapter()"],
    "lstm": ["tokens, more_tokens = ids(2, 7), ids(2, 7)"],
    "mixture_of_experts": ["x, loss = torch.randn(2, 5, 512), 0.0"],
    "resnet": ["images = torch.rand(2, 3, 64, 64)"],
    "roberta": [MASKED],
    "switch_transformer": ["tokens, loss = ids(2, 7), 0.0"],
    "transformer": ["source, target, tokens = ids(2, 7), ids(2, 6), ids(2)"],
    "vae": ["images = torch.rand(2, 1, 28, 28)"],
    "vit": ["images = torch.rand(2, 3, 224, 224)", "official('ViT-B_16.npz')"],
    "vq_vae": ["images = torch.rand(2, 3, 32, 32)"],
}


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 90, shape)


def folder(name: str, kind: str):
    """A small model of transformers with random weights, as its `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    small = {"bert": {"vocab_size": 90, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
             "gpt2": {"vocab_size": 90, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}}  # fmt: skip
    make = {"bert": transformers.BertForPreTraining, "gpt2": transformers.GPT2LMHeadModel}[kind]
    model = make(transformers.AutoConfig.for_model(kind, **small[kind]))
    model.save_pretrained(name)
    return model


def marian():
    """One of transformers' in the sizes of transformer_tiny."""
    transformers = pytest.importorskip("transformers")
    sides = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 256))}
    return transformers.MarianMTModel(transformers.MarianConfig(vocab_size=90, d_model=64, pad_token_id=89, **sides))


def unet():
    """One of diffusers' in the sizes of unet_small."""
    return theirs_of({"image_size": 8, "channels": 1, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4})


def official(file: str) -> None:
    """A file of the authors' ViT in the sizes of vit_ti16."""
    with torch.device("cpu"):
        arrays = official_arrays((14, 14), 12, 192, 3, 1000)
        numpy.savez(file, **{**arrays, "embedding/kernel": numpy.zeros((16, 16, 3, 192), numpy.float32)})


def with_adapter():
    """A classifier with an adapter, and the same without."""
    base = roberta_base(**TINY, head="classification", outputs=2)
    model = deepcopy(base)
    apply(model, 8, 8, ["qkv:qv"], train=["head"])
    return model, base


@pytest.mark.parametrize("key", CARDS)
def test_python_of_a_card(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, scope = CARDS[key].read_text(), dict(globals())
    for name in ("torchvision", "transformers", "diffusers"):
        if f"{name}." in text:
            scope[name] = pytest.importorskip(name)
    for module in ("", ".convert"):  # the second block of a card goes on where the first stopped, and the text has named its converter
        if importlib.util.find_spec(f"zoo.papers.{key}{module}"):
            scope |= vars(importlib.import_module(f"zoo.papers.{key}{module}"))
    found = [content for language, content in blocks(text) if language == "python"]
    assert found
    with torch.device("meta" if key in META else "cpu"):
        for i, content in enumerate(found):
            for old, new in {**SMALLER.get(key, {}), **THEIRS}.items():
                content = content.replace(old, new)
            exec("\n".join([*SETUP[key][i : i + 1], content]), scope)


def test_python_of_the_other_pages():
    """README's, importing's and own-models' run in tests of their own; what is left are the contract and the worked example."""
    elsewhere = {"README.md": "test_importing.py", "docs/importing.md": "test_importing.py", "docs/own-models.md": "test_own_models.py"}
    assert all(Path(page).name in (ROOT / "tests" / test).read_text() for page, test in elsewhere.items())
    left = {named(page): content for page in pages() for language, content in blocks(page.read_text())
            if language == "python" and page.parent.parent.name != "papers" and named(page) not in elsewhere and "# zoo/" not in content}  # fmt: skip
    assert list(left) == ["docs/adding-a-paper.md"]
    scope = {"nn": torch.nn}
    exec(left["docs/adding-a-paper.md"], scope)
    assert scope["Objective"]().turns == ("model",)


# ---- links ----

MARKDOWN = sorted({*ROOT.glob("*.md"), *(path for part in ("docs", "zoo", "tests", "benchmarks", "docker") for path in (ROOT / part).rglob("*.md"))})


@pytest.mark.parametrize("page", MARKDOWN, ids=named)
def test_links_lead_somewhere(page):
    """Relative ones: to a file of the repository, to a heading of it, to a line that it has."""
    for link in links(page.read_text()) + images(page.read_text()):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists() and file.is_relative_to(ROOT), link
        if line := re.fullmatch(r"L(\d+)", anchor):
            assert int(line[1]) <= len(file.read_text().splitlines()), link
        elif anchor:
            assert anchor in anchors(file.read_text()), link


HEAD, CARD = "# A paper\n\n| paper | here |\n|---|---|\n", ROOT / "zoo" / "papers" / "vit"


@pytest.mark.parametrize(
    "cell, line",
    [
        ("`ViT.tokens`", "    def tokens(self"),
        ("[`ViT.tokens`](model.py#L1)", "    def tokens(self"),  # code has moved
        ("`ViT.norm`", "self.norm = "),
        ("`EncoderBlock`, `forward`", "    def forward(self"),
        ("`pictures.rollout`", "def rollout("),
        ("`interpolate_positions(old, new)`", "def interpolate_positions("),
        ("`pretraining_head`", "pretraining_head: "),
        ("`zoo.objectives.Classification`", "class Classification("),
        ("`Units` in `zoo/data/wordpiece.py`", None),
    ],
)
def test_code_that_a_card_names_is_linked_to_its_line(cell, line):
    if line is None:
        with pytest.raises(ValueError, match="vit/README.md: the table names `Units`"):
            code_links.linked(f"{HEAD}| eq. 1 | {cell} |\n\nText.", CARD)
        return
    text = code_links.linked(f"{HEAD}| eq. 1 | {cell} |\n\nText.", CARD)
    assert text == code_links.linked(text, CARD)
    target, number = re.findall(r"\(([^)#]+)#L(\d+)\)", text)[-1]
    assert line in (CARD / target).read_text().splitlines()[int(number) - 1]


def test_what_names_nothing_by_itself_is_left_alone():
    cell = '`pool="class"`, `None`, `data.batch_size`, `evaluate.py run=... average=5`, `schedule: {name: cosine}`, `torch.nn.LSTM`'
    assert f"| {cell} |" in code_links.linked(f"{HEAD}| eq. 1 | {cell} |\n\nText.", CARD)
    with pytest.raises(ValueError, match="no table"):
        code_links.linked("# A paper", CARD)


@pytest.mark.parametrize("key", CARDS)
def test_links_of_a_card_are_those_that_docs_links_makes(key):
    """Else: python docs/links.py."""
    text = CARDS[key].read_text()
    assert code_links.linked(text, CARDS[key].parent) == text


# ---- the worked example ----

EXAMPLE = ROOT / "docs" / "adding-a-paper.md"


def written(place: Path) -> int:
    """Writes the blocks that name their file into a copy of the repository; returns how many lines they have."""
    lines = 0
    for _, content in blocks(EXAMPLE.read_text()):
        if file := re.search(r"^(?:#|<!--) (\S+/\S+\.\w+)", content, re.M):
            path, lines = place / file[1], lines + content.count("\n")
            if path.exists():  # the catalogue
                path.write_text(path.read_text().replace("for paper in [\n", "for paper in [\n" + content.split("\n", 1)[1]))
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
    return lines


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    place = tmp_path_factory.mktemp("copy")
    for name in ("zoo", "configs", "docs", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in ("README.md", "pyproject.toml", "train.py", "evaluate.py"):
        shutil.copy(ROOT / name, place)
    (place / "results").symlink_to(ROOT / "results")
    assert 100 < written(place) < 150
    return place


def python(place: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(place)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_worked_example_keeps_what_every_paper_must_keep(copy):
    python(copy, "docs/links.py")
    assert "[`HighwayLayer.forward`](model.py#L" in (copy / "zoo" / "papers" / "highway" / "README.md").read_text()
    said = python(copy, "-m", "pytest", "-p", "no:cacheprovider", "tests/papers/test_highway.py", "tests/test_papers.py", "-k", "highway")
    assert int(re.search(r"(\d+) passed", said)[1]) >= 7


def test_the_worked_example_trains(copy):
    said = python(copy, "train.py", "-m", "paper=highway,highway/digits_plain", "trainer.steps=3", "trainer.eval_every=3")
    assert said.count("step 3  test: accuracy") == 2


@pytest.mark.slow
def test_the_worked_example_is_right_about_depth(copy):
    python(copy, "train.py", "-m", "paper=highway,highway/digits_plain", "name=depth", "trainer.steps=300")
    files = [copy / "runs" / "depth" / f"paper-{name}" / "metrics.jsonl" for name in ("highway", "highway-digits_plain")]
    highway, plain = (json.loads(file.read_text().splitlines()[-1])["test/accuracy"] for file in files)
    assert highway > 90 and plain < 20


# ---- the site ----


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from docs.site import Site

    place = tmp_path_factory.mktemp("site") / "site-src"
    Site(place).build()
    return place


def test_every_page_of_the_site_has_a_place_in_its_navigation(site):
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(nav) == sorted(path.relative_to(site).as_posix() for path in site.rglob("*.md") if path.relative_to(site).parts[0] != "code")
    assert {f"papers/{key}.md" for key in CARDS} <= set(nav)


def test_links_of_the_site_lead_to_its_pages_and_to_lines_of_code(site):
    lines = 0
    for page in site.rglob("*.md"):
        if page.relative_to(site).parts[0] != "code":
            for target, _, anchor in (link.partition("#") for link in links(page.read_text()) if not re.match(r"[a-z]+:|#", link)):
                assert (page.parent / target).is_file(), (page, target)
                if re.fullmatch(r"L\d+", anchor):
                    assert f'id="{anchor}"' in (page.parent / target).read_text(), (page, target, anchor)
                    lines += 1
            address = page.parent if page.name == "index.md" else page.with_suffix("")
            assert all(Path(os.path.normpath(address / source)).is_file() for source in images(page.read_text()))
    assert lines > 300
    line = (site / "code" / "zoo" / "papers" / "vit" / "model.py.md").read_text().split('<span id="L41">')[1].split("\n")[0]
    assert html.unescape(re.sub(r"<[^>]+>", "", line)) == (CARD / "model.py").read_text().splitlines()[40]


def test_the_reference_says_what_signature_and_docstring_say(site):
    text = (site / "api" / "zoo.papers.vit.md").read_text()
    assert "    pool: Literal['class', 'mean'] = 'class'," in text and "- `ValueError`: if patches don't divide the image" in text
    assert "z\\_0 = \\[x\\_class; x\\_p^1 E; ...; x\\_p^N E\\] + E\\_pos" in text
    for key in CARDS:
        text = (site / "api" / f"zoo.papers.{key}.md").read_text()
        assert all(f"## `{name}`" in text for name in PAPERS[key].presets)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(site):
    shutil.copy(ROOT / "mkdocs.yml", site.parent)
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=site.parent, capture_output=True, text=True)
    assert done.returncode == 0 and (site.parent / "site" / "papers" / "vit" / "index.html").exists(), done.stderr
