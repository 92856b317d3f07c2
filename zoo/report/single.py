"""The page of one run: metrics beside the paper's, curves, pictures, and how to get the same again."""

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from zoo.config import config_dir, paper_configs
from zoo.metrics import importance, meaning
from zoo.report.chart import Line, chart, number
from zoo.report.page import Html, breakable, element, page, pairs, picture, section, table
from zoo.report.run import SPLITS, Points, Run, cited, split_of

MACHINE = ("lr", "grad_norm", "items_per_second", "tflops", "mfu", "skipped")  # how it went, rather than what was learnt
UNDRAWN = ("epoch", "seconds", "memory_mib")
TITLES = {"lr": "learning rate", "grad_norm": "gradient norm", "items_per_second": "items a second", "mfu": "share of the peak (MFU)"}
PICTURES, LETTERS = 30, 6000  # shown at most
ONCE = "Everything was recorded once, which makes no curve: a smaller trainer.log_every keeps more."


def single(run: Run) -> str:
    """The whole document."""
    paper = run.paper
    of = f"{paper.title} ({cited(paper)}, {paper.source})" if paper else ""
    learning, machine = _panels(run.series)
    return page(
        f"{run.name}: run",
        element("h1", breakable(run.name)),
        element("p", of),
        element("p", _about(run.name.removesuffix("/quick")), class_="soft"),
        element("span", run.state, class_=f"state {'good' if run.finished else 'warn'}"),
        *(element("p", note, class_="warn") for note in run.notes),
        pairs(_tiles(run), "tiles"),
        _metrics(run),
        _charts("Curves", learning) if learning or not run.series else section("Curves", element("p", ONCE, class_="soft")),
        _charts("Optimisation and speed", machine),
        _pictures(run.folder / "pictures"),
        _commands(run),
        _surroundings(run),
    )


def _about(name: str) -> str:
    """What its file in configs/paper/ says of it, before the commands."""
    if name not in paper_configs():
        return ""
    lines = (config_dir() / "paper" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1:]  # the first is Hydra's
    return " ".join(line[2:] for line in itertools.takewhile(re.compile("# (?! )").match, lines))


# ---- numbers ----


def _tiles(run: Run) -> Iterable[tuple[str, object]]:
    final, metric = run.final, run.expect.get("metric")
    if final:
        metric = metric if metric in final.metrics else min(final.metrics, key=importance)
        yield f"{metric}, {final.split} split", number(final.metrics[metric])
    elif "loss" in run.series:
        yield "training loss", number(run.series["loss"].values[-1])
    if metric == run.expect.get("metric"):
        yield "the paper", number(run.expect["paper"]) if run.expect else ""
    yield "training time", duration(run.seconds)
    yield "items a second", number(run.throughput) if run.throughput else ""
    yield "memory", f"{max(run.series['memory_mib'].values):,.0f} MiB" if "memory_mib" in run.series else ""
    yield "hardware", run.environment.get("hardware", "")
    ranks = run.environment.get("ranks", 1)
    yield "ranks", ranks if ranks != 1 else ""


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{seconds / 60:.3g} min"


def _metrics(run: Run) -> Html:
    final, expect = run.final, run.expect
    if final is None and not expect:
        return section("Metrics", element("p", "The run has not been evaluated yet."))
    metrics = dict(final.metrics) if final else {}
    rows = [[_named_metric(key), number(value), _paper(expect) if expect.get("metric") == key else ""] for key, value in metrics.items()]
    if expect and expect["metric"] not in metrics:
        rows.insert(0, [_named_metric(expect["metric"]), "not measured", _paper(expect)])
    rows.sort(key=lambda row: not row[2])
    about = f"{final.split} split after {final.step:,.0f} steps" + (f"; weights: {final.about}" if final.about else "") if final else ""
    unfinished = element("p", "The run is not finished: these are not its results.", class_="warn") if final and not run.finished else ""
    texts = run.result.get("texts") if final and final.about and isinstance(run.result.get("texts"), dict) else {}
    shown = table(["metric", "here", "paper"], rows) if expect else table(["metric", "here"], (row[:2] for row in rows))
    return section("Metrics", unfinished, element("p", about, class_="soft"), shown, _verdict(expect, metrics), pairs(texts.items(), "facts"))


def _named_metric(name: str) -> Html:
    """With what it measures and in which unit, where that is known."""
    known = meaning(name)
    told = ", ".join(filter(None, [known.about.replace("`", ""), known.unit])) if known else ""
    return element("div", breakable(name), element("div", told, class_="soft") if told else "")


def _paper(expect: Mapping[str, object]) -> str:
    return f"{number(expect['paper'])} ({expect.get('source', 'no source')})"


def _verdict(expect: Mapping[str, object], metrics: Mapping[str, float]) -> Html:
    """Whether the paper's number was met, by the tolerance that its configuration file states."""
    tolerance = expect.get("tolerance")
    if not isinstance(tolerance, (int, float)) or expect["metric"] not in metrics:
        return Html()
    distance = metrics[expect["metric"]] - expect["paper"]
    within = "within" if abs(distance) <= tolerance else "outside"
    return element("p", f"{expect['metric']} is {number(abs(distance))} {'above' if distance >= 0 else 'below'} the paper's: "
                        f"{within} the tolerance of {number(tolerance)}.")  # fmt: skip


# ---- curves ----


def _panels(series: Mapping[str, Points]) -> tuple[list[Html], list[Html]]:
    """Charts of what was learnt, the loss and what held-out items were measured by first; and of how it went."""
    groups: dict[str, dict[str, Points]] = {}
    for key, points in series.items():
        last = key.split("/")[-1]
        if last not in UNDRAWN:
            groups.setdefault(last, {})[key] = points
    held_out = lambda name: any(map(split_of, groups[name]))
    learning = sorted((name for name in groups if name not in MACHINE), key=lambda name: (name != "loss", not held_out(name)))
    charts = lambda names: [drawn for name in names for drawn in _panel(name, groups[name])]
    return charts(learning), charts([name for name in MACHINE if name in groups])


def _panel(name: str, group: Mapping[str, Points]) -> Iterable[Html]:
    """One chart of the keys that share their last word; or two, where the loss that is trained counts in another unit than the one that is told."""
    if all(len(points.steps) < 2 for points in group.values()):
        return  # one value is no curve: the table has it
    held_out = {key: points for key, points in group.items() if split_of(key)}
    trained = {key: points for key, points in group.items() if key not in held_out}
    title = TITLES.get(name, name.replace("_", " "))
    if trained and held_out and not all(_alike(trained[min(trained, key=len)], points) for points in held_out.values()):
        yield _lines(f"{title}, training", trained)
        if any(len(points.steps) > 1 for points in held_out.values()):
            yield _lines(f"{title}, held out", held_out)
    else:
        yield _lines(title, group)


def _alike(trained: Points, held_out: Points) -> bool:
    """Whether both seem to count in the same unit: in the beginning, before anything is learnt by heart, they are within a factor of five."""
    step, value = held_out.steps[0], held_out.values[0]
    beside = min(zip(trained.steps, trained.values), key=lambda point: abs(point[0] - step))[1]
    return value <= 0 or beside <= 0 or 1 / 5 < value / beside < 5


def _lines(title: str, group: Mapping[str, Points]) -> Html:
    trained = [key for key in group if not split_of(key)]
    styles = {key: len(SPLITS) + i if i else 0 for i, key in enumerate(trained)}
    styles |= {key: 1 + SPLITS[::-1].index(split_of(key)) for key in group if key not in styles}  # a split has one colour on the whole page
    alone = "sum" if len(trained) > 1 else "training" if len(group) > 1 else "last"
    lines = [Line(key.rpartition("/")[0] or alone, *points, styles[key]) for key, points in group.items()]
    return chart(title, lines, bent="lr" not in (key.split("/")[-1] for key in group))  # a schedule that ends near zero would be all end


def _charts(title: str, charts: list[Html]) -> Html:
    return section(title, element("div", *charts, class_="charts")) if charts else Html()


# ---- pictures ----


def _pictures(folder: Path) -> Html:
    """What evaluate.py, sample and the training drew: the last state of each picture, the earlier ones folded up, and texts."""
    series: dict[str, list[tuple[float, Path]]] = {}
    for file in folder.glob("*.png"):
        name, step = _named(file)
        series.setdefault(name, []).append((math.inf if step is None else step, file))
    series.pop("curves", None)  # they are on the page already
    files = [[file for _, file in sorted(series[name])] for name in sorted(series)]
    last, earlier = [each[-1] for each in files][:PICTURES], [file for each in files for file in each[:-1]]
    earlier = earlier[:: math.ceil(len(earlier) / PICTURES) or 1]
    texts = [_text(file) for file in sorted(folder.glob("*.txt"))]
    if not last and not texts:
        return Html()
    left = sum(map(len, files)) - len(last) - len(earlier)
    progress = element("details", element("summary", "While it was trained"), element("div", *map(_figure, earlier), class_="pictures"))
    return section(
        "Pictures",
        element("div", *map(_figure, last), class_="pictures"),
        progress if earlier else "",
        *texts,
        element("p", f"{left} more in {folder}." if left else "", class_="soft"),
    )


def _named(file: Path) -> tuple[str, int | None]:
    """What is drawn, and after which step where trainer.draw_every had it drawn: name-<step>.png."""
    found = re.fullmatch(r"(.+)-(\d{8,15})", file.stem)
    return (found[1], int(found[2])) if found else (file.stem, None)


def _figure(file: Path) -> Html:
    name, step = _named(file)
    caption = name.replace("_", " ") + ("" if step is None else f", step {step:,}")
    try:
        return element("figure", element("figcaption", caption), picture(file, caption))
    except Exception:  # pillow has many for files that are cut, too large or no pictures
        return element("p", f"{file.name} is damaged and left out", class_="warn")


def _text(file: Path) -> Html:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Html()
    cut = f"\n... ({len(text) - LETTERS:,} more letters in {file})" if len(text) > LETTERS else ""
    return element("figure", element("figcaption", file.stem.replace("_", " ")), element("pre", text[:LETTERS] + cut, class_="wrapped", tabindex=0))


# ---- the same again ----


def _commands(run: Run) -> Html:
    folder = shlex.quote(str(run.folder))
    program = "evaluate.py" if run.command and run.command[0].endswith("train.py") else "-m zoo evaluate"
    commit = run.environment.get("commit")
    commands = [f"# metrics and pictures\npython {program} run={folder}"]
    if run.command_line:
        commands.append(f"# {'the same run' if run.finished else 'goes on from the last checkpoint'}"
                        f"{f', at commit {commit}' if commit else ''}\n{run.command_line}")  # fmt: skip
    commands.append(f"# this page\npython -m zoo report {folder}")
    overrides = table(["set on the command line", "value"], run.overrides.items(), numbers=False) if run.overrides else ""
    return section("Commands", element("pre", "\n\n".join(commands), class_="wrapped", tabindex=0), overrides)


def _surroundings(run: Run) -> Html:
    shown = {key: value for key, value in run.environment.items() if key not in ("command", "ranks") and value is not None}
    try:
        text = (run.folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    config = element("details", element("summary", "Configuration"), element("pre", text, tabindex=0)) if text else ""
    return section("Configuration and environment", config, pairs(shown.items(), "facts"))
