import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and the same sums on every machine

import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _reproducible():
    """Every test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Names what was skipped: a missing oracle must not pass unseen."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line("skipped: " + ", ".join(sorted({report.nodeid for report in skipped})))
