"""From the command line to a checked configuration: Hydra composes, `zoo.schema` checks, and every error is one line."""

import argparse
import contextlib
import difflib
import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from zoo import schema
from zoo.errors import ConfigError

# What Hydra 1.4 says of 1.5; 1.3 wants it as it is here.
warnings.filterwarnings("ignore", r"The version_base parameter|register_new_resolver")
GROUPS = ("paper", "data", "trainer", "logger")
# What may be said to Hydra itself, as words or in a file. The rest of its section names things to be called and files to be written.
HYDRA_WORDS = r"hydra\.(run\.dir|sweep\.(dir|subdir)|mode|verbose|(sweeper|launcher)\.(?!_)[\w.]+)|hydra/(launcher|sweeper)"
HYDRA_SECTIONS = ("mode", "verbose", "sweep", "sweeper", "launcher", "job", "overrides", "runtime", "searchpath")


def config_dir() -> Path:
    """Where the YAML files are: inside the package when it was installed from a wheel, else beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def trainer_defaults() -> dict[str, Any]:
    """The keys of configs/trainer/default.yaml."""
    import yaml

    return yaml.safe_load((config_dir() / "trainer" / "default.yaml").read_text())


def paper_configs() -> dict[str, str]:
    """Name -> first comment line of every paper configuration: {"resnet": "...", "resnet/cifar10_resnet20": "..."}."""
    root = config_dir() / "paper"
    return {str(f.relative_to(root).with_suffix("")): _headline(f) for f in sorted(root.rglob("*.yaml")) if not f.name.startswith("_")}


def _headline(file: Path) -> str:
    lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@package")), "")


def compose(overrides: list[str]) -> dict[str, Any]:
    """Composes and checks the training configuration for these overrides, without running anything.

    Raises:
        ConfigError: one sentence, whatever is wrong.
    """
    import hydra

    _register_resolvers(overrides)
    with one_line_errors(), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return resolve(hydra.compose("train", overrides=openly(overrides)), overrides)


def run_hydra(task: Callable[[dict[str, Any]], float | None], argv: list[str]) -> None:
    """Runs `task` on the checked configuration, once or, with --multirun, for each combination; Hydra's own flags work as usual.

    All combinations are checked before the first one runs, unless another launcher than Hydra's basic one shares them out, or a sweeper chooses
    the next one by what `task` returned.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    refused: list[ConfigError] = []
    waiting: list[dict[str, Any]] = []

    def job(cfg: Any) -> float | None:
        directory = HydraConfig.get().runtime.output_dir
        try:
            with one_line_errors():
                checked = resolve(cfg, argv)
            if HydraConfig.get().mode.name == "MULTIRUN":
                checked["run_dir"] = os.path.relpath(directory)
        except ConfigError as error:  # raised further out: Hydra would print more than a line
            _remove_empty(Path(directory))
            _remove_empty(Path.cwd() / HydraConfig.get().run.dir)  # what a name with '..' made on its way
            refused.append(error)
            raise SystemExit from None
        hydra_cfg = HydraConfig.get()
        if hydra_cfg.launcher._target_.endswith("BasicLauncher") and hydra_cfg.sweeper._target_.endswith("BasicSweeper"):
            waiting.append(checked)
            return None
        return task(checked)

    _register_resolvers(argv)
    words = argv if {"-sc", "--shell-completion"} & set(argv) else openly(argv)  # there Hydra has words of its own: install=bash
    flags_first = sorted(words, key=lambda word: word not in ("-m", "--multirun"))  # argparse reads no words behind a flag between words
    _check_own_files(argv)
    typed, sys.argv = sys.argv, [sys.argv[0], *flags_first]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed
    with one_line_errors():
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()
        except SystemExit:
            if refused:
                raise refused[0] from None
            raise
        finally:
            sys.argv = typed
    for checked in waiting:
        task(checked)


def _check_own_files(argv: list[str]) -> None:
    """Refuses files of --config-dir that set up Hydra otherwise: its callbacks and loggers would be called before we see the configuration.

    Raises:
        ConfigError: if they do, or the command line wants another configuration than ours.
    """
    import hydra
    from omegaconf import OmegaConf

    plain = lambda section: OmegaConf.to_container(section, resolve=False)
    folders = []
    for word, following in zip(argv, [*argv[1:], ""]):
        flag, _, value = word.partition("=")
        if re.fullmatch(r"-c[pn]|--config-[pn][a-z]*", flag):
            raise ConfigError(f"{flag}: the configuration to start from is zoo's own; --config-dir=<folder> adds files of yours")
        if re.fullmatch(r"-cd|--config-d[a-z]*", flag):
            folders.append(Path(value or following).absolute())
    if not folders:
        return
    chosen = [[f"{group}={option}" for option in word.partition("=")[2].split(",")] for word in argv if (group := word.partition("=")[0]) in GROUPS]
    with one_line_errors(), hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        usual = plain(hydra.compose("train", return_hydra_config=True).hydra)
        for words in itertools.product(*chosen):
            search = f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"
            found = plain(hydra.compose("train", overrides=[search, *words], return_hydra_config=True).hydra)
            for key in found:
                if key not in HYDRA_SECTIONS and found[key] != usual.get(key):
                    raise ConfigError(f"hydra.{key} is not for configuration files: leave it out of those in {', '.join(map(str, folders))}")


def _remove_empty(directory: Path) -> None:
    """Removes the directory that Hydra made for a run that will not be, and its empty parents below the working directory."""
    here = Path.cwd()
    for path in (directory, *(parent for parent in directory.parents if here in parent.parents)):
        if path != here:
            with contextlib.suppress(OSError):
                path.rmdir()


def resolve(cfg: Any, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The composed configuration as plain, checked values."""
    from omegaconf import OmegaConf

    return schema.check(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True), foreign_packages(overrides))


def foreign_packages(overrides: Iterable[str]) -> list[str]:
    """Packages that the command line itself names in a `_target_`; a configuration file alone cannot have foreign code run."""
    found = (m.group(1) for text in overrides for m in re.finditer(r"_target_\s*[=:]\s*['\"]?([A-Za-z_]\w*)", text))
    return [package for package in found if package != "zoo"]


def openly(overrides: Iterable[str]) -> list[str]:
    """`key=value` becomes Hydra's `++key=value` (set or add), so that our own schema decides which keys exist."""
    plain = re.compile(r"([A-Za-z_][\w.]*)=")
    for text in overrides:
        group, _, option = text.partition("=")
        if text in paper_configs():
            raise ConfigError(f"cannot read the override {text!r}: did you mean paper={text}?")
        if not group or (group in GROUPS and re.fullmatch(r"(null|true|false|[\d.]*|\[.*)", option)):
            raise _no_such_option(group, option) if group else ConfigError(f"cannot read the override {text!r}: write key=value")
        key = group.lstrip("+~")
        if key.startswith("hydra") and not re.fullmatch(HYDRA_WORDS, key):
            raise ConfigError(f"{key} is no key of ours: of Hydra's own there are hydra.sweep, hydra.sweeper, hydra.launcher and hydra.mode")
        if group == "name" and ".." in option.split("/"):  # now, since Hydra makes the directory before we see the configuration
            schema.check_name(option)

    def opened(text: str) -> str:
        match = plain.match(text)
        return f"++{text}" if match and match.group(1) not in GROUPS and not match.group(1).startswith("hydra.") else text

    return [opened(text) for text in overrides]


def _register_resolvers(argv: list[str]) -> None:
    from omegaconf import OmegaConf

    swept = {key for key in map(_swept_key, argv) if key}

    def suffix(overrides: Iterable[str]) -> str:
        """lr-0.05_seed-1: what tells the runs of a multirun apart."""
        pairs = [text.lstrip("+").split("=", 1) for text in overrides]
        parts = [f"{key.split('.')[-1]}-{value}" for key, value in pairs if key in swept]
        return re.sub(r"[^\w.,-]+", "-", "_".join(parts)) or "all"

    OmegaConf.register_new_resolver("swept", suffix, replace=True)


def _swept_key(text: str) -> str | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        override = OverridesParser.create().parse_override(text)
    except Exception:  # bad grammar is reported when Hydra parses the whole line
        return None
    return override.key_or_group if override.is_sweep_override() else None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what Hydra, OmegaConf and argparse raise while composing into one ConfigError of one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        raise ConfigError(f"{message} (--help shows what there is)")

    original, argparse.ArgumentParser.error = argparse.ArgumentParser.error, refuse
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_explain(error)) from None
    except (ValueError, OSError, AssertionError, RecursionError) as error:  # Hydra's own checks of its flags, and files that it cannot read
        if isinstance(error, RecursionError):
            raise ConfigError("the defaults of a configuration file lead back to itself") from None
        file = _being_read(error)
        if not file and not isinstance(error, ValueError):
            raise
        raise ConfigError(f"{file}: {_first_line(error)}" if file else _first_line(error)) from None
    finally:
        argparse.ArgumentParser.error = original


def _being_read(error: Exception) -> str | None:
    """The configuration file that Hydra was reading, which its errors don't say."""
    places = (frame.f_locals.get("config_path") for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((place for place in reversed(list(places)) if isinstance(place, str) and not os.path.isabs(place)), None)


def _explain(error: Exception) -> str:
    from yaml import YAMLError

    text = str(error)
    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        return f"{_being_read(error) or 'a configuration file'}{where}: {getattr(error, 'problem', None) or _first_line(error)}"
    if found := re.match(r"In '(.*)': (\w+) raised while composing config:\n(.*)", text):
        return f"{found.group(1)}: {found.group(3)}"
    if group := re.search(r"Could not find '(\w+)/([^']*)'", text):
        return str(_no_such_option(group.group(1), group.group(2)))
    if group := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key '{group.group(1)}' (--help lists the keys)"
    if "Interpolation" in type(error).__name__ or "resolution" in type(error).__name__.lower():
        return f"{getattr(error, 'full_key', '') or 'a value'}: {_first_line(error)}"
    key = getattr(error, "full_key", None)
    line = _first_line(error)
    if "Override" in type(error).__name__:
        return f"cannot read the override {str(error.override)!r}: write key=value, and quote values with spaces or commas"
    return f"{key}: {line}" if key else line


def _no_such_option(group: str, option: str) -> ConfigError:
    root = config_dir() / group
    options = [str(f.relative_to(root).with_suffix("")) for f in sorted(root.rglob("*.yaml"))]
    near = difflib.get_close_matches(option, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(o for o in options if '/' not in o)}"
    return ConfigError(f"{group}={option}: no such {group} configuration; {hint}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
