from .adapt import Report, adapters, apply, fold, merge, mixed, report, switch, train_only, unmerge
from .from_config import adapted, partly_trained
from .model import Adapted, LowRank

__all__ = [
    "Adapted",
    "LowRank",
    "Report",
    "adapted",
    "adapters",
    "apply",
    "fold",
    "merge",
    "mixed",
    "partly_trained",
    "report",
    "switch",
    "train_only",
    "unmerge",
]
