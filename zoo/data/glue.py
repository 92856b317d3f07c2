"""Four tasks of GLUE (Wang et al. 2018, arXiv:1804.07461): SST-2, CoLA, MRPC and RTE, from <root>/glue as their authors publish them.

B texts of a batch, T tokens of the longest one there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from zoo.data.base import Address, Batch, Data, Plan, Shuffled, choice, home, one_line, send, whole
from zoo.data.hashing import ORDER, bits
from zoo.data.pairs import Ragged
from zoo.data.wordpiece import ByteLevel, WordPiece, vocabulary
from zoo.errors import ZooError

Item = tuple[str, str | None, int]  # a text, the second one of a pair, and the label
HELD_OUT = 408  # training pairs of MRPC that validate, as many as in GLUE, whose choice is not among the published files


@dataclass(frozen=True)
class Task:
    """How a task's files read.

    Args:
        files: split -> its files, tab-separated; all have a label.
        columns: of the text, of the second text or None, and of the label.
        labels: what stands in the file for class 0, 1.
        header: whether the first line names the columns.
        where: where its authors publish it.
    """

    files: dict[str, tuple[str, ...]]
    columns: tuple[int, int | None, int]
    labels: tuple[str, str]
    classes: tuple[str, str]
    header: bool
    where: str


COLA = "CoLA/cola_public/raw"
TASKS = {
    "sst2": Task(
        {"train": ("SST-2/train.tsv",), "valid": ("SST-2/dev.tsv",)},
        (0, None, 1), ("0", "1"), ("negative", "positive"), True, "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"),
    "cola": Task(
        {"train": (f"{COLA}/in_domain_train.tsv",), "valid": (f"{COLA}/in_domain_dev.tsv", f"{COLA}/out_of_domain_dev.tsv")},
        (3, None, 1), ("0", "1"), ("unacceptable", "acceptable"), False, "https://nyu-mll.github.io/CoLA/cola_public_1.1.zip"),
    "mrpc": Task(
        {"train": ("MRPC/msr_paraphrase_train.txt",), "test": ("MRPC/msr_paraphrase_test.txt",)},
        (3, 4, 0), ("0", "1"), ("different", "equivalent"), True, "https://dl.fbaipublicfiles.com/senteval/senteval_data/"),
    "rte": Task(
        {"train": ("RTE/train.tsv",), "valid": ("RTE/dev.tsv",)},
        (1, 2, 3), ("entailment", "not_entailment"), ("entailment", "not entailment"), True, "https://dl.fbaipublicfiles.com/glue/data/RTE.zip"),
}  # fmt: skip


class Sentences:
    """A split. A batch is {"tokens", "segments" (B, T) int64, "attend" (B, T) bool, "label", "index" (B,)}, padded to its longest text.

    Args:
        rows: the ids of each item, special tokens included.
        first: how many of them, from the start, belong to segment A.
        pad: the token that fills up.
    """

    workers = 0

    def __init__(self, rows: list[np.ndarray], first: list[int], labels: list[int], pad: int, seed: int):
        self.rows, self.first, self.labels = Ragged(rows), torch.tensor(first), torch.tensor(labels)
        self.pad, self.seed = pad, seed

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Sentences":
        self.rows.flat = self.rows.flat.to(device)
        return self

    def plan(self, batch_size: int) -> Plan:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """Texts of like length side by side."""
        return [[{"index": part}] for part in self.rows.lengths.argsort(stable=True).split(batch_size)]

    def fetch(self, address: Address) -> Batch:
        index = address["index"].cpu()
        tokens = self.rows.padded(index)
        numbers = torch.stack([self.rows.lengths[index], self.first[index], self.labels[index], index])
        lengths, first, label, index = send(numbers, tokens.device)
        column = torch.arange(tokens.shape[1], device=tokens.device)
        attend = column < lengths[:, None]
        segments = ((column >= first[:, None]) & attend).long()
        return {"tokens": tokens.masked_fill(~attend, self.pad), "segments": segments, "attend": attend, "label": label, "index": index}


def glue(
    seed: int,
    root: str,
    task: Literal["sst2", "cola", "mrpc", "rte"],
    length: int = 128,
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab: str | None = "bert-base-uncased",
    vocab_size: int | None = None,
    lowercase: bool = True,
) -> Data:
    """A task of GLUE, from <root>/glue. The labels of the official test sets of SST-2, CoLA and RTE are hidden: these have no test split here, and
    results are those of validation, which papers call dev. MRPC's test set was published with its labels; 408 training pairs validate.

    Args:
        length: most tokens of an item, special ones included. Longer ones are cut, of two texts the longer one first, and `notes` says how many.
        tokenizer, vocab, vocab_size, lowercase: see zoo.data.wordpiece.vocabulary; those of the pre-training.

    Raises:
        ConfigError: for an argument out of range.
        ZooError: if a file isn't there or doesn't read as it should.
    """
    files = TASKS[choice("data.task", task, TASKS)]
    items = {name: [item for file in paths for item in read(home(root) / "glue" / file, files)] for name, paths in files.files.items()}
    notes = [] if "test" in items else [f"{task}: the labels of the test set are hidden; results are those of the validation split (split=valid)"]
    if "valid" not in items:
        index = torch.arange(len(items["train"]))
        order = bits(0, torch.zeros_like(index), index, 1, ORDER)[:, 0].argsort().tolist()
        items["valid"], items["train"] = ([items["train"][i] for i in sorted(part)] for part in (order[:HELD_OUT], order[HELD_OUT:]))
    pieces = vocabulary(tokenizer, vocab, vocab_size, lowercase, root, [text for item in items["train"] for text in item[:2] if text])
    found = {}
    for name, part in items.items():
        rows, first, cut = encoded(part, pieces, whole("data.length", length, 8))
        found[name] = Sentences(rows, first, [item[2] for item in part], pieces.pad, seed)
        if cut:
            notes.append(f"{name}: cut {cut:,} of {len(part):,} items to {length} tokens (data.length)")
    return Data(
        train=found["train"],
        valid=found["valid"],
        test=found.get("test"),
        facts={"num_classes": 2, "vocab_size": pieces.size, "length": length},
        classes=list(files.classes),
        decode=pieces.decode,
        encode=pieces.encode,
        notes=tuple(notes),
    )


def read(path: Path, task: Task) -> list[Item]:
    """The items of a file.

    Raises:
        ZooError: names the file and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"GLUE: {path} cannot be read ({one_line(error)}): its authors publish it at {task.where}") from error
    items, width = [], 1 + max(column for column in task.columns if column is not None)
    for number, line in enumerate(lines[task.header :], 1 + task.header):
        fields = line.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        text, second, label = (fields[column] if column is not None and column < len(fields) else None for column in task.columns)
        if len(fields) < width or label not in task.labels:
            raise ZooError(f"GLUE: line {number} of {path} must have {width} columns, parted by tabs, and a label {' or '.join(task.labels)}")
        items.append((text, second, task.labels.index(label)))
    if not items:
        raise ZooError(f"GLUE: {path} has no items")
    return items


def encoded(items: Sequence[Item], pieces: WordPiece | ByteLevel, length: int) -> tuple[list[np.ndarray], list[int], int]:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP]; how many tokens the first segment has, and how many items had to be cut.

    Between two texts RoBERTa has its </s> twice.
    """
    first = pieces.rows([a for a, _, _ in items])
    second = iter(pieces.rows([b for _, b, _ in items if b is not None]))
    rows, heads, cut = [], [], 0
    cls, sep = np.array([pieces.cls], np.int32), np.array([pieces.sep], np.int32)
    for a, (_, b, _) in zip(first, items):
        tail, between = (None, 0) if b is None else (next(second), pieces.separators)
        room = length - 2 - between
        size_a, size_b = fitting(len(a), 0 if tail is None else len(tail), room)
        cut += size_a < len(a) or (tail is not None and size_b < len(tail))
        parts = [cls, a[:size_a], sep]
        heads.append(2 + size_a)
        if tail is not None:
            parts += [sep] * (between - 1) + [tail[:size_b], sep]
        rows.append(np.concatenate(parts))
    return rows, heads, cut


def fitting(a: int, b: int, room: int) -> tuple[int, int]:
    """What is left of two texts of these lengths when tokens are taken off the longer one until there is room for both."""
    left = min(a, max(room - b, (room + 1) // 2))
    return left, min(b, room - left)
