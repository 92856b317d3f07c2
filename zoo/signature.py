"""What a `_target_` takes, read from its source without importing it: the command line checks `model.*` and `objective.*` before torch loads."""

import ast
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zoo.errors import ConfigError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Parameter:
    """One argument: its annotation as written ("" if none) and whether it has to be given."""

    annotation: str
    required: bool


# Where a section may name something to be called. A configuration may come from somebody else, and most functions of this package are none
# that it may call: they read, write and remove files.
PLACES = {
    "model": ("zoo.papers.", "zoo.training.first_stage.first_stage"),
    "objective": ("zoo.papers.", "zoo.objectives."),
    "data": ("zoo.data.", "zoo.papers."),
    "evaluation": ("zoo.evaluation.", "zoo.papers."),
}


def own_packages() -> list[str]:
    """Packages besides zoo whose code a configuration may call, since ZOO_PACKAGES in the user's own environment names them: "mypkg,other"."""
    return re.findall(r"\w+", os.environ.get("ZOO_PACKAGES", ""))


def check_role(section: str, target: str) -> None:
    """Refuses a `_target_` under zoo that is not made for this section: models and objectives are classes, or functions that say they return an
    object of one; data sets, functions that return `Data`; evaluations, functions of (objective, data, generator).

    Raises:
        ConfigError: if nothing of that name is defined under zoo, or it is something else.
    """
    _, node = _definition(target)
    if section in ("model", "objective"):
        fits = isinstance(node, ast.ClassDef) or re.fullmatch(r"(nn\.)?(?!None|Path)[A-Z]\w*", _text(node.returns))
    elif section == "data":
        fits = isinstance(node, ast.FunctionDef) and _text(node.returns).strip("'") == "Data"
    else:
        fits = isinstance(node, ast.FunctionDef) and {"objective", "data", "generator"} <= set(parameters(target))
    if not fits or not target.startswith(PLACES[section]):
        raise ConfigError(f"_target_ {target!r} is nothing that can be called as {section}")


@cache
def parameters(target: str) -> dict[str, Parameter]:
    """The keyword arguments that `target` ("zoo.papers.resnet.resnet50") accepts.

    A preset that hands `**kwargs` on to the class which it returns accepts the arguments of that class, too.

    Raises:
        ConfigError: if nothing of that name is defined under zoo.
    """
    return _arguments(*_definition(target))


@cache
def _definition(target: str) -> tuple[Path, ast.FunctionDef | ast.ClassDef]:
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        file = _module_file(parts[:cut])
        if file:
            found = _find(file, parts[cut]) if cut == len(parts) - 1 else None
            if found is None:
                raise ConfigError(f"_target_ {target!r}: {'.'.join(parts[:cut])} does not define {'.'.join(parts[cut:])}")
            return found
    raise ConfigError(f"_target_ {target!r}: no such module")


def _module_file(parts: list[str]) -> Path | None:
    base = PACKAGE.parent.joinpath(*parts)
    if parts[0] != PACKAGE.name:  # an installed package has all others beside it
        return None
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _find(file: Path, name: str) -> tuple[Path, ast.FunctionDef | ast.ClassDef] | None:
    """The definition of `name` in `file`, followed through `from .x import name`."""
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            parent = file.parent
            for _ in range(node.level - 1):
                parent = parent.parent
            base = parent.relative_to(PACKAGE.parent).parts if node.level else ()
            source = _module_file([*base, *(node.module or "").split(".")])
            return _find(source, original) if source else None
    return None


def _arguments(file: Path, node: ast.FunctionDef | ast.ClassDef) -> dict[str, Parameter]:
    if isinstance(node, ast.ClassDef):
        function = _constructor(node)
        if function is None:
            return _inherited(file, node)
    else:
        function = node
    spec = function.args
    positional = spec.posonlyargs + spec.args
    required = len(positional) - len(spec.defaults)
    annotation = lambda a: _choices(file, a.annotation.id) or a.annotation.id if isinstance(a.annotation, ast.Name) else _text(a.annotation)
    found = {a.arg: Parameter(annotation(a), i < required) for i, a in enumerate(positional)}
    found |= {a.arg: Parameter(annotation(a), d is None) for a, d in zip(spec.kwonlyargs, spec.kw_defaults)}
    found.pop("self", None)
    if spec.kwarg:
        for name, parameter in _handed_on(file, function, spec.kwarg.arg).items():
            found.setdefault(name, parameter)
    return found


def _choices(file: Path, name: str) -> str | None:
    """What stands behind a name for a `Literal[...]`, defined in this file or in one of zoo that it is imported from."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]:
            text = ast.unparse(node.value)
            return text if text.startswith("Literal[") else None
        if isinstance(node, ast.ImportFrom) and node.level == 0 and any((a.asname or a.name) == name for a in node.names):
            source = _module_file((node.module or "").split("."))
            return _choices(source, next(a.name for a in node.names if (a.asname or a.name) == name)) if source else None
    return None


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)


def _inherited(file: Path, node: ast.ClassDef) -> dict[str, Parameter]:
    """The arguments of the constructor of the first base class that zoo defines."""
    bases = (_find(file, base.id) for base in node.bases if isinstance(base, ast.Name))
    return next((_arguments(*base) for base in bases if base), {})


def _handed_on(file: Path, function: ast.FunctionDef, kwargs: str) -> dict[str, Parameter]:
    """Arguments which `return Callee(..., **kwargs)` leaves open."""
    for node in ast.walk(function):
        if not (isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)):
            continue
        call, name = node.value, node.value.func.id
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == kwargs for k in call.keywords):
            callee = _find(file, name)
            if callee:
                given = {k.arg for k in call.keywords}
                accepted = list(_arguments(*callee).items())[len(call.args) :]
                return {name: parameter for name, parameter in accepted if name not in given}
    return {}


def _text(annotation: ast.expr | None) -> str:
    return ast.unparse(annotation) if annotation else ""
