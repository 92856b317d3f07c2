"""Links the code that a card's table "| paper | here |" names to the lines where it stands.

python docs/links.py           after code has moved; docs/tables.py does it, too
"""

import ast
import keyword
import os
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = "\n| paper | here |\n"
SPAN = re.compile(r"\[(`[^`]+`)\]\([^)]*\)|(`[^`]+`)")  # code, linked or not yet
NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?")
ELSEWHERE = ("torch", "data", "optim", "schedule", "trainer")  # torch's own, and keys of the configuration
Place = tuple[Path, int]


def linked(card: str, folder: Path) -> str:
    """The text of the card of a paper's folder, in which the table's names of code and of files are links.

    Left alone is what names nothing by itself: `pool="class"`, a command, a key of the configuration.

    Raises:
        ValueError: if there is no such table, or a name stands nowhere in the paper's folder.
    """
    if HEADING not in card:
        raise ValueError(f"{folder.name}/README.md: no table {HEADING.strip()}")
    head, rest = card.split(HEADING)
    table, blank, rest = rest.partition("\n\n")
    rows = [left + bar + _cell(here, folder) for left, bar, here in (row.rpartition(" | ") for row in table.splitlines())]
    return head + HEADING + "\n".join(rows) + blank + rest


def _cell(text: str, folder: Path) -> str:
    files = [path for code in re.findall(r"`([^`]+\.py)`", text) if (path := _path(code, folder))]
    owner = None  # the class that was named last: `Transformer.encode`, `decode`

    def link(match: re.Match) -> str:
        nonlocal owner
        code = (match[1] or match[2]).strip("`")
        if path := _path(code, folder):
            return f"[`{code}`]({_relative(path, folder)})"
        name = NAME.fullmatch(code)
        if not name or keyword.iskeyword(code) or name[1].split(".")[0] in ELSEWHERE:
            return f"`{code}`"
        place = resolve(name[1], folder, files, owner)
        if place is None:
            raise ValueError(f"{folder.name}/README.md: the table names `{code}`, which is nothing in zoo/papers/{folder.name}")
        file, line = place
        first = resolve(name[1].split(".")[0], folder, files, None)
        if first and first[1] and isinstance(node_of(first), ast.ClassDef):
            owner = first
        return f"[`{code}`]({_relative(file, folder)}" + (f"#L{line})" if line else ")")

    return SPAN.sub(link, text)


def _path(code: str, folder: Path) -> Path | None:
    """A file or folder, of the paper or of the repository; or a configuration, `gan/mixture_2d`."""
    if not re.fullmatch(r"[\w./]+", code) or not ("/" in code or code.endswith(".py")):
        return None
    choices = (folder / code, ROOT / code, ROOT / "configs" / "paper" / f"{code}.yaml")
    return next((path for path in choices if path.exists()), None)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def resolve(name: str, folder: Path, files: list[Path], owner: Place | None) -> Place | None:
    """Where a name is defined: in the files that the cell names, in the paper's folder, in the class that the cell named before; else the
    configuration or the argument of that name. Line 0: a whole file."""
    first, *rest = name.split(".")
    if first == "zoo":
        return _dotted(ROOT, name.split("."))
    modules = [*files, folder / "model.py", *sorted(set(folder.glob("*.py")) - {folder / "model.py", folder / "__init__.py"})]
    for module in modules:
        if found := definition(module, [first, *rest]):
            return found
    if rest:
        return _dotted(folder, [first, *rest])
    if owner and (found := _member(owner, [name])):
        return found
    row = ROOT / "configs" / "paper" / folder.name / f"{name}.yaml"
    return (row, 0) if row.exists() else _argument(name, [*([owner] if owner else []), *((module, 0) for module in modules)])


def _dotted(base: Path, parts: list[str]) -> Place | None:
    """What a module or package below a folder holds; else the module itself, of a paper its card."""
    for cut in range(len(parts) - 1, 0, -1):
        path = base.joinpath(*parts[:cut])
        module = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
        if module and (found := definition(module, parts[cut:])):
            return found
    path = base.joinpath(*parts)
    return next(((file, 0) for file in (path.with_suffix(".py"), path / "README.md", path / "__init__.py") if file.is_file()), None)


def definition(file: Path, parts: list[str]) -> Place | None:
    """A definition of a module, followed through `from .x import name`, and what it holds."""
    if not parts:
        return file, 0
    for node in tree_of(file).body:
        if parts[0] in _defined(node):
            return _member((file, node.lineno), parts[1:])
        if isinstance(node, ast.ImportFrom) and (names := [a.name for a in node.names if (a.asname or a.name) == parts[0]]):
            base = [*file.parents][node.level - 1] if node.level else ROOT
            path = base.joinpath(*(node.module or names[0]).split("."))
            module = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
            if module.is_file():
                return definition(module, [*names, *parts[1:]] if node.module else parts[1:])
    return None


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [one.id if isinstance(one, ast.Name) else one.attr for one in flat if isinstance(one, ast.Name | ast.Attribute)]


def _member(place: Place, parts: list[str]) -> Place | None:
    """A method, a class attribute or one of `self` of the class that begins at this line, or of its base classes."""
    if not parts:
        return place
    node, file = node_of(place), place[0]
    if not isinstance(node, ast.ClassDef) or len(parts) > 1:
        return None
    for inner in [*node.body, *(each for each in ast.walk(node) if isinstance(each, ast.Assign | ast.AnnAssign))]:
        if parts[0] in _defined(inner):
            return file, inner.lineno
    bases = (definition(file, [base.id, *parts]) for base in node.bases if isinstance(base, ast.Name))
    return next((found for found in bases if found), None)


def _argument(name: str, places: list[Place]) -> Place | None:
    """The argument of that name: of the last class that is made with it, which is the largest, or else of a function."""
    for place in places:
        node = node_of(place)
        classes = [each for each in ast.walk(node) if isinstance(each, ast.ClassDef)][::-1]
        constructors = [each for one in classes for each in one.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        for function in [*constructors, *(each for each in ast.walk(node) if isinstance(each, ast.FunctionDef))]:
            for argument in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]:
                if argument.arg == name:
                    return place[0], argument.lineno
    return None


def node_of(place: Place) -> ast.AST:
    """The definition of a module that begins at this line, or the module."""
    tree = tree_of(place[0])
    return next((node for node in tree.body if node.lineno == place[1]), tree)


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def main() -> None:
    for card in sorted((ROOT / "zoo" / "papers").glob("*/README.md")):
        card.write_text(linked(card.read_text(), card.parent))


if __name__ == "__main__":
    main()
