"""All papers on one page: what each claims, what was measured here, and a picture of it."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from zoo import results
from zoo.catalog import PAPERS, Paper
from zoo.report.page import Html, breakable, element, page, picture
from zoo.report.run import cited

CARDS = Path(__file__).parents[1] / "papers"


def gallery(folder: Path, target: Path) -> str:
    """The whole document.

    Args:
        folder: results/, with the figures of claims in claims/ and pictures of runs in pictures/.
        target: where the page will lie, for the addresses of the cards.
    """
    papers = sorted(PAPERS.values(), key=lambda paper: (paper.year, paper.title))
    found, figures = results.records(folder), _figures(folder)
    told = f"{len(papers)} papers, {papers[0].year} to {papers[-1].year}; {sum(map(len, found.values()))} recorded evaluations."
    cards = (_card(paper, results.headline(results.names(paper.key), found), figures.get(paper.key, []), target) for paper in papers)
    return page("Gallery of papers", element("h1", "Gallery of papers"), element("p", told), element("div", *cards, class_="cards"))


def _figures(folder: Path) -> dict[str, list[Path]]:
    """Paper -> its pictures: first those of runs, pictures/<paper>-<row>-<name>.png, then those that the claim tests drew."""
    found: dict[str, list[Path]] = {}
    for file in sorted((folder / "pictures").glob("*.png")):
        found.setdefault(file.stem.split("-")[0], []).append(file)
    for file in sorted((folder / "claims").glob("*.json")):
        test = re.search(r"tests/papers/test_(\w+)\.py", json.loads(file.read_text())["command"])
        keys = [key for key in PAPERS if test and f"{test[1]}_".startswith(f"{key}_")]  # test_lstm_tasks.py is the LSTM's, too
        if keys and (drawn := file.with_suffix(".png")).is_file():
            found.setdefault(max(keys, key=len), []).append(drawn)
    return found


def _card(paper: Paper, row: results.Row, figures: list[Path], target: Path) -> Html:
    card = CARDS / paper.key / "README.md"
    address = Path(os.path.relpath(card, target.absolute().parent)).as_posix()
    shown = [_figure(file) for file in figures]
    more = element("details", element("summary", f"{len(shown) - 1} more"), *shown[1:]) if shown[1:] else ""
    return element(
        "article",
        shown[0] if shown else element("p", element("b", row.here), " ", row.metric, class_="figure"),
        element("h2", element("a", paper.title, href=address)),
        element("p", f"{cited(paper)}, {paper.area}", class_="soft"),
        element("p", _claim(card) or f"{paper.summary}."),
        element("p", *_headline(row), class_="soft"),
        more,
    )


def _headline(row: results.Row) -> Iterable[object]:
    yield element("code", breakable(row.name))
    yield f": {f'{row.metric} ' if row.metric else ''}{row.here}"
    yield f"; the paper: {row.paper}" if row.paper else ""


def _claim(card: Path) -> str:
    """The first sentence of the card's claim, without its emphasis."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"\*\*Claim\.\*\* (.+?[.!?])(?=\s+[A-Z]|\s*\n\n)", text, re.DOTALL)
    return re.sub(r"[*`]|\s+", lambda mark: " " if mark[0].isspace() else "", found[1]) if found else ""


def _figure(file: Path) -> Html:
    """Figures of claims have a title of their own; pictures of runs are told which."""
    if file.parent.name == "claims":
        return element("figure", picture(file, file.stem.removeprefix("test_").replace("_", " ")))
    *row, name = file.stem.split("-")
    caption = f"{'/'.join(row)}: {name.replace('_', ' ')}"
    return element("figure", picture(file, caption), element("figcaption", caption))
