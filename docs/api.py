"""The API reference in Markdown, from signatures and docstrings, read without importing anything."""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from docs.links import ROOT, definition, node_of, tree_of

SECTIONS = ("Args:", "Returns:", "Raises:")
SHARED = ("zoo", "zoo.hub", "zoo.objectives", "zoo.objectives.beam_search", "zoo.data", "zoo.data.base", "zoo.data.items", "zoo.evaluation",
          "zoo.evaluation.fidelity", "zoo.evaluation.generation", "zoo.evaluation.diffusion", "zoo.evaluation.translation",
          "zoo.evaluation.continuation")  # fmt: skip


def modules() -> list[str]:
    """What is public: the shared modules, then the papers."""
    return [*SHARED, *(f"zoo.papers.{path.parent.name}" for path in sorted((ROOT / "zoo" / "papers").glob("*/model.py")))]


def page(module: str) -> str:
    """The reference of a module: what it says of itself, then each public class and function."""
    file = _file(module)
    entries = (_entry(name, *definition(file, [name])) for name in names(file))
    return "\n\n".join([f"# {module}", *prose(ast.get_docstring(tree_of(file)) or ""), *(part for entry in entries for part in entry)]) + "\n"


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names(file: Path) -> list[str]:
    """`__all__`, classes and functions of it; without one, what the module defines under public names."""
    for node in tree_of(file).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            found = ast.literal_eval(node.value)
            return [name for name in found if (place := definition(file, [name])) and not isinstance(node_of(place), ast.Assign | ast.AnnAssign)]
    return [node.name for node in tree_of(file).body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]


def _entry(name: str, file: Path, line: int) -> Iterator[str]:
    """A class with its methods, or a function."""
    node = node_of((file, line))
    yield f"## `{name}`"
    yield _signature(node) + f"\n\n[source](/{file.relative_to(ROOT).as_posix()}#L{line})"
    yield from prose(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        methods = (each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"))
        for method in methods:
            yield f"### `{name}.{method.name}`"
            yield _signature(method)
            yield from prose(ast.get_docstring(method) or "")


def _signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """As one would write it, arguments on lines of their own where they are many."""
    function = node
    if isinstance(node, ast.ClassDef):
        function = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    arguments = _arguments(function.args) if function else []
    returns = f" -> {ast.unparse(node.returns)}" if isinstance(node, ast.FunctionDef) and node.returns else ""
    head = f"class {node.name}" if isinstance(node, ast.ClassDef) else f"def {node.name}"
    short = f"{head}({', '.join(arguments)}){returns}"
    if len(short) > 100:
        short = f"{head}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"
    return f"```python\n{short}\n```"


def _arguments(found: ast.arguments) -> list[str]:
    """Each argument with its annotation and default."""
    positional = [*found.posonlyargs, *found.args]
    pairs = list(zip(positional, [None] * (len(positional) - len(found.defaults)) + found.defaults))
    texts = [_argument(argument, default) for argument, default in pairs if argument.arg != "self"]
    if found.vararg or found.kwonlyargs:
        texts.append(f"*{ast.unparse(found.vararg)}" if found.vararg else "*")
    texts += [_argument(argument, default) for argument, default in zip(found.kwonlyargs, found.kw_defaults)]
    return [*texts, *([f"**{ast.unparse(found.kwarg)}"] if found.kwarg else [])]


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if argument.annotation else "="
    return ast.unparse(argument) + (f"{equals}{ast.unparse(default)}" if default else "")


# ---- docstrings ----


def prose(docstring: str) -> Iterator[str]:
    """A docstring in Markdown: paragraphs, indented lines as they stand, and lists of arguments and errors."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = paragraph.splitlines()
        for part in _runs(lines):
            if part[0].strip() in SECTIONS and not part[0].startswith(" "):
                yield f"*{part[0].strip().rstrip(':')}*"
                yield "\n".join(_items(part[1:]))
            elif part[0].startswith(("    ", "from ", "import ")):
                yield "```python\n" + textwrap.dedent("\n".join(part)) + "\n```"
            elif part[0].startswith(("- ", "* ")):
                yield "\n".join(plain(line) if not line.startswith(("- ", "* ")) else f"- {plain(line[2:])}" for line in part)
            else:
                yield plain("\n".join(part))


def _runs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in groups: a section with all that is indented below it, indented lines, other lines."""
    group: list[str] = []
    for line in lines:
        section = bool(group) and group[0].strip() in SECTIONS
        begins = line.strip() in SECTIONS or (not section and group and line.startswith("    ") != group[-1].startswith("    "))
        if group and (begins or (section and not line.startswith("    "))):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _items(lines: Iterable[str]) -> list[str]:
    """`name: text` of a section as a list; deeper lines belong to the one before."""
    items: list[str] = []
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if line.startswith(" ") and items:
            items[-1] += f" {plain(line.strip())}"
        elif match := re.match(r"([\w*, .]+): (.*)", line):
            items.append(f"- `{match[1]}`: {plain(match[2])}")
        else:
            items.append(f"- {plain(line)}")
    return items


def plain(text: str) -> str:
    """Text in which formulas keep their underscores and stars; `code` stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\_*<>\[\]#|])", r"\\\1", part) for part in parts)
