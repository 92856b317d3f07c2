"""HTML without a template language: elements that escape what is put into them, and the frame that all pages share."""

import base64
import contextlib
import html
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from zoo.errors import ConfigError

GENERATOR = "paper-zoo report"
ALONE = ("img", "meta")  # elements without an end
WIDEST, HEAVIEST = 1200, 250_000  # pixels and bytes: larger pictures are made smaller


class Html(str):
    """What is HTML already; any other text is escaped where it enters an element."""


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`; `class_` and `aria_label` stand for `class` and `aria-label`, and None for no attribute."""
    inside = "".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children)
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{written}>" if name in ALONE else f"<{name}{written}>{inside}</{name}>")


def breakable(name: object) -> Html:
    """A name that a narrow page may break after its underscores, dots and slashes."""
    return Html(re.sub(r"([_./])", r"\1<wbr>", html.escape(str(name))))


def section(title: str, *children: object) -> Html:
    return element("section", element("h2", title), *children)


def table(headings: Iterable[object], rows: Iterable[Iterable[object]], numbers: bool = True) -> Html:
    """The first cell of a row is its heading; the others stand at the right where they are numbers. A wide table scrolls in its own box."""
    head = element("tr", *(element("th", heading, scope="col") for heading in headings))
    body = (element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells)) for first, *cells in rows)
    whole = element("table", element("thead", head), element("tbody", *body), class_="numbers" if numbers else None)
    return element("div", whole, class_="scroll", tabindex=0)


def pairs(facts: Iterable[tuple[str, object]], style: str) -> Html:
    """Names and values, those without a value left out."""
    each = (element("div", element("dt", name), element("dd", value)) for name, value in facts if value not in (None, ""))
    return element("dl", *each, class_=style)


def picture(file: Path, description: str) -> Html:
    """The picture itself, inside the page; pillow's errors where it is none."""
    from PIL import Image

    with Image.open(file) as image:
        image.verify()
        width, height, kind = *image.size, image.get_format_mimetype()
    content = file.read_bytes()
    if width > WIDEST or len(content) > HEAVIEST:
        content, kind, (width, height) = _smaller(file)
    address = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return element("img", src=address, alt=description, width=width, height=height)


def _smaller(file: Path) -> tuple[bytes, str, tuple[int, int]]:
    from PIL import Image

    with Image.open(file) as image:
        image.thumbnail((WIDEST, 4 * WIDEST))
        content = io.BytesIO()
        image.convert("RGB").save(content, "WEBP", quality=85)
    return content.getvalue(), "image/webp", image.size


def page(title: str, *body: object) -> str:
    """A whole document that needs nothing else: no script, no address."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    ]
    return "<!doctype html>\n" + element("html", element("head", *head), element("body", element("main", *body)), lang="en") + "\n"


def write(file: Path, text: str) -> Path:
    """Replaces a page of ours, whole or not at all.

    Raises:
        ConfigError: if the file is somebody else's, or cannot be written.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.exists() and GENERATOR not in file.read_bytes()[:500].decode(errors="replace"):
            raise ConfigError(f"{file} exists and is no page of `zoo report`: move it, or choose another file by to=<file.html>")
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text.encode(errors="replace"))  # JSON may hold halves of characters
        aside.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return file
