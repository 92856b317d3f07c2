import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and the same sums on every machine

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _reproducible():
    """Every test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


class Claim:
    """Keeps what a claim test measured in results/claims/<test>.json, and its figure beside it, where ZOO_RECORD is set."""

    def __init__(self, node: pytest.Item):
        self.node = node

    def seed(self, chosen: int) -> int:
        """`chosen`, or ZOO_SEED: thresholds are set by what other seeds give."""
        return int(os.environ.get("ZOO_SEED", chosen))

    def __call__(self, draw: Callable, **figures) -> None:
        """draw: () -> a figure of tests/figures.py; called where it is kept only, so that no test hangs on it."""
        print(json.dumps(figures))
        if not os.environ.get("ZOO_RECORD"):
            return
        from tests.figures import save
        from zoo.environment import environment

        name = self.node.name
        folder = Path(__file__).parent.parent / "results" / "claims"
        folder.mkdir(exist_ok=True)
        save(draw(), folder / f"{name}.png")
        found = {"claim": name, "figures": figures, "picture": f"{name}.png", "command": f"pytest -m claim {self.node.nodeid}"}
        (folder / f"{name}.json").write_text(json.dumps(found | environment(torch.device("cpu")), indent=1) + "\n")


@pytest.fixture
def claim(request):
    return Claim(request.node)


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Names what was skipped."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"skipped: {report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session, exitstatus):
    """Under ZOO_CI a parity test without its oracle is a failure: it must not pass unseen."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    missing = [r for r in reporter.stats.get("skipped", []) if "could not import" in str(r.longrepr)]
    if os.environ.get("ZOO_CI") and missing and exitstatus == 0:
        session.exitstatus = 1
    if os.environ.get("ZOO_RECORD"):
        record_experiments()


# ---- what the experiments of docs/reliability.md saw ----

EXPERIMENTS = Path(__file__).parents[1] / "results" / "faults"
SEEN: dict[str, dict[str, dict]] = defaultdict(dict)  # experiment -> what was tried -> {"good", "of", further facts}


def add(experiment: str, what: str, good: int, of: int, **facts) -> None:
    entry = SEEN[experiment].setdefault(what, {"good": 0, "of": 0})
    entry["good"] += good
    entry["of"] += of
    entry.update(facts)


@pytest.fixture
def tally():
    """tally("T4", "flipped bits noticed", good, of, **facts): fails the test where good falls short, but keeps the figure all the same."""

    def keep(experiment: str, what: str, good: int, of: int, **facts) -> None:
        add(experiment, what, good, of, **facts)
        assert good == of, f"{experiment}: {what}: {good} of {of}"

    return keep


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and not report.skipped:
        for marker in item.iter_markers("counts"):
            add(*marker.args, good=int(report.passed), of=1)


def record_experiments() -> None:
    """Keeps the figures in results/faults/<experiment>.json."""
    from zoo.environment import environment

    facts = environment(torch.device("cpu"))
    EXPERIMENTS.mkdir(parents=True, exist_ok=True)
    for experiment, found in SEEN.items():
        file = EXPERIMENTS / f"{experiment}.json"
        known = json.loads(file.read_text())["figures"] if file.exists() else {}
        file.write_text(json.dumps({"figures": {**known, **found}, **facts}, indent=1) + "\n")
