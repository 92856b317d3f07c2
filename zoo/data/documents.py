"""Documents to pre-train on: plain text files, the Python manual, the NLTK's corpora. A document is a list of sentences."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from zoo.data.base import home, one_line
from zoo.data.download import DAMAGED, Published, provide
from zoo.errors import ConfigError, ZooError

Document = list[str]


class Reading:
    """The documents of a source, read anew each time; iterated over, the sentences of the training documents.

    Args:
        shares: of train, valid and test.
    """

    def __init__(self, source: str, root: str, boundary: str, shares: dict[str, float]):
        self.source, self.shares = source, shares
        self.read: Callable[[], Iterator[list[str]]] = {
            "manual": manual_documents,
            "nltk": lambda: nltk_documents(home(root) / "nltk"),
        }.get(source, lambda: file_documents(source, boundary))
        self.digest: str | None = None

    def parts(self) -> Iterator[tuple[str, Document]]:
        """(train, valid or test, sentences) of each document; then `digest` is that of the text."""
        digest = hashlib.sha256()
        for number, lines in enumerate(self.read()):
            digest.update("\n".join([*lines, ""]).encode("utf-8", "surrogatepass"))
            if sentences := [sentence for line in lines for sentence in sentences_of(line)]:
                yield part_of(number, self.shares), sentences
        self.digest = digest.hexdigest()

    def __iter__(self) -> Iterator[str]:
        return (sentence for part, sentences in self.parts() if part == "train" for sentence in sentences)


def shares(splits: Sequence[float]) -> dict[str, float]:
    """{train, valid, test}, those of 0 left out."""
    if len(splits) != 3 or min(splits) < 0 or splits[0] == 0 or abs(sum(splits) - 1) > 1e-6:
        raise ConfigError(f"data.splits must be the shares of train, valid and test, such as [0.9, 0.05, 0.05], not {list(splits)}")
    return {name: share for name, share in zip(("train", "valid", "test"), splits) if share}


def part_of(number: int, shares: dict[str, float]) -> str:
    """Where document `number` goes: where number x golden ratio modulo 1 falls, which spreads each part evenly over the source."""
    place, edges = number * 0.6180339887498949 % 1, accumulate(shares.values())
    return next((part for part, edge in zip(shares, edges) if place < edge), "train")


END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def sentences_of(line: str) -> list[str]:
    return [sentence for sentence in END.split(line.strip()) if sentence]


def manual_documents() -> Iterator[list[str]]:
    """The topics of the Python manual, by name."""
    from pydoc_data.topics import topics

    return (topics[name].splitlines() for name in sorted(topics))


def file_documents(source: str, boundary: str) -> Iterator[list[str]]:
    """The lines of each document of a file, or of all *.txt in a folder, by name."""
    path = Path(source).expanduser()
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ZooError(f"data.source: there is no .txt file in {path}")
    for file in files:
        document: list[str] = []
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if boundary == "blank_lines" and not line.strip():
                        if document:
                            yield document
                        document = []
                    else:
                        document.append(line)
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"data.source: {file} cannot be read as a text in UTF-8: {one_line(error)}") from error
        if document:
            yield document


NLTK_URL = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/"
NLTK = [  # a document each: 500 samples of Brown, 59 inaugural addresses, 2,000 reviews of films, 65 addresses on the state of the union
    Published(f"{name}.zip", size, sha256, (f"{NLTK_URL}{name}.zip",))
    for name, size, sha256 in (
        ("brown", 3_314_357, "9b275f9b3b95d7bd66ccfb7cd259f445a13bbe5d1f4107aba09fd3e8364bafa6"),
        ("inaugural", 346_476, "7c5fb5793e31fbeae12bf1aa0ffda5336468f07cedb50654c6d31ca384e2046b"),
        ("movie_reviews", 4_004_848, "a41211ae685019137410268134db6a1a14428c89b671eb83056151a878539008"),
        ("state_union", 808_757, "366c1dc82b2abf896f42b2ec50ba802a0141a29f75d29ca48a7a243ce5bfbe8d"),
    )
]
NOT_TEXT = ("README", "CONTENTS", "cats.txt")


def nltk_documents(folder: Path) -> Iterator[list[str]]:
    """Texts of the NLTK's corpora, from its archives in `folder`; they are downloaded where they aren't there."""
    for file in NLTK:
        path = provide(file, folder, "the NLTK's corpora")
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if not name.endswith(("/", *NOT_TEXT)):
                        lines = archive.read(name).decode("utf-8", "replace").splitlines()
                        yield [untagged(line) for line in lines] if file.name == "brown.zip" else lines
        except DAMAGED as error:
            raise ZooError(f"{path} cannot be read: {one_line(error)}") from error


def untagged(line: str) -> str:
    """`The/at jury/nn said/vbd ``/`` no/at ''/''` -> `The jury said " no "`."""
    words = [word.rpartition("/")[0] for word in line.split()]
    return " ".join('"' if word in ("``", "''") else word for word in words)
