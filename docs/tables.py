"""Writes the generated tables: papers and a result each in README.md, results and links to code in the cards, results in docs/results.md.

python docs/tables.py          after the catalogue, a configuration, results/ or a line of code that a card names has moved or changed
"""

import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from docs import links, performance_page  # noqa: E402
from zoo import results  # noqa: E402
from zoo.catalog import PAPERS  # noqa: E402
from zoo.metrics import METRICS  # noqa: E402


def papers_table() -> str:
    """One row a paper that exists."""
    rows = ["| paper | year | area | try it | presets |", "|---|---|---|---|---|"]
    for paper in PAPERS.values():
        link = f"[{paper.title}](zoo/papers/{paper.key}/README.md)"
        presets = ", ".join(f"`{name}`" for name in list(paper.presets)[:4]) + (", ..." if len(paper.presets) > 4 else "")
        rows.append(f"| {link} | {paper.year} | {paper.area} | `paper={paper.key}` | {presets} |")
    return "\n".join(rows)


@cache
def rows() -> dict[str, list[results.Row]]:
    """Configuration -> its rows."""
    found = results.records(ROOT / "results")
    return {name: results.rows(name, found.get(name, [])) for name in results.names()}


def of_paper(key: str) -> list[str]:
    return [name for name in rows() if name.split("/")[0] == key]


def table(headings: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    line = lambda row: f"| {' | '.join(row)} |"
    return "\n".join([line(headings), "|" + "---|" * len(list(headings)), *map(line, cells)])


def results_table(names: Iterable[str]) -> str:
    """The paper's number and ours, a row a configuration, metric and split; rows that nobody ran say so."""
    return table(results.HEADINGS, [cells(row) for name in names for row in rows()[name]])


def cells(row: results.Row) -> tuple[str, ...]:
    return f"`{row.name}`", *row.cells[1:]


def headlines() -> str:
    """One row a paper."""
    found, chosen = results.records(ROOT / "results"), {}
    for paper in PAPERS.values():
        chosen[f"[{paper.title}](zoo/papers/{paper.key}/README.md)"] = results.headline(of_paper(paper.key), found)
    return table(["title", *results.HEADINGS], [(title, *cells(row)) for title, row in chosen.items()])


def whole_table(by: str) -> str:
    """All rows, sorted by the papers' `year` or `area`, and what a run would take on one GPU."""
    estimates = json.loads((ROOT / "results" / "estimates.json").read_text())
    other = "area" if by == "year" else "year"
    papers = sorted(PAPERS.values(), key=lambda paper: (getattr(paper, by), getattr(paper, other), paper.key))
    lines = [(str(getattr(paper, by)), str(getattr(paper, other)), *cells(row), results.gpu_hours(name, estimates))
             for paper in papers for name in of_paper(paper.key) for row in rows()[name]]  # fmt: skip
    return table([by, other, *results.HEADINGS, f"{estimates['gpu']} hours (an estimate)"], lines)


def claims_table() -> str:
    """What the claim tests measured."""
    rows = ["| | claim test | measured | hardware |", "|---|---|---|---|"]
    for file in sorted((ROOT / "results" / "claims").glob("*.json")):
        record = json.loads(file.read_text())
        picture = f'<img src="../results/claims/{record["picture"]}" width="240">'
        rows.append(f"| {picture} | `{record['command'].split('::')[-1]}` | {figures(record['figures'])} | {record['hardware']} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """What the metrics of the rows mean."""
    seen = {row.metric.split(" (")[0].split("_by_")[0] for each in rows().values() for row in each if row.metric}
    cells = [(f"`{name}`", known.about, known.unit, known.better) for name, known in METRICS.items() if name in seen]
    return table(["metric", "what it measures", "unit", "better"], cells)


def figures(values: dict) -> str:
    each = lambda value: f"({figures(value)})" if isinstance(value, dict) else f"{value:.4g}"
    return ", ".join(f"{key.replace('_', ' ')} {each(value)}" for key, value in values.items())


def replaced(text: str, name: str, table: str) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


RESULTS = """# Results

Made by `python docs/tables.py` from `results/`, where each file holds command, configuration, commit and hardware; `python -m zoo results` prints
the same rows. *paper*: the paper's own number and where it stands. *here*: the mean over the seeds, and the least and the greatest of them.
"Partial": the run was not finished. "Recorded with an earlier configuration": the file that the row names has changed since.
What the metrics are stands [below](#metrics).

*{gpu} hours* are estimates, not measurements: what the training would take on one {gpu}. A step takes as long as its arithmetic, at {share:.0f} % of
the {peak:g} TFLOP/s that the GPU promises in bf16, or as the launching of its operators, at {launch} microseconds each, whichever is longer (both
are assumptions): small networks wait for the launches, which `trainer.compile=true` would make fewer.
FLOPs and operators are those of forward and backward pass on noise
of the shapes that the configuration states, as torch dispatches and counts them without computing anything (`python docs/estimates.py`); update,
evaluation, data, and the runs that a run starts from are left out. "At most": texts of a batch are padded to the longest of them, and counted as if
all had the greatest length that is allowed.
"""
CLAIMS = "## Claims\n\nMade from `results/claims/`, which `ZOO_RECORD=1 pytest -m claim` writes."


def documents() -> dict[Path, str]:
    """What each document says when its tables are made anew."""
    readme = ROOT / "README.md"
    made = {readme: replaced(replaced(readme.read_text(), "papers", papers_table()), "results", headlines())}
    for key in PAPERS:
        card = ROOT / "zoo" / "papers" / key / "README.md"
        made[card] = links.linked(replaced(card.read_text(), "results", results_table(of_paper(key))), card.parent)
    estimates = json.loads((ROOT / "results" / "estimates.json").read_text())
    heading = RESULTS.format(gpu=estimates["gpu"], share=100 * estimates["share"], peak=estimates["peak_tflops"], launch=estimates["launch_us"])
    views = ["## By year", whole_table("year"), "## By area", whole_table("area"), "## Metrics", metrics_table()]
    made[ROOT / "docs" / "results.md"] = "\n\n".join([heading.rstrip(), *views, CLAIMS, claims_table()]) + "\n"
    made[ROOT / "docs" / "performance.md"] = performance_page.page()
    return made


def main() -> None:
    for path, text in documents().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
