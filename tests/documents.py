"""What the Markdown files of the repository hold: fenced blocks, commands, links, headings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "train.py", "evaluate.py", "torchrun", "pytest", "pip", "sbatch", "eval", "complete", "mkdir", "cp", "mkdocs", "docker", "hf")
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1[ ]*$", re.S | re.M)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def pages() -> list[Path]:
    """README, the cards and docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "zoo" / "papers").glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks, in order."""
    return [(language, content) for _, language, content in FENCE.findall(text)]


def commands(text: str) -> Iterator[str]:
    """The command lines of shell blocks and of `code` in the text, in order. A name alone, `evaluate.py`, is no command."""
    position = 0
    for fence in [*FENCE.finditer(text), None]:
        for code in SPAN.findall(text[position : fence.start() if fence else len(text)]):
            words = " ".join(code.split())
            if re.match(rf"(\w+=\S* )*({'|'.join(map(re.escape, PROGRAMS))}) ", words):
                yield words
        if fence is None:
            return
        position = fence.end()
        content = fence[3].replace("\\\n", " ")
        if fence[2] in ("bash", ""):
            yield from (line for line in content.splitlines() if line.strip() and not line.startswith("#"))
        elif fence[2] == "text":
            yield from (line.removeprefix("$ ") for line in content.splitlines() if line.startswith("$ "))


def words_of(command: str) -> list[list[str]]:
    """The words of a command line, without its comment; of each, where `&&` joins several. An environment is left out."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(command, comments=True):
        if word == "&&":
            parts.append([])
        elif parts[-1] or not re.match(r"[A-Z_]+=", word):
            parts[-1].append(word)
    return parts


def links(text: str) -> list[str]:
    """Targets of links and pictures in Markdown, code aside."""
    return re.findall(r"\]\(([^)\s]+)\)", SPAN.sub("", FENCE.sub("", text)))


def images(text: str) -> list[str]:
    """Sources of pictures in HTML."""
    return re.findall(r'<img [^>]*src="([^"]+)"', SPAN.sub("", FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """What headings are called in a link, as code browsers do it."""
    headings = re.findall(r"^#+ (.*?)\s*$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
