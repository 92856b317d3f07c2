"""What `report` and `gallery` do."""

import sys
from pathlib import Path

from zoo.errors import ConfigError
from zoo.report.comparison import comparison, plain
from zoo.report.page import write
from zoo.report.run import Run, read_run
from zoo.report.single import single

REPORT_HELP = """usage: python -m zoo report <run directory> [<run directory> ...] [to=<file.html>]

  python -m zoo report runs/resnet/quick        the run's own page anew: <run directory>/report.html
  python -m zoo report runs/a runs/b            compares runs: a table here, and report.html in the working directory
  python -m zoo report runs/resnet/quick/*      the runs of a sweep (train.py -m ...)

Reads the files of a run directory only, also of runs that are going on, were stopped or failed. Evaluate a run first to see its pictures.
"""
GALLERY_HELP = """usage: python -m zoo gallery [to=<file.html>]

  python -m zoo gallery        all papers on one page, by year: gallery.html in the working directory

Reads results/ of the working directory, or else beside the package: an installed package has none, so call it from a checkout.
"""


def report_command(argv: list[str]) -> int:
    """Writes the page of a run, or one that compares several, of which it prints the table, too."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(REPORT_HELP, end="")
        return 0 if argv else 2
    words, target = _target(argv)
    runs = _runs(words)
    if len(runs) > 1:
        print(plain(runs))
        print(write(target or Path("report.html"), comparison(runs)))
    else:
        print(write(target or runs[0].folder / "report.html", single(runs[0])))
    return 0


def _target(argv: list[str]) -> tuple[list[str], Path | None]:
    """Words other than to=<file>, and that file."""
    targets = [word.removeprefix("to=") for word in argv if word.startswith("to=")]
    if len(targets) > 1 or "" in targets:
        raise ConfigError("to=<file.html> names one file")
    return [word for word in argv if not word.startswith("to=")], Path(targets[0]).expanduser() if targets else None


def _runs(words: list[str]) -> list[Run]:
    """Each once. Of several words those that are no runs are left out and told: a sweep's directory holds other files, too."""
    runs: dict[Path, Run] = {}
    others = []
    for word in words:
        folder = Path(word).expanduser()
        if not folder.exists():
            raise ConfigError(f"there is no {word}: report takes run directories, such as runs/resnet/quick, and to=<file.html>")
        try:
            runs.setdefault(folder.resolve(), read_run(folder))
        except ConfigError as error:
            if len(words) == 1:
                below = [str(file.parent) for file in sorted(folder.rglob("config.yaml"))]
                raise ConfigError(f"{error}; below it lie {', '.join(below[:6])}{', ...' if below[6:] else ''}") if below else error from None
            others.append(folder.name)
    if others:
        print(f"left out, since they are no run directories: {', '.join(others)}", file=sys.stderr)
    if not runs:
        raise ConfigError("none of these is a run directory" if words else "report takes run directories, such as runs/resnet/quick")
    return list(runs.values())


def gallery_command(argv: list[str]) -> int:
    """Writes the page of all papers."""
    from zoo.report.gallery import gallery

    if set(argv) & {"-h", "--help"}:
        print(GALLERY_HELP, end="")
        return 0
    words, target = _target(argv)
    if words:
        raise ConfigError(f"gallery takes only to=<file.html>, not {words[0]!r}")
    folder = next((path for path in (Path("results"), Path(__file__).parents[2] / "results") if path.is_dir()), None)
    if folder is None:
        raise ConfigError("there is no results/ here, and an installed package has none: call it from a checkout of the repository")
    target = target or Path("gallery.html")
    print(write(target, gallery(folder, target)))
    return 0
