"""Gathers the site's pages in site-src/: README, docs/, the cards, the API reference, and the code that they link to.

pip install -e '.[docs]' && python docs/site.py && mkdocs build --strict
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pygments import highlight  # noqa: E402
from pygments.formatters import HtmlFormatter  # noqa: E402
from pygments.lexers import get_lexer_for_filename  # noqa: E402
from pygments.util import ClassNotFound  # noqa: E402

from docs import api  # noqa: E402

TARGET = ROOT / "site-src"
LINK = re.compile(r"""(```.*?^[ ]*```|`[^`]+`)    # code, which holds no links
                   | (\]\(|<img[ ]src=")([^)"\s]+)  # the target of a link or of a picture""", re.S | re.M | re.X)


def pages() -> dict[Path, str]:
    """The repository's Markdown files -> the site's."""
    found = {ROOT / "README.md": "index.md", ROOT / "CHANGELOG.md": "changelog.md", ROOT / "UPGRADING.md": "upgrading.md"}
    found |= {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    return found | {path: f"papers/{path.parent.name}.md" for path in sorted((ROOT / "zoo" / "papers").glob("*/README.md"))}


class Site:
    """The pages, and the files that they were found to link to."""

    def __init__(self, target: Path):
        self.target, self.pages, self.files = target, pages(), {}

    def build(self) -> None:
        """Writes everything anew."""
        shutil.rmtree(self.target, ignore_errors=True)
        for source, page in self.pages.items():
            self.write(page, self.linked(source.read_text(), source, page))
        for module in api.modules():
            page = f"api/{module}.md"
            self.write(page, self.linked(api.page(module), ROOT / "README.md", page))
        for source, page in self.files.items():
            if page.endswith(".md"):
                self.write(page, listing(source))
            else:
                (self.target / page).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, self.target / page)
        self.write("code.css", HtmlFormatter(style="default").get_style_defs(".codehilite") + STYLE)

    def write(self, page: str, text: str) -> None:
        path = self.target / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def linked(self, text: str, source: Path, page: str) -> str:
        """A page's text with its links to files of the repository turned into links inside the site."""

        def moved(match: re.Match) -> str:
            if match[1] or re.match(r"[a-z]+:|#", match[3]):
                return match[0]
            target, mark, anchor = match[3].partition("#")
            file = ROOT / target[1:] if target.startswith("/") else (source.parent / target).resolve()
            here = os.path.dirname(page) if match[2] == "](" else page.removesuffix("index.md").removesuffix(".md")  # HTML is left as it is
            return f"{match[2]}{os.path.relpath(self.place(file), here or '.')}{mark}{anchor}"

        return LINK.sub(moved, spaced(text))

    def place(self, file: Path) -> str:
        """Where a file of the repository is on the site. Code becomes a page of its own."""
        if file in self.pages:
            return self.pages[file]
        name = file.relative_to(ROOT).as_posix()
        return self.files.setdefault(file, name if file.suffix in (".png", ".svg", ".jpg") else f"code/{name}.md")


def spaced(text: str) -> str:
    """A blank line before each list, which Markdown for sites wants and code browsers don't."""
    return re.sub(r"(?m)^((?!\s*(?:[-*] |\d+\. |\||#|$))\S.*)\n(?=(?:- |\d+\. ))", r"\1\n\n", text)


def listing(file: Path) -> str:
    """The page of a file, each line of which can be linked to; of a folder, its files."""
    name = file.relative_to(ROOT).as_posix()
    if file.is_dir():
        return f"# {name}\n\n" + "\n".join(f"- `{path.relative_to(file).as_posix()}`" for path in sorted(file.rglob("*")) if path.is_file()) + "\n"
    try:
        lexer = get_lexer_for_filename(name, stripnl=False)  # or lines would be counted from the first that isn't empty
    except ClassNotFound:
        lexer = get_lexer_for_filename("job.sh", stripnl=False)
    return f"# {name}\n\n" + highlight(file.read_text(), lexer, HtmlFormatter(cssclass="codehilite", linespans="L")).replace('id="L-', 'id="L')


STYLE = """
.codehilite pre { overflow-x: auto; line-height: 1.35; font-size: 12px; }
.codehilite :target { background: #fff3c4; }
.wy-nav-content { max-width: 1100px; }
.wy-table-responsive table td, .wy-table-responsive table th { white-space: normal; }
"""


def main(words: Iterable[str] = ()) -> None:
    Site(Path(*words) if words else TARGET).build()


if __name__ == "__main__":
    main(sys.argv[1:])
