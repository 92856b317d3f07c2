"""Writes the generated tables: papers and results in README.md, results in the cards and in docs/results.md.

python docs/tables.py          after the catalogue, a configuration or results/ has changed
"""

import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from zoo.catalog import PAPERS  # noqa: E402
from zoo.config import compose, paper_configs  # noqa: E402


def papers_table() -> str:
    """One row a paper that exists."""
    rows = ["| paper | year | area | try it | presets |", "|---|---|---|---|---|"]
    for paper in PAPERS.values():
        link = f"[{paper.title}](zoo/papers/{paper.key}/README.md)"
        presets = ", ".join(f"`{name}`" for name in list(paper.presets)[:4]) + (", ..." if len(paper.presets) > 4 else "")
        rows.append(f"| {link} | {paper.year} | {paper.area} | `paper={paper.key}` | {presets} |")
    return "\n".join(rows)


def recorded() -> dict[str, list[dict]]:
    """Configuration name -> the recorded evaluations in results/, one a seed and split."""
    found: dict[str, list[dict]] = {}
    for file in sorted((ROOT / "results").glob("**/*.json")):
        record = json.loads(file.read_text())
        if "metrics" in record:
            found.setdefault(record["name"], []).append(record)
    return found


def results_table(names: list[str]) -> str:
    """The paper's number and ours, a row a configuration, metric and split; rows that nobody ran say so."""
    rows = ["| configuration | metric | paper | here | seeds | steps | hardware |", "|---|---|---|---|---|---|---|"]
    found = recorded()
    for name in names:
        cfg = compose([f"paper={name}"])
        runs, expect = found.get(cfg["name"], []), cfg["expect"] or {}
        paper = f"{expect['paper']:g} ({expect['source']})" if expect else ""
        if not runs:
            rows.append(f"| `{name}` | {expect.get('metric', '')} | {paper} | not yet run | | | |")
        for split in sorted({run["split"] for run in runs}, reverse=True):
            part = [run for run in runs if run["split"] == split]
            metrics = [expect["metric"]] if "metric" in expect else sorted({m for run in part for m in run["metrics"] if _shown(m)})
            rows += [_row(name, metric if split == "test" else f"{metric} ({split})", paper, metric, part) for metric in metrics]
    return "\n".join(rows)


def _row(name: str, title: str, paper: str, metric: str, runs: list[dict]) -> str:
    values = [run["metrics"][metric] for run in runs if metric in run["metrics"]]
    shown = f"{statistics.median(values):.4g}" + (f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else "")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    hardware = (runs[0]["trained_on"] or runs[0]["environment"])["hardware"]  # published weights were trained elsewhere
    return f"| `{name}` | {title} | {paper} | {shown} | {seeds} | {runs[0]['step']} | {hardware} |"


def claims_table() -> str:
    """What the claim tests measured."""
    rows = ["| claim test | measured | hardware |", "|---|---|---|"]
    for file in sorted((ROOT / "results" / "claims").glob("*.json")):
        record = json.loads(file.read_text())
        figures = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in record["figures"].items())
        rows.append(f"| `{record['command'].split('::')[-1]}` | {figures} | {record['hardware']} |")
    return "\n".join(rows)


def peers_table() -> str:
    """Our models beside their peers, where that has been measured."""
    rows = ["| model, work, precision | ms | ratio to its peers, quartiles | noise floor | verdict | on |", "|---|---|---|---|---|---|"]
    quartiles = lambda q: f"{q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]"
    for file in sorted((ROOT / "results" / "benchmarks").glob("peers*.json")):
        record = json.loads(file.read_text())
        where = f"{record['hardware']}, torch {record['torch']}, {record['repeats']} repeats"
        for name, result in record["results"].items():
            ratios = ", ".join(f"{peer} {quartiles(q)}" for peer, q in result["ratio_to"].items())
            milliseconds, noise = result["milliseconds"]["ours"][1], quartiles(result["noise_floor"])
            rows.append(f"| {name} | {milliseconds:.0f} | {ratios} | {noise} | {result['verdict']} | {where} |")
    return "\n".join(rows)


# What is told of runs that have no number of the paper's beside them.
SHOWN = ("accuracy", "bits_per_char", "perplexity", "mse", "solved", "classes", "frechet", "frechet_gaussian", "nearest",
         "nearest_test", "log_likelihood", "marginal_log_likelihood", "parzen_log_likelihood", "bits_per_dim", "unexplained", "modes",
         "near", "bleu", "exact", "word_perplexity", "error_free", "symbol_accuracy", "gap_accuracy", "gap_left_accuracy",
         "masked_accuracy", "next_accuracy", "f1", "matthews", "knn_accuracy", "linear_probe_accuracy")  # fmt: skip


def _shown(metric: str) -> bool:
    return metric in SHOWN or metric.startswith("fid")


def replaced(text: str, name: str, table: str) -> str:
    """The text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main() -> None:
    names = list(paper_configs())
    run = [name for name in names if (name if "/" in name else f"{name}/quick") in recorded()]
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(), "papers", papers_table())
    readme.write_text(replaced(text, "results", results_table(run)))
    for key in PAPERS:
        card = ROOT / "zoo" / "papers" / key / "README.md"
        card.write_text(replaced(card.read_text(), "results", results_table([n for n in names if n.split("/")[0] == key])))
    heading = "# Results\n\nMade from `results/` by `python docs/tables.py`; each file there holds command, configuration, commit, hardware."
    claims = "## Claims\n\nMade from `results/claims/`, which `ZOO_RECORD=1 pytest -m claim` writes."
    peers = """## Beside peers

Made from `results/benchmarks/peers*.json`, which `python -m benchmarks peers --record ...` writes; a ratio below 1 is faster. Not slower: its upper
quartile is 1 at most; not measured: the noise floor, a second instance of the peer beside the first, leaves 0.95 to 1.05."""
    parts = [heading, results_table(names), claims, claims_table(), peers, peers_table()]
    (ROOT / "docs" / "results.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
