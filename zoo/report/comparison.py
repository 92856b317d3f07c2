"""Several runs beside one another: a table of what came out, what was different, and each curve once."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from zoo.metrics import importance
from zoo.report.chart import Line, chart, number, swatch
from zoo.report.page import Html, breakable, element, page, section, table
from zoo.report.run import Run, flatten, split_of
from zoo.report.single import MACHINE, TITLES, UNDRAWN, duration

INCIDENTAL = (("name",), ("run_dir",), ("resume",), ("logger",), ("data", "root"))  # where a run lies, which differs between all
FEW = 6  # runs that are named below every chart; more only in the table
Table = tuple[list[str], list[list[str]]]


def comparison(runs: Sequence[Run]) -> str:
    """The whole document."""
    headings, rows = results(runs)
    named = [element("span", swatch(style), element("span", breakable(row[0])), class_="named") for style, row in enumerate(rows)]
    return page(
        f"{len(runs)} runs",
        element("h1", f"{len(runs)} runs beside one another"),
        *(element("p", f"{label}: {note}", class_="warn") for label, run in zip(labels(runs), runs) for note in run.notes),
        section("Results", table(map(breakable, headings), ([name, *row[1:]] for name, row in zip(named, rows))), _papers_numbers(runs)),
        section("What differs", _differences(runs, named)),
        section("Curves", element("div", *_charts(runs), class_="charts")),
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """The run directories without what all of them begin with."""
    folders = [str(run.folder.absolute()) for run in runs]
    above = os.path.commonpath(folders)
    return [os.path.relpath(folder, above if folder != above else os.path.dirname(above)) for folder in folders]


def results(runs: Sequence[Run], most: int | None = None) -> Table:
    """Headings, and a row a run: the metrics of its last evaluation, those that say most first and no more than `most`, and what it took."""
    finals = [run.final.metrics if run.final else {} for run in runs]
    found = dict.fromkeys(metric for metrics in finals for metric in metrics)
    metrics = sorted(found, key=importance)[:most]
    rows = [
        [
            label,
            *(number(values[metric]) if metric in values else "" for metric in metrics),
            duration(run.seconds),
            number(run.throughput) if run.throughput else "",
            f"{run.step:,.0f}" + (f" of {run.steps:,.0f}" if run.steps and not run.finished else ""),
            run.final.split if run.final else "",
        ]
        for label, run, values in zip(labels(runs), runs, finals)
    ]
    return ["run", *metrics, "training time", "items a second", "steps", "split"], rows


def plain(runs: Sequence[Run]) -> str:
    """The same for a terminal, which has room for fewer metrics."""
    headings, rows = results(runs, most=4)
    rows = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows)


def _papers_numbers(runs: Sequence[Run]) -> Html:
    stated = {run.name: run.expect for run in runs if run.expect}
    said = (f"{name}: the paper has {x['metric']} {number(x['paper'])} ({x.get('source', 'no source')})." for name, x in stated.items())
    return element("div", *(element("p", text, class_="soft") for text in said))


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Key of the configuration -> its value in each run, where these are not all the same."""
    each = [{path: value for path, value in flatten(run.config) if not any(path[: len(key)] == key for key in INCIDENTAL)} for run in runs]
    paths = dict.fromkeys(path for values in each for path in values)
    found = {path: [values.get(path, "") for values in each] for path in paths}
    return {".".join(path): values for path, values in found.items() if any(value != values[0] for value in values)}


def _differences(runs: Sequence[Run], named: Sequence[Html]) -> Html:
    """A table, the longer side downwards."""
    found = differing(runs)
    if not found:
        return element("p", "Nothing in their configurations.")
    rows = [["", *named], *([breakable(key), *map(breakable, values)] for key, values in found.items())]
    headings, *rows = zip(*rows) if len(runs) > len(found) else rows
    return table(headings, rows, numbers=False)


def _charts(runs: Sequence[Run]) -> Iterable[Html]:
    """One a key of metrics.jsonl, the loss and held-out metrics first, with a line for each run; the loss that is trained by time, too."""
    keys = dict.fromkeys(key for run in runs for key in run.series if key.split("/")[-1] not in UNDRAWN)
    names, legend = labels(runs), len(runs) <= FEW
    for key in sorted(keys, key=_rank):
        group, _, metric = key.rpartition("/")
        lines = [Line(names[style], *run.series[key], style) for style, run in enumerate(runs) if key in run.series]
        lines = [line for line in lines if len(line.xs) > 1]  # of one value the table tells
        title = TITLES.get(metric, metric.replace("_", " ")) + (f" ({group or 'training'})" if metric not in MACHINE or group else "")
        if lines:
            yield chart(title, lines, bent=metric != "lr", legend=legend)
        timed = [_by_time(line, runs[line.style]) for line in lines if key == "loss"]
        if any(line.xs for line in timed):
            yield chart(title, [line for line in timed if line.xs], x="seconds", legend=legend)


def _by_time(line: Line, run: Run) -> Line:
    """Against seconds of training, which are logged with every loss."""
    seconds = dict(zip(*run.series.get("seconds", ((), ()))))
    timed = [(seconds[step], value) for step, value in zip(line.xs, line.ys) if step in seconds]
    return Line(line.label, [x for x, _ in timed], [y for _, y in timed], line.style)


def _rank(key: str) -> tuple[bool, ...]:
    metric = key.split("/")[-1]
    return metric in MACHINE, metric != "loss", split_of(key) is None
