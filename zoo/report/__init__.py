"""report.html: what a run did, on one page that needs nothing else; a comparison of runs; and a page of all papers."""

import sys
from pathlib import Path

from zoo.errors import ZooError
from zoo.report.page import write
from zoo.report.run import read_run
from zoo.report.single import single

__all__ = ["save_report"]


def save_report(folder: Path) -> Path | None:
    """Writes report.html of a run directory. A fault is one told line: a picture of a run must never cost the run."""
    try:
        return write(folder / "report.html", single(read_run(folder)))
    except Exception as error:
        reason = str(error) if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
        print(f"warning: no report: {' '.join(reason.split())}", file=sys.stderr)
        return None
